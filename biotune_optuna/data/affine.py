"""Resampling each image of a batch by its own affine map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from biotune_optuna.data.transfer import to_device

if TYPE_CHECKING:
    from torch import Tensor


def affine(images: Tensor, theta: Tensor, *, mode: str, padding: str) -> Tensor:
    """Resample each image by its own affine map.

    Args:
        images: uint8, shape (B, 3, H, W).
        theta: Maps output to input positions, shape (B, 2, 3), as for
            :func:`torch.nn.functional.affine_grid`.
        mode: ``"bilinear"`` or ``"nearest"``.
        padding: ``"zeros"`` or ``"border"``.
    """
    moved = functional.grid_sample(
        images.contiguous().float(),  # channels last is sampled at half the speed on a CPU
        _grid(to_device(theta, images.device), images.shape[2], images.shape[3]),
        mode=mode,
        padding_mode=padding,
        align_corners=False,
    )
    return moved.round_().clamp_(0.0, 255.0).to(torch.uint8)


def _grid(theta: Tensor, height: int, width: int) -> Tensor:
    """``affine_grid`` as a broadcast sum, which is several times as fast on a CPU."""
    x = (2.0 * torch.arange(width, device=theta.device) + 1.0) / width - 1.0
    y = (2.0 * torch.arange(height, device=theta.device) + 1.0) / height - 1.0
    grid = theta.new_empty(len(theta), height, width, 2)
    for axis in range(2):
        along, down, shift = theta[:, axis, :, None].unbind(1)
        torch.add((along * x)[:, None, :], (down * y + shift)[:, :, None], out=grid[..., axis])
    return grid
