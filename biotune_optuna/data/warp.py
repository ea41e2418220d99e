"""Resampling each image of a batch by its own affine map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["warp"]


def warp(images: Tensor, theta: Tensor, *, mode: str, padding: str) -> Tensor:
    """Resample each image by its own affine map.

    Args:
        images: uint8, shape (B, 3, H, W).
        theta: Maps output to input positions, shape (B, 2, 3), as for
            :func:`torch.nn.functional.affine_grid`.
        mode: ``"bilinear"`` or ``"nearest"``.
        padding: ``"zeros"`` or ``"border"``.
    """
    # The grid is made on the CPU: its arithmetic is then the same for every device.
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(
        images.float(),
        grid.to(images.device),
        mode=mode,
        padding_mode=padding,
        align_corners=False,
    )
    return moved.round_().clamp_(0.0, 255.0).to(torch.uint8)
