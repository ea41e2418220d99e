"""How fast this machine trains a network: a few batches of noise, before anything else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from biotune_optuna.clock import Speed
from biotune_optuna.finetune.device import (
    amp_dtype,
    autocast,
    channels_last,
    isolated_randomness,
    out_of_memory,
    release_memory,
)

if TYPE_CHECKING:
    from torch import nn

    from biotune_optuna.finetune.settings import TrainSettings

_PATIENCE = 8.0  # seconds for one image size: on a slow machine fewer images tell as much
_FEWEST = 4  # images of a batch
_LONG_ENOUGH = 0.5  # seconds: shorter, and a moment's luck decides


def measure_speed(
    model: nn.Module, settings: TrainSettings, *, device: torch.device, sides: Sequence[int]
) -> Speed:
    """Train and look at batches of noise, and return the seconds an image.

    Args:
        model: The network. It is trained, so give one that is not needed any more.
        settings: Batch size and precision.
        device: Where to compute.
        sides: One or two image sizes in pixels, such as the smallest and the largest in question;
            those between are interpolated by area.
    """
    model = channels_last(model.to(device)).requires_grad_(True)  # all of it, whatever ran before
    amp = amp_dtype(settings.amp, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trained, looked = [], []
    with isolated_randomness(0, device):
        for side in sides:
            batch = settings.batch_size

            def images(n: int, side: int = side) -> torch.Tensor:
                noise = torch.randn(n, 3, side, side, device=device)
                return noise.to(memory_format=torch.channels_last)

            def step(n: int) -> None:
                with autocast(device, amp):
                    loss = model(images(n)).float().square().mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

            def look(n: int) -> None:
                with torch.inference_mode(), autocast(device, amp):
                    model(images(n))

            model.train()
            trained.append(_seconds(step, batch, device))
            model.eval()
            looked.append(_seconds(look, batch, device))
    return Speed(train=_line(sides, trained), look=_line(sides, looked))


def _seconds(work: Callable[[int], None], batch: int, device: torch.device) -> float:
    """Return the seconds an image, of two batches at least, after one to warm up.

    The mean counts, not the best: where other programs use the machine, trainings get no more than
    their share of it.
    """
    while True:
        try:
            first = _time(work, _FEWEST, device)
            n = batch if batch * first / _FEWEST < _PATIENCE else _FEWEST
            took = [_time(work, n, device) for _ in range(2)]
            while sum(took) < _LONG_ENOUGH:
                took.append(_time(work, n, device))
            return sum(took) / (len(took) * n)
        except RuntimeError as error:
            if not out_of_memory(error) or batch <= _FEWEST:
                raise
        release_memory(device)
        batch //= 2


def _time(work: Callable[[int], None], n: int, device: torch.device) -> float:
    start = time.perf_counter()
    work(n)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _line(sides: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Return ``fixed`` and ``pixel`` through one or two points; neither is negative."""
    small, large = sides[0] ** 2, sides[-1] ** 2
    if small == large:
        return 0.0, seconds[-1] / large
    slope = max(0.0, (seconds[-1] - seconds[0]) / (large - small))
    fixed = seconds[-1] - slope * large
    return (fixed, slope) if fixed >= 0 else (0.0, seconds[-1] / large)
