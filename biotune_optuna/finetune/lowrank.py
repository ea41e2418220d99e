"""Blocks that change by a low rank only: the idea of LoRA (Hu et al., 2021), without adapters.

A weight W, reshaped to (m, n), is kept at W0 + B A with A of shape (r, n) and B of shape (m, r). Of
the loss's gradient G in W, which autograd gives as for any weight, follow those of the factors by
the chain rule: Bᵀ G in A and G Aᵀ in B. So the network stays as it is: every kind of layer can be
trained so, grouped convolutions too, a cached prefix too, and there is nothing to merge afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

RANK: Final = 8
"""Most rank of a weight's change; more brings nothing in the paper on LoRA (Sec. 7.2)."""


@dataclass(frozen=True, slots=True)
class _Factors:
    weight: torch.nn.Parameter
    base: torch.Tensor  # (m, n), what the weight was
    inner: torch.nn.Parameter  # A, (r, n)
    outer: torch.nn.Parameter  # B, (m, r)


class LowRank:
    """The weights of a run that change by a low rank, each with its factors.

    Args:
        seed: Seed of A's first values; B is zero at first, so that training begins at W0.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._held: list[_Factors] = []

    def groups(self, groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return parameter groups with factors in place of the weights that have them.

        Args:
            groups: Those of `biotune_optuna.Recipe.apply`; one with ``mode`` ``"low-rank"`` holds
                weights to be kept at a low rank. Those too narrow for it train in full.
        """
        found = []
        for group in groups:
            params = group["params"]
            if group.get("mode") == "low-rank":
                params = [factor for weight in params for factor in self._factors(weight)]
            found.append({**group, "params": params})
        return found

    def _factors(self, weight: torch.nn.Parameter) -> list[torch.nn.Parameter]:
        base = weight.detach().clone().reshape(len(weight), -1)
        rank = rank_of(weight.shape)
        if rank == 0:
            return [weight]
        bound = 1.0 / math.sqrt(base.shape[1])  # as a linear layer's own first values
        first = (2.0 * torch.rand(rank, base.shape[1], generator=self._generator) - 1.0) * bound
        inner = torch.nn.Parameter(first.to(base))
        outer = torch.nn.Parameter(base.new_zeros(len(base), rank))
        self._held.append(_Factors(weight, base, inner, outer))
        return [inner, outer]

    @property
    def n_saved(self) -> int:
        """How many numbers fewer train than if the weights were trained in full."""
        return sum(one.weight.numel() - one.inner.numel() - one.outer.numel() for one in self._held)

    def pull(self) -> None:
        """Give the factors their gradients, from those of their weights."""
        for one in self._held:
            if one.weight.grad is None:
                continue
            gradient = one.weight.grad.reshape(one.base.shape)
            one.inner.grad = one.outer.detach().T @ gradient
            one.outer.grad = gradient @ one.inner.detach().T
            one.weight.grad = None

    def clear(self) -> None:
        """Forget the gradients of the weights, as of a step that has to be made again."""
        for one in self._held:
            one.weight.grad = None

    def push(self) -> None:
        """Give the weights their values, from those of their factors."""
        for one in self._held:
            value = torch.addmm(one.base, one.outer.detach(), one.inner.detach())
            one.weight.data.copy_(value.view(one.weight.shape))


def rank_of(shape: tuple[int, ...]) -> int:
    """Return the rank that a weight's change may have: at most 8, and half of its smaller side.

    Args:
        shape: The weight's shape; all but the first side count as one.

    Returns:
        The rank; 0 where the smaller side is 1, so that no lower rank is left.
    """
    narrow = min(shape[0], math.prod(shape[1:]))
    return min(RANK, narrow // 2)
