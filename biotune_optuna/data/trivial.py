"""TrivialAugment (Müller and Hutter, 2021) on batches, one drawn operation per image.

The operations and their "wide" ranges are those of torchvision's ``TrivialAugmentWide``, which
draws once for a whole batch; here the images of a batch that drew kin operations are worked on
together, each with its own strength. Translations scale with the image: 32 pixels at 224.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from biotune_optuna.data.affine import affine
from biotune_optuna.data.transfer import to_device

if TYPE_CHECKING:
    from torch import Generator, Tensor


_MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_BLENDS = ("brightness", "color", "contrast", "sharpness")
OPERATIONS = ("identity", *_MOVES, *_BLENDS, "posterize", "solarize", "autocontrast", "equalize")
_LEVELS = 31


def trivial_augment(images: Tensor, generator: Generator) -> Tensor:
    """Apply one random operation of random strength to each image.

    Args:
        images: uint8, shape (B, 3, S, S).
        generator: CPU generator that all draws come from.

    Returns:
        A new batch like ``images``.
    """
    operations = torch.randint(len(OPERATIONS), (len(images),), generator=generator)
    strengths = torch.randint(_LEVELS, (len(images),), generator=generator) / (_LEVELS - 1)
    signs = 2.0 * torch.randint(2, (len(images),), generator=generator) - 1.0
    return apply_operations(images, operations, strengths, signs)


def apply_operations(
    images: Tensor, operations: Tensor, strengths: Tensor, signs: Tensor
) -> Tensor:
    """Apply a given operation to each image.

    Args:
        images: uint8, shape (B, 3, S, S).
        operations: Positions in :data:`OPERATIONS`, on the CPU.
        strengths: 0 to 1, on the CPU.
        signs: -1 or 1, the direction of operations that have one, on the CPU.
    """
    from torchvision.transforms.v2 import functional as v2

    result = images.clone()
    for work, *names in (
        (_moved, *_MOVES),
        (_blended, *_BLENDS),
        (_posterized, "posterize"),
        (_solarized, "solarize"),
        (lambda chosen, *_: v2.autocontrast(chosen), "autocontrast"),
        (lambda chosen, *_: v2.equalize(chosen), "equalize"),
    ):
        members = torch.tensor([OPERATIONS.index(name) for name in names])
        chosen = torch.isin(operations, members).nonzero().flatten()
        if len(chosen):
            where = to_device(chosen, images.device)
            result[where] = work(
                images[where], operations[chosen], strengths[chosen], signs[chosen]
            )
    return result


def _moved(images: Tensor, operations: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    amount = strengths * signs
    theta = torch.eye(2, 3).repeat(len(images), 1, 1)
    # Coordinates run from -1 to 1. As in torchvision, shears leave the top left corner in place.
    shear = 0.99 * amount
    rows = operations == 1
    theta[rows, 0, 1] = theta[rows, 0, 2] = shear[rows]
    rows = operations == 2
    theta[rows, 1, 0] = theta[rows, 1, 2] = shear[rows]
    move = 2.0 * 32.0 / 224.0 * amount
    rows = operations == 3
    theta[rows, 0, 2] = move[rows]
    rows = operations == 4
    theta[rows, 1, 2] = move[rows]
    rows = operations == 5
    angle = torch.deg2rad(135.0 * amount[rows])
    theta[rows, 0, 0] = theta[rows, 1, 1] = torch.cos(angle)
    theta[rows, 0, 1] = -torch.sin(angle)
    theta[rows, 1, 0] = torch.sin(angle)
    return affine(images, theta, mode="nearest", padding="zeros")


def _blended(images: Tensor, operations: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    """Mix each image with black, its greys, its mean grey or its blur."""
    floats = images.float()
    operations = to_device(operations, images.device).view(-1, 1, 1, 1)
    grey = (floats * _grey(images.device)).sum(1, keepdim=True).floor()
    other = torch.zeros_like(floats)
    other = torch.where(operations == 7, grey, other)
    other = torch.where(operations == 8, grey.mean((2, 3), keepdim=True), other)
    other = torch.where(operations == 9, _blurred(floats), other)
    factor = to_device(1.0 + 0.99 * strengths * signs, images.device).view(-1, 1, 1, 1)
    return (floats * factor + other * (1.0 - factor)).clamp_(0.0, 255.0).to(torch.uint8)


def _blurred(floats: Tensor) -> Tensor:
    """Return a 3 x 3 blur that leaves the outermost pixels as they are."""
    blurred = floats.clone()
    if min(floats.shape[2:]) > 2:
        weights = _blur(floats.device)
        blurred[:, :, 1:-1, 1:-1] = functional.conv2d(floats, weights, groups=3).round_()
    return blurred


@functools.cache
def _grey(device: torch.device) -> Tensor:
    """Return the share of each colour in grey, (1, 3, 1, 1), on the device."""
    return torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1).to(device)


@functools.cache
def _blur(device: torch.device) -> Tensor:
    """Return the kernel of the blur for each colour, (3, 1, 3, 3), on the device."""
    kernel = torch.ones(3, 3)
    kernel[1, 1] = 5.0
    return (kernel / kernel.sum()).expand(3, 1, 3, 3).to(device)


def _posterized(images: Tensor, _operations: Tensor, strengths: Tensor, _signs: Tensor) -> Tensor:
    dropped = (strengths * 6.0).round().to(torch.uint8)  # 8 bits down to 2
    mask = (255 >> dropped.int() << dropped.int()).to(torch.uint8)
    return images & to_device(mask, images.device).view(-1, 1, 1, 1)


def _solarized(images: Tensor, _operations: Tensor, strengths: Tensor, _signs: Tensor) -> Tensor:
    threshold = to_device(255.0 * (1.0 - strengths), images.device).view(-1, 1, 1, 1)
    return torch.where(images >= threshold, 255 - images, images)
