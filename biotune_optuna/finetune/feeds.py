"""Routes from positions of images to logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]
    Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

__all__ = ["Images", "PixelFeed"]


class Images(Protocol):
    """What training needs of a set of images; `biotune_optuna.data.loaders.DeviceImages` is one."""

    def __len__(self) -> int:
        """Return the number of images, N."""

    @property
    def n_classes(self) -> int:
        """Number of classes, C."""

    def batch(
        self,
        idx: Indices,
        *,
        augmentation: str = "none",
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Normalised images at these positions, (n, 3, H, W), on the device."""

    def labels(self, idx: Indices) -> torch.Tensor:
        """Their labels, (n,), int64, on the device."""


class PixelFeed:
    """Images through the whole network.

    Args:
        forward: The network, perhaps compiled.
        images: Where the pixels come from.
        augmentation: Policy of the data layer for training batches.
        generator: CPU generator of the augmentation's draws.
        mix: MixUp or CutMix, or None.
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        images: Images,
        *,
        augmentation: str = "none",
        generator: torch.Generator | None = None,
        mix: Mix | None = None,
    ) -> None:
        self._forward = forward
        self._images = images
        self._augmentation = augmentation
        self._generator = generator
        self._mix = mix

    @property
    def mixed(self) -> bool:
        """Whether targets are class probabilities."""
        return self._mix is not None

    def begin_epoch(self, epoch: int) -> None:
        """Nothing changes from epoch to epoch."""

    def train(self, idx: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, C) of augmented, mixed images, and targets."""
        batch = self._images.batch(idx, augmentation=self._augmentation, generator=self._generator)
        targets = self._images.labels(idx)
        if self._mix is not None:
            batch, targets = self._mix(batch, targets)
        return self._forward(batch), targets

    def evaluate(self, idx: Indices) -> torch.Tensor:
        """Logits (n, C)."""
        return self._forward(self._images.batch(idx))
