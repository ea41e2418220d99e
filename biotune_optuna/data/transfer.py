"""Tensors on their way to a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, without waiting for it where that is safe.

    CUDA puts pageable memory aside before the call returns; Metal reads it later, when a temporary
    tensor's memory may hold something else.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
