"""Augmentation of whole batches on the device, each image drawn for by itself.

All random numbers come from one explicit CPU generator, so a run is the same bit for bit on the
same hardware, and draws the same numbers on any other.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from biotune_optuna.data.affine import affine
from biotune_optuna.data.transfer import to_device
from biotune_optuna.data.trivial import trivial_augment
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from torch import Generator, Tensor


AUGMENTATIONS = ("none", "flip", "crop", "crop-flip", "trivial-noflip", "trivial")
"""Names of the policies: nothing; mirrored half the time; a random part of 50 % to all of the area
scaled to full size, as it is or mirrored half the time; one operation of TrivialAugment, as it is
or mirrored half the time."""

_AREA = (0.5, 1.0)
_RATIO = (3.0 / 4.0, 4.0 / 3.0)


def augment(images: Tensor, policy: str, generator: Generator) -> Tensor:
    """Augment a batch.

    Args:
        images: uint8, shape (B, 3, H, W), any memory format.
        policy: One of :data:`AUGMENTATIONS`.
        generator: CPU generator that all draws come from.

    Returns:
        A batch like ``images``; ``images`` itself is left as it was.

    Raises:
        DataError: The policy is unknown.
    """
    if policy == "none":
        return images
    if policy not in AUGMENTATIONS:
        raise DataError(f"augmentation {policy!r} is unknown; known are {', '.join(AUGMENTATIONS)}")
    if policy.startswith("crop"):
        return _crop(images, generator, mirror=policy == "crop-flip")
    if policy == "trivial-noflip":
        return trivial_augment(images, generator)
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    chosen = to_device(mirrored, images.device).view(-1, 1, 1, 1)
    images = torch.where(chosen, images.flip(3), images)
    return trivial_augment(images, generator) if policy == "trivial" else images


def _crop(images: Tensor, generator: Generator, *, mirror: bool) -> Tensor:
    """Random resized crop and, where asked for, mirror image in one resampling.

    As torchvision's ``RandomResizedCrop``, with the box clipped to the image instead of redrawn, so
    that the number of draws is fixed.
    """
    draws = torch.rand(5, len(images), generator=generator)
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * draws[0]
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    ratio = torch.exp(low + (high - low) * draws[1])
    width = torch.sqrt(area * ratio).clamp(max=1.0)
    height = torch.sqrt(area / ratio).clamp(max=1.0)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = torch.where((draws[4] < 0.5) & mirror, -width, width)
    theta[:, 1, 1] = height
    # In units where the image reaches from -1 to 1, the centre may move by what the box leaves.
    theta[:, 0, 2] = (1.0 - width) * (2.0 * draws[2] - 1.0)
    theta[:, 1, 2] = (1.0 - height) * (2.0 * draws[3] - 1.0)
    return affine(images, theta, mode="bilinear", padding="border")
