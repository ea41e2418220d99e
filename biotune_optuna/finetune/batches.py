"""Which images make a batch, how they are mixed, and the loss over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from biotune_optuna.finetune.settings import TrainSettings


Indices = NDArray[np.int64]
Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def parts(n: int, size: int) -> Iterator[slice]:
    """Cut n items into slices of ``size``.

    A single item left over joins the slice before it: BatchNorm cannot train on one image.

    Args:
        n: Number of items, at least 1.
        size: Items of a slice, at least 2.
    """
    start = 0
    while start < n:
        stop = start + size
        if stop >= n - 1:
            stop = n
        yield slice(start, stop)
        start = stop


class BatchSampler:
    """Which training images make a batch, drawn from a generator of its own.

    Args:
        indices: Positions of the training images, (n,).
        labels: Their labels, (n,).
        sampling: ``"shuffle"`` or ``"balanced"``.
        seed: Seed of the draws.

    Raises:
        DataError: If there are fewer than two images.
    """

    def __init__(self, indices: Indices, labels: Indices, *, sampling: str, seed: int) -> None:
        if len(indices) < 2:
            raise DataError(f"{len(indices)} training images are too few; give at least 2")
        self._indices = np.asarray(indices, dtype=np.int64)
        self._generator = torch.Generator().manual_seed(seed)
        self._weights = (
            torch.from_numpy(1.0 / np.bincount(labels)[labels]) if sampling == "balanced" else None
        )

    def epoch(self, batch_size: int) -> list[Indices]:
        """Draw the batches of the next epoch, as positions of images."""
        n = len(self._indices)
        if self._weights is None:
            drawn = torch.randperm(n, generator=self._generator)
        else:
            drawn = torch.multinomial(self._weights, n, replacement=True, generator=self._generator)
        shuffled = self._indices[drawn.numpy()]
        return [shuffled[part] for part in parts(n, batch_size)]


def class_weights(labels: Indices, n_classes: int) -> NDArray[np.float32]:
    """Weights n / (classes * count), 0 for a class without images; mean 1 over the images."""
    counts = np.bincount(labels, minlength=n_classes)
    present = counts > 0
    weights = np.zeros(n_classes, dtype=np.float32)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


class Loss:
    """Cross-entropy whose parts over a batch add up to the batch's mean.

    Args:
        label_smoothing: Share of probability spread over all classes.
        weights: Class weights, (C,), or None.
        device: Where the logits are.
    """

    def __init__(
        self,
        *,
        label_smoothing: float,
        weights: NDArray[np.float32] | None,
        device: torch.device,
    ) -> None:
        self._weights = weights
        self._sum = nn.CrossEntropyLoss(
            weight=None if weights is None else torch.from_numpy(weights).to(device),
            label_smoothing=label_smoothing,
            reduction="sum",
        )

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of logits (n, C) and labels (n,) or class probabilities (n, C)."""
        total: torch.Tensor = self._sum(logits.float(), targets)
        return total

    def is_steady(self, *, mixed: bool) -> bool:
        """Whether batches of one size have one `mass`."""
        return self._weights is None or mixed

    def mass(self, labels: Indices, *, mixed: bool) -> float:
        """Return what a batch's summed loss is divided by, as `torch.nn.CrossEntropyLoss` does.

        Args:
            labels: Labels of the whole batch, (n,).
            mixed: Whether targets are class probabilities.
        """
        if self._weights is None or mixed:
            return float(len(labels))
        return float(self._weights[labels].sum())


def mixer(settings: TrainSettings, n_classes: int) -> Mix | None:
    """MixUp and CutMix by torchvision, drawn from torch's global generator; None when both are off.

    Returns:
        Maps images (n, 3, H, W) and labels (n,) to mixed images and class probabilities (n, C).
    """
    if not (settings.mixup or settings.cutmix):
        return None
    from torchvision.transforms import v2

    alphas = {v2.MixUp: settings.mixup, v2.CutMix: settings.cutmix}
    kinds = [kind(alpha=alpha, num_classes=n_classes) for kind, alpha in alphas.items() if alpha]
    chosen: Mix = v2.RandomChoice(kinds)
    return chosen
