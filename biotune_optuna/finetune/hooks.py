"""What a method may change during a run. PyTorch is not imported: methods are named without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from biotune_optuna.finetune.loop import Run


class Hooks:
    """Called by the training loop; these change nothing, so that a run trains its recipe.

    Attributes:
        prefix_is_fixed: Whether the recipe's frozen prefix stays frozen, at its pre-trained
            values, throughout the run, so that its outputs may be cached.
        patient_until: Epochs at the beginning in which patience does not count.
    """

    prefix_is_fixed: bool = True
    patient_until: int = 0

    def groups(self, run: Run) -> list[dict[str, Any]]:
        """Return the parameter groups that the run starts with; sets ``requires_grad``."""
        return run.recipe.apply(run.model)

    def before_epoch(self, run: Run, epoch: int) -> None:
        """Act before each epoch (counted from 0), in train mode."""

    def penalty(self, run: Run) -> torch.Tensor | None:  # noqa: ARG002 - a hook's signature
        """Return a term added to the loss of each step, or None."""
        return None
