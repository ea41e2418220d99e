"""LP-FT: a linear probe, then full fine-tuning from its head (Kumar et al., 2022)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from biotune_optuna.finetune.hooks import Hooks
from biotune_optuna.methods.base import Method, lr_and_decay
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from biotune_optuna.finetune.loop import Run
    from biotune_optuna.finetune.results import RunResult
    from biotune_optuna.methods.base import Setting, Task

PROBE_RATE: Final = 1e-2
"""The head's rate in the first phase: a probe converges, so its rate matters little."""


class LinearProbeThenFull(Method):
    """LP-FT (Kumar et al., 2022): a linear probe, then full fine-tuning from its head.

    The probe trains at `PROBE_RATE` for the settings' epochs, or until patience ends it, and gives
    its best head; both phases are charged, and the epochs and the score are the second phase's. A
    callback is told of the epochs of both, and may end the run in either.
    """

    def train(self, task: Task, setting: Setting) -> RunResult:
        """Train the probe, then everything."""
        from biotune_optuna.finetune.results import charge
        from biotune_optuna.models.states import all_tensors

        trainer, head = task.trainer, task.trainer.blocks[-1]
        probe = Recipe.linear_probe(trainer.blocks, **{**lr_and_decay(setting), "lr": PROBE_RATE})
        first = dataclasses.replace(task, epochs=None, keep_weights=True).fit(probe)
        if first.stopped == "callback":
            return first
        tensors = all_tensors(trainer.model)
        names = (*head.parameter_names, *head.buffer_names)
        found = {name: tensors[name].detach().clone() for name in names}
        return charge(task.fit(self.recipe(trainer.blocks, setting), _FromHead(found)), first)


class _FromHead(Hooks):
    """Starts from a head that is trained already."""

    def __init__(self, head: Mapping[str, torch.Tensor]) -> None:
        self._head = head

    def groups(self, run: Run) -> list[dict[str, Any]]:
        from biotune_optuna.models.states import copy_into

        copy_into(run.model, self._head)
        return super().groups(run)


METHODS = (
    LinearProbeThenFull(
        name="lp-ft", words="linear probe, then full fine-tuning", equal_budget=True
    ),
)
