"""What the parts of the check on a GPU share: findings, images, trainers, timing, processes."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch

from biotune_optuna.data.loaders import DeviceImages
from biotune_optuna.data.pixels import PixelStore
from biotune_optuna.finetune.trainer import Trainer, TrainSettings
from biotune_optuna.models.blocks import model_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from biotune_optuna.finetune.results import RunResult
    from biotune_optuna.recipe import Recipe

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CLASSES = 10
# stand-ins of a few thousand weights, with which the check itself is tried on a CPU
IN_MINIATURE = {
    "resnet18": "test_resnet",
    "resnet50": "test_resnet",
    "tf_efficientnet_lite0": "test_efficientnet",
    "vit_tiny_patch16_224": "test_vit",
    "convnext_atto": "test_convnext",
}


@dataclass(frozen=True)
class How:
    """How the check runs.

    Attributes:
        device: ``cuda``, or ``cpu`` to try the check itself.
        small: In miniature.
    """

    device: str
    small: bool

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU to wait for."""
        return self.device != "cpu"

    def net(self, name: str) -> str:
        """A network's name, in miniature that of its stand-in."""
        return IN_MINIATURE[name] if self.small else name

    def pick(self, large: Any, little: Any) -> Any:
        """The first, or in miniature the second."""
        return little if self.small else large


@dataclass
class Found:
    """What a part found: checks that hold or do not, and figures. Kept in a file as they come.

    Attributes:
        file: Where.
    """

    file: Path
    checks: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def save(self) -> None:
        """A part that is cut off keeps what it had."""
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"checks": self.checks, "figures": self.figures}, default=str))
        new.replace(self.file)

    def check(
        self, name: str, value: float, *, most: float | None = None, least: float | None = None
    ) -> None:
        """Note a value and whether it lies within its bounds."""
        ok = (most is None or value <= most) and (least is None or value >= least)
        bound = f"at most {most:g}" if most is not None else f"at least {least:g}"
        self.checks.append({"name": name, "value": value, "bound": bound, "ok": ok})
        self.save()
        print(f"  {'ok  ' if ok else 'FAIL'} {name}: {value:.6g} ({bound})", flush=True)

    def figure(self, name: str, value: Any) -> None:
        """Note a figure."""
        self.figures[name] = value
        self.save()
        print(f"       {name}: {value}", flush=True)

    @contextlib.contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """An error inside is a check that fails, not the end of the part."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - told of as a check that failed
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(where.filename)}:{where.lineno}"  # noqa: PTH119
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({place})"
            self.checks.append({"name": name, "value": None, "ok": False, "error": words})
            self.save()
            print(f"  FAIL {name}: {words}", flush=True)


# -- images and trainers -------------------------------------------------------------------------


def images_of(n: int, size: int, device: str, **options: Any) -> DeviceImages:
    """Noise whose brightness tells the class, behind the real loader."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % CLASSES
    pixels = rng.integers(0, 128, (n, size, size, 3), dtype=np.uint8)
    pixels += (labels * 12).astype(np.uint8)[:, None, None, None]
    store = PixelStore(pixels.transpose(0, 3, 1, 2))
    return DeviceImages(store, labels, mean=MEAN, std=STD, device=device, **options)


def model_of(name: str, size: int) -> torch.nn.Module:
    """A network with random weights, the same each time."""
    torch.manual_seed(0)
    fixed = timm.get_pretrained_cfg(name, allow_unregistered=True)
    options = {"img_size": size} if fixed and fixed.fixed_input_size else {}
    model: torch.nn.Module = timm.create_model(name, num_classes=CLASSES, **options)
    return model


def trainer_of(name: str, images: DeviceImages, **settings: Any) -> Trainer:
    """A trainer of a network, uncached and without patience unless told otherwise."""
    model = model_of(name, images.size)
    chosen = {"epochs": 3, "batch_size": 32, "patience": None, "prefix_cache_mb": 0, **settings}
    trained = TrainSettings(**chosen)
    return Trainer(model, model_blocks(model), images, trained, device=images.device)


def losses(result: RunResult) -> list[float]:
    """Training losses, an epoch each."""
    return [record.train_loss for record in result.epochs]


def gap(a: list[float], b: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(x - y) / max(abs(x), 1e-6) for x, y in zip(a, b, strict=True))


# -- timing ----------------------------------------------------------------------------------------


def settled(device: str) -> float:
    """The time, once the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(epoch: Callable[[], object], device: str, times: int = 3) -> float:
    """Median seconds of an epoch."""
    marks = [settled(device)]
    for _ in range(times):
        epoch()
        marks.append(settled(device))
    return statistics.median(np.diff(marks))


def epoch_seconds(trainer: Trainer, recipe: Recipe, n: int, device: str, epochs: int = 4) -> float:
    """The same of a run of the engine, but for its first epoch, without validation."""
    marks: list[float] = []

    def mark(_record: object) -> None:
        marks.append(settled(device))

    trainer.fit(recipe, np.arange(n), seed=0, epochs=epochs, on_epoch=mark)
    return statistics.median(np.diff(marks))


def ratio(a: list[float], b: list[float]) -> list[float]:
    """Median, least and largest of the ratios within each round."""
    each = sorted(x / y for x, y in zip(a, b, strict=True))
    return [round(float(v), 4) for v in (statistics.median(each), each[0], each[-1])]


# -- processes -------------------------------------------------------------------------------------


def forked(work: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """Start work in a child of this process; call what is returned for its value.

    This process has imported everything and has not touched the GPU. So the child is there at once
    and makes a CUDA context of its own.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            said = json.dumps({"value": work(*arguments)})
        except BaseException:  # noqa: BLE001 - told to the parent
            said = json.dumps({"error": traceback.format_exc()[-400:]})
        with os.fdopen(writer, "w") as pipe:
            pipe.write(said)
        sys.stdout.flush()
        os._exit(0)
    os.close(writer)

    def value() -> Any:
        with os.fdopen(reader) as pipe:
            said = json.loads(pipe.read())
        os.waitpid(child, 0)
        if "error" in said:
            raise RuntimeError(said["error"])
        return said["value"]

    return value
