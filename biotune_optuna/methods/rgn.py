"""Auto-RGN: rates from relative gradient norms, during a run or as a recipe to start a search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from biotune_optuna.finetune.results import StopTraining
from biotune_optuna.finetune.tactic import Tactic
from biotune_optuna.methods.base import RateMethod, base
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from biotune_optuna.finetune.loop import Run
    from biotune_optuna.finetune.results import RunResult
    from biotune_optuna.finetune.trainer import Trainer
    from biotune_optuna.methods.base import Setting

__all__ = ["AutoRGN", "relative_gradient_norms", "rgn_recipe"]

_RGN_BATCHES: Final = 5


@dataclass(frozen=True, slots=True)
class AutoRGN(RateMethod):
    """Auto-RGN (Lee et al., 2023, "Surgical fine-tuning", Sec. 4).

    Before each epoch, gradients of five training batches give each parameter tensor its relative
    gradient norm, the mean of ``||gradient|| / ||value||``; its rate is the base rate times that
    over the largest. Tensors of normalisation layers do not train (their statistics still move).
    The optimiser starts afresh each epoch. The extra passes are charged.
    """

    def run(
        self,
        trainer: Trainer,
        train_idx: ArrayLike,
        val_idx: ArrayLike | None = None,
        *,
        setting: Setting,
        seed: int,
        **options: Any,
    ) -> RunResult:
        """Trains once; see `Method.run`."""
        full = Recipe.full(trainer.blocks, **base(setting))
        return trainer.fit(full, train_idx, val_idx, seed=seed, tactic=_RGNRates(), **options)


class _RGNRates(Tactic):
    """Sets each tensor's rate before each epoch."""

    def groups(self, run: Run) -> list[dict[str, Any]]:
        groups = run.recipe.apply(run.model)
        norms = norm_parameters(run.model)
        for group in groups:
            group["params"] = [p for p in group["params"] if p not in norms]
        for parameter in norms:
            parameter.requires_grad_(False)
        return [group for group in groups if group["params"]]

    def before_epoch(self, run: Run, epoch: int) -> None:  # noqa: ARG002 - every epoch alike
        rgn = relative_gradient_norms(run)
        largest = max(rgn.values()) or 1.0
        groups: list[dict[str, Any]] = []
        for group in run.optimizer.param_groups:
            decay = group["weight_decay"]
            groups += [
                {"params": [p], "lr": run.recipe.lr * rgn[p] / largest, "weight_decay": decay}
                for p in group["params"]
            ]
        run.use_groups(groups)


def norm_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Parameters of normalisation layers, told by the layers' type."""
    found: set[nn.Parameter] = set()
    for module in model.modules():
        known = isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm)
        # timm's own norms (LayerNorm2d, RmsNorm, BatchNormAct2d) derive from these or say so
        if known or "norm" in type(module).__name__.lower():
            found.update(module.parameters(recurse=False))
    return found


def relative_gradient_norms(run: Run) -> dict[nn.Parameter, float]:
    """Mean ``||gradient|| / ||value||`` of each training tensor over five training batches.

    A tensor of zeros counts 0. Buffers are left as they were; the passes are charged to the run.
    """
    training = [p for p in run.model.parameters() if p.requires_grad]
    buffers = {name: b.clone() for name, b in run.model.named_buffers()}
    sums = dict.fromkeys(training, 0.0)
    batches = run.order.epoch(run.settings.batch_size)[:_RGN_BATCHES]
    for idx in batches:
        run.gradients(idx)
        for p in training:
            size = float(p.detach().norm())
            if p.grad is not None and size > 0:
                sums[p] += float(p.grad.norm()) / size / len(batches)
    run.model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in run.model.named_buffers():
            buffer.copy_(buffers[name])
    return {p: value if math.isfinite(value) else 0.0 for p, value in sums.items()}


def rgn_recipe(
    trainer: Trainer, train_idx: ArrayLike, *, lr: float, seed: int, weight_decay: float = 0.0
) -> Recipe:
    """Return a recipe whose blocks train at their relative gradient norm over the largest one's.

    The norms are those that `AutoRGN` starts with, averaged over each block's tensors: a profile of
    the pre-trained network that can start a search.

    Args:
        trainer: Model and images; its weights are reset.
        train_idx: Positions of training images.
        lr: Base rate: that of the block with the largest norm.
        seed: Seed of head and batches.
        weight_decay: The recipe's weight decay.
    """
    profile = _Profile()
    full = Recipe.full(trainer.blocks, lr=lr, weight_decay=weight_decay)
    trainer.fit(full, train_idx, seed=seed, tactic=profile, epochs=1)
    names = {name: rgn for name, rgn in profile.rgn.items() if rgn > 0}
    means = []
    for block in trainer.blocks:
        found = [names[n] for n in block.parameter_names if n in names]
        # a block of norms alone has no norm of its own and follows the slowest of the others
        means.append(sum(found) / len(found) if found else min(names.values()))
    return Recipe.from_multipliers(
        trainer.blocks, [m / max(means) for m in means], lr=lr, weight_decay=weight_decay
    )


class _Profile(_RGNRates):
    """Looks at the relative gradient norms and ends the run."""

    def __init__(self) -> None:
        self.rgn: dict[str, float] = {}

    def before_epoch(self, run: Run, epoch: int) -> None:  # noqa: ARG002 - there is one
        names = {p: name for name, p in run.model.named_parameters()}
        self.rgn = {names[p]: value for p, value in relative_gradient_norms(run).items()}
        raise StopTraining
