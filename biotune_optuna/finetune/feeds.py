"""Routes from positions of images to logits: through the whole network, or from a cached prefix."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from biotune_optuna.data.transfer import to_device
from biotune_optuna.errors import BioTuneError
from biotune_optuna.finetune.device import autocast, release_memory, with_less

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from biotune_optuna.finetune.batches import Indices, Mix
    from biotune_optuna.finetune.prefix.cut import Features
    from biotune_optuna.finetune.prefix.plan import CachedPrefix


_log = logging.getLogger("biotune_optuna.finetune")


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


@dataclass(eq=False)
class PixelFeed:
    """Images through the whole network.

    Attributes:
        forward: The network, perhaps compiled.
        images: Where the pixels come from.
        augmentation: Policy of the data layer for training batches.
        generator: CPU generator of the augmentation's draws.
        mix: MixUp or CutMix, or None.
    """

    forward: Callable[[torch.Tensor], torch.Tensor]
    images: Images
    augmentation: str
    generator: torch.Generator
    mix: Mix | None

    @property
    def mixed(self) -> bool:
        """Whether targets are class probabilities."""
        return self.mix is not None

    def begin_epoch(self, epoch: int) -> None:
        """Nothing changes from epoch to epoch."""

    def inputs(self, idx: Indices) -> tuple[Features, torch.Tensor]:
        """Augmented, mixed images, and their labels (n,) or probabilities (n, C).

        They are the same in every type that a network may compute in.
        """
        batch = self.images.batch(idx, augmentation=self.augmentation, generator=self.generator)
        targets = self.images.labels(idx)
        if self.mix is not None:
            batch, targets = self.mix(batch, targets)
        return (batch,), targets

    def logits(self, inputs: Features) -> torch.Tensor:
        """Logits (n, C) of such inputs."""
        return self.forward(*inputs)

    def evaluate(self, idx: Indices) -> torch.Tensor:
        """Logits (n, C), without augmentation."""
        return self.forward(self.images.batch(idx))


@dataclass(eq=False)
class PrefixFeed:
    """Cached features through the suffix.

    Attributes:
        suffix: Maps features to logits.
        labels: Labels of all images, (N,).
        device: Where the network is.
        cached: The features; epochs take the views of the training images in turn.
        epoch: Counted from 0.
    """

    mixed = False
    generator = None  # its views are drawn once, when they are cached
    suffix: Callable[[Features], torch.Tensor]
    labels: Indices
    device: torch.device
    cached: CachedPrefix
    epoch: int = 0

    def begin_epoch(self, epoch: int) -> None:
        """Take the next view of the training images."""
        self.epoch = epoch

    def inputs(self, idx: Indices) -> tuple[Features, torch.Tensor]:
        """Features of images, and their labels (n,)."""
        labels = to_device(torch.from_numpy(self.labels[idx]), self.device)
        views = self.cached.train
        return views[self.epoch % len(views)](idx), labels

    def logits(self, inputs: Features) -> torch.Tensor:
        """Logits (n, C) of such inputs."""
        return self.suffix(inputs)

    def evaluate(self, idx: Indices) -> torch.Tensor:
        """Logits (n, C)."""
        assert self.cached.evaluation is not None
        return self.suffix(self.cached.evaluation(idx))


Feed = PixelFeed | PrefixFeed


def probabilities(
    forward: Callable[[Indices], torch.Tensor],
    idx: Indices,
    batch_size: int,
    device: torch.device,
    amp: torch.dtype | None,
) -> tuple[NDArray[np.float32], int]:
    """Class probabilities of images, in inference mode; arguments and errors as of `outputs`.

    Where ``forward`` gives logits of k networks, (n, k, C), there are k of each.

    Returns:
        (n, C) or (n, k, C), in the order of ``idx``; and how many images at once fitted.
    """

    def likely(few: Indices) -> torch.Tensor:
        return forward(few).float().softmax(dim=-1)

    found, fitted = outputs(likely, idx, batch_size, device, amp)
    return found.cpu().numpy(), fitted


def outputs(
    forward: Callable[[Indices], torch.Tensor],
    idx: Indices,
    batch_size: int,
    device: torch.device,
    amp: torch.dtype | None,
) -> tuple[torch.Tensor, int]:
    """Return what a function says of images, in inference mode.

    Args:
        forward: Maps positions of images to a tensor of as many rows.
        idx: Positions, (n,).
        batch_size: Images at once; half as many, again and again, where memory runs out.
        device: Where the network lives.
        amp: Autocast type or None.

    Returns:
        The rows, in the order of ``idx``; and how many images at once fitted.

    Raises:
        BioTuneError: If memory runs out with a single image.
    """

    def attempt() -> torch.Tensor:
        step = batch_size
        if device.type == "cuda" and len(idx):  # parts of one size: each size has its own kernels
            step = math.ceil(len(idx) / math.ceil(len(idx) / batch_size))
        with torch.inference_mode(), autocast(device, amp):
            found = [
                forward(idx[start : start + step]).float() for start in range(0, len(idx), step)
            ]
            return torch.cat(found)

    def less() -> None:
        nonlocal batch_size
        held = min(batch_size, len(idx))
        if held == 1:
            raise BioTuneError(
                "memory ran out with 1 image at once; use a smaller model or image size"
            )
        batch_size = held // 2
        _log.warning("memory ran out with %d images at once; going on with %d", held, batch_size)
        release_memory(device)

    found = with_less(attempt, less)
    return found, batch_size
