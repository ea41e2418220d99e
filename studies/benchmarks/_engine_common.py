"""What the engine's benchmarks share: made-up images, interleaved timing."""

from __future__ import annotations

import os
import platform
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np
import timm
import torch

from biotune_optuna.data.loaders import DeviceImages
from biotune_optuna.data.pixels import PixelStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from biotune_optuna.finetune.trainer import Trainer
    from biotune_optuna.recipe import Recipe

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CLASSES = 10


def made_up_images(n: int, size: int, device: str) -> DeviceImages:
    """Noise images behind the real loader; speed does not depend on what they show."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
    labels = np.arange(n) % CLASSES
    return DeviceImages(PixelStore(pixels), labels, mean=MEAN, std=STD, device=device)


def make_model(name: str) -> torch.nn.Module:
    """A timm network with random weights: speed does not depend on them."""
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=CLASSES)


def interleaved(candidates: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each candidate, taken in turns so that a busy machine slows all alike."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        # each round starts with another one, and the first round only warms up
        names = list(candidates)
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = candidates[name]()
            if repeat:
                found[name].append(seconds)
    return found


def ratio(numerator: list[float], denominator: list[float]) -> tuple[float, float, float]:
    """Median and quartiles of the ratios within each round."""
    rounds = [a / b for a, b in zip(numerator, denominator, strict=True)]
    low, middle, high = statistics.quantiles(rounds, n=4)
    return middle, low, high


def clock(device: str) -> float:
    """Seconds for differences: on a GPU wall time, its work done; on the CPU the process's own
    CPU time, since wall time on a shared machine measures the neighbours."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def per_epoch(epoch: Callable[[], object], epochs: int, device: str) -> float:
    """Median seconds of an epoch, the first apart, which pays for what is lazy."""
    marks = [clock(device)]
    for _ in range(epochs):
        epoch()
        marks.append(clock(device))
    return statistics.median(np.diff(marks)[1:])


def per_epoch_of_run(
    trainer: Trainer, recipe: Recipe, idx: NDArray[np.int64], epochs: int, device: str
) -> float:
    """The same of a run of the engine, without validation."""
    marks: list[float] = []
    trainer.fit(
        recipe, idx, seed=0, epochs=epochs, on_epoch=lambda _record: marks.append(clock(device))
    )
    return statistics.median(np.diff(marks))


def setting(device: str) -> str:
    """One line about the machine."""
    what = torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()} CPU"
    return (
        f"{what}, {torch.get_num_threads()} of {os.cpu_count()} threads, torch "
        f"{torch.__version__}, timm {timm.__version__}"
    )


def unit(device: str) -> str:
    """What a second is here."""
    return "CPU seconds of the process" if device == "cpu" else "wall seconds"
