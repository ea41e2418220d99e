"""Penalties on the distance of weights from where they began, in a few kernels for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def pull(
    weights: Sequence[torch.Tensor], starts: Sequence[torch.Tensor], *, norm: int, strength: float
) -> torch.Tensor:
    """Return ``strength / 2 * sum (w - s)^2`` (norm 2) or ``strength * sum |w - s|`` (norm 1).

    Written tensor by tensor it would take a GPU several kernels a tensor; this takes a few, and one
    a tensor to add up its gradients.

    Args:
        weights: What is pulled.
        starts: To where, without gradients.
        norm: 1 or 2.
        strength: Factor of the penalty.
    """
    found: torch.Tensor = _Pull.apply(norm, strength, list(starts), *weights)
    return found


class _Pull(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, norm: int, strength: float, starts: list[torch.Tensor], *weights: torch.Tensor
    ) -> torch.Tensor:
        moved = torch._foreach_sub(list(weights), starts)
        ctx.norm, ctx.strength = norm, strength
        ctx.save_for_backward(*moved)
        sizes = torch.stack(list(torch._foreach_norm(moved, norm)))
        return strength / 2 * sizes.square().sum() if norm == 2 else strength * sizes.sum()

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        slope = list(ctx.saved_tensors)
        if ctx.norm == 1:
            slope = list(torch._foreach_sign(slope))
        return None, None, None, *torch._foreach_mul(slope, outer[0] * ctx.strength)
