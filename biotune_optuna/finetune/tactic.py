"""What a run is given: a route from images to logits, and what a method does differently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from biotune_optuna.finetune.loop import Run

    Indices = NDArray[np.int64]

__all__ = ["Feed", "Tactic"]


class Feed(Protocol):
    """Takes positions of images to logits, by whatever route a run uses."""

    def train(self, idx: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, C) and targets: labels (n,) or class probabilities (n, C)."""

    def evaluate(self, idx: Indices) -> torch.Tensor:
        """Logits (n, C), without augmentation."""

    def begin_epoch(self, epoch: int) -> None:
        """Told of each epoch, counted from 0, before it starts."""

    @property
    def mixed(self) -> bool:
        """Whether targets are class probabilities."""


class Tactic:
    """What a method may change in a run. This one changes nothing: it trains a recipe.

    Attributes:
        prefix_is_fixed: Whether the recipe's frozen prefix stays frozen, at its pre-trained
            values, throughout the run, so that its outputs may be cached.
    """

    prefix_is_fixed: bool = True

    def groups(self, run: Run) -> list[dict[str, Any]]:
        """Parameter groups that the run starts with; sets ``requires_grad``."""
        return run.recipe.apply(run.model)

    def before_epoch(self, run: Run, epoch: int) -> None:
        """Act before each epoch (counted from 0), in train mode."""

    @property
    def patient_until(self) -> int:
        """Epochs at the beginning in which patience does not count."""
        return 0

    def penalty(self, run: Run) -> torch.Tensor | None:  # noqa: ARG002 - a hook's signature
        """Return a term added to the loss of each step, or None."""
        return None
