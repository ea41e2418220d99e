"""L2-SP and L1-SP: the pre-trained weights as reference (Li, Grandvalet and Davoine, 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from biotune_optuna.finetune.hooks import Hooks
from biotune_optuna.methods.base import Method

if TYPE_CHECKING:
    import torch
    from torch import nn

    from biotune_optuna.finetune.loop import Run
    from biotune_optuna.finetune.trainer import Trainer
    from biotune_optuna.methods.base import Setting
    from biotune_optuna.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class StartingPoint(Method):
    """L2-SP and L1-SP (Li et al., 2018, Sec. 3): pulled towards the pre-trained weights.

    Besides any weight decay of the setting, L2-SP adds ``alpha / 2 * ||w - w0||_2^2``, L1-SP
    ``alpha * ||w - w0||_1``, over weights that were pre-trained, and both add
    ``beta / 2 * ||w||_2^2`` over the new head's. Weights are tensors of two or more dimensions:
    norms and biases are free.

    Attributes:
        norm: 1 or 2.
        alpha: Strength of the pull.
        beta: Weight decay of the head.
    """

    norm: int
    alpha: float
    beta: float = 0.01

    def hooks(self, trainer: Trainer, setting: Setting) -> Hooks:  # noqa: ARG002 - the same for all
        """Return what pulls."""
        return Pull(self.norm, self.alpha, self.beta)


class Pull(Hooks):
    """Adds the penalty to each step's loss; arguments as in `StartingPoint`."""

    def __init__(self, norm: int, alpha: float, beta: float) -> None:
        self._norm, self._alpha, self._beta = norm, alpha, beta
        self._held: list[nn.Parameter] = []
        self._starts: list[torch.Tensor] = []
        self._head: list[nn.Parameter] = []
        self._zeros: list[torch.Tensor] = []

    def groups(self, run: Run) -> list[dict[str, Any]]:
        """Keep the weights that the run starts from."""
        import torch

        new = new_parameters(run.model, run.recipe)
        weights = {n: p for n, p in run.model.named_parameters() if p.ndim > 1}
        self._head = [p for n, p in weights.items() if n in new]
        self._held = [p for n, p in weights.items() if n not in new]
        self._starts = [p.detach().clone() for p in self._held]
        self._zeros = [torch.zeros_like(p) for p in self._head]
        return super().groups(run)

    def penalty(self, run: Run) -> torch.Tensor | None:  # noqa: ARG002 - a hook's signature
        """Return the penalty of the weights as they are."""
        from biotune_optuna.finetune.pull import pull

        total: torch.Tensor | None = None
        for weights, starts, norm, strength in (
            (self._held, self._starts, self._norm, self._alpha),
            (self._head, self._zeros, 2, self._beta),
        ):
            if weights:
                part = pull(weights, starts, norm=norm, strength=strength)
                total = part if total is None else total + part
        return total


def new_parameters(model: nn.Module, recipe: Recipe) -> set[str]:
    """Names of parameters that are drawn anew, not pre-trained: the classifier's output layers."""
    from biotune_optuna.models.blocks import output_layers

    paths = tuple(f"{path}." for path in output_layers(model))
    if not paths:
        return set(recipe.blocks[-1].parameter_names)
    return {name for name, _ in model.named_parameters() if name.startswith(paths)}


METHODS = (
    # one strength for all data, as rivals are tuned by their rate; L1's pull does not weaken as the
    # distance shrinks, so it is a hundredth of L2's
    StartingPoint(name="l2-sp", words="L2-SP", norm=2, alpha=0.1),
    StartingPoint(name="l1-sp", words="L1-SP", norm=1, alpha=1e-3),
)
