"""Auto-RGN: each tensor's rate follows its relative gradient norm (Lee et al., 2023)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from biotune_optuna.finetune.hooks import Hooks
from biotune_optuna.methods.base import Method

if TYPE_CHECKING:
    from torch import nn

    from biotune_optuna.finetune.loop import Run
    from biotune_optuna.finetune.trainer import Trainer
    from biotune_optuna.methods.base import Setting

BATCHES: Final = 5
"""Training batches over which a relative gradient norm is averaged."""


class AutoRGN(Method):
    """Auto-RGN (Lee et al., 2023, "Surgical fine-tuning", Sec. 4).

    Before each epoch, gradients of five training batches give each parameter tensor its relative
    gradient norm, the mean of ``||gradient|| / ||value||``; its rate is the base rate times that
    over the largest. Tensors of normalisation layers do not train (their statistics still move).
    The optimiser starts afresh each epoch. The extra passes are charged.
    """

    def hooks(self, trainer: Trainer, setting: Setting) -> Hooks:  # noqa: ARG002 - the same for all
        """Return what sets the rates."""
        return RGNRates()


class RGNRates(Hooks):
    """Sets each tensor's rate before each epoch."""

    def groups(self, run: Run) -> list[dict[str, Any]]:
        """Leave out the tensors of normalisation layers."""
        groups = super().groups(run)
        norms = norm_parameters(run.model)
        for group in groups:
            group["params"] = [p for p in group["params"] if p not in norms]
        for parameter in norms:
            parameter.requires_grad_(False)
        return [group for group in groups if group["params"]]

    def before_epoch(self, run: Run, epoch: int) -> None:  # noqa: ARG002 - every epoch alike
        """Start a new optimiser with the rates of this epoch."""
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
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase

    found: set[nn.Parameter] = set()
    for module in model.modules():
        known = isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm)
        # timm's own norms (LayerNorm2d, RmsNorm, BatchNormAct2d) derive from these or say so
        if known or "norm" in type(module).__name__.lower():
            found.update(module.parameters(recurse=False))
    return found


def relative_gradient_norms(run: Run) -> dict[nn.Parameter, float]:
    """Mean ``||gradient|| / ||value||`` of each training tensor over five training batches.

    The device is waited for once a batch. A tensor of zeros counts 0. Buffers are left as they
    were; the passes are charged to the run.
    """
    import torch

    from biotune_optuna.models.states import copy_into

    training = [p for p in run.model.parameters() if p.requires_grad]
    buffers = {name: b.clone() for name, b in run.model.named_buffers()}
    sums = dict.fromkeys(training, 0.0)
    batches = run.sampler.epoch(run.settings.batch_size)[:BATCHES]
    for idx in batches:
        run.gradients(idx)
        reached = [p for p in training if p.grad is not None]
        if reached:
            values: list[Any] = [p.detach() for p in reached]
            gradients: list[Any] = [p.grad for p in reached]
            norms = (*torch._foreach_norm(gradients), *torch._foreach_norm(values))
            lengths = torch.stack(norms).tolist()
            for p, slope, size in zip(
                reached, lengths[: len(reached)], lengths[len(reached) :], strict=True
            ):
                sums[p] += slope / size / len(batches) if size > 0 else 0.0
    run.model.zero_grad(set_to_none=True)
    copy_into(run.model, buffers)
    return {p: value if math.isfinite(value) else 0.0 for p, value in sums.items()}


METHODS = (AutoRGN(name="auto-rgn", words="Auto-RGN"),)
