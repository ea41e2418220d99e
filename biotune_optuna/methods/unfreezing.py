"""Gradual unfreezing: blocks begin to train one after another (Howard and Ruder, 2018)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from biotune_optuna.finetune.hooks import Hooks
from biotune_optuna.methods.base import Method

if TYPE_CHECKING:
    from biotune_optuna.finetune.loop import Run
    from biotune_optuna.finetune.trainer import Trainer
    from biotune_optuna.methods.base import Setting
    from biotune_optuna.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Unfreezing(Method):
    """Gradual unfreezing (ULMFiT: Howard and Ruder, 2018, Sec. 3.3).

    Phase k (from 0) lasts one epoch and trains the head and k more blocks, taken from the output
    side or from the input side; then all train to the end. Blocks that join get a fresh optimiser
    state, the others keep theirs; the schedule runs on. Where there are more phases than epochs,
    several blocks join at once, so that all train in the last epoch at the latest. Patience counts
    from the epoch in which all train. A setting may give ``phase``, the epochs of a phase.

    Attributes:
        from_input: Whether blocks join from the input side (the paper's G-FL) instead.
    """

    from_input: bool = False

    def hooks(self, trainer: Trainer, setting: Setting) -> Hooks:
        """Return what goes from phase to phase."""
        phase = max(1, int(setting.get("phase", 1)))
        phases = math.ceil(trainer.settings.epochs / phase)
        return Phases(self.recipes(self.recipe(trainer.blocks, setting), phases), phase)

    def recipes(self, full: Recipe, phases: int) -> list[Recipe]:
        """Return the recipe of each phase, the last one full.

        Args:
            full: Full fine-tuning.
            phases: How many phases there is time for.
        """
        if phases == 1:
            return [full]
        others = len(full.blocks) - 1
        at_once = max(1, math.ceil(others / (phases - 1)))
        found = []
        for count in [*range(0, others, at_once), others]:
            joined = range(count) if self.from_input else range(others - count, others)
            blocks = [
                dataclasses.replace(b, multiplier=float(i in joined or i == others))
                for i, b in enumerate(full.blocks)
            ]
            found.append(dataclasses.replace(full, blocks=tuple(blocks)))
        return found


class Phases(Hooks):
    """Goes from recipe to recipe.

    Args:
        recipes: The recipe of each phase.
        phase: Epochs of a phase.
    """

    prefix_is_fixed = False

    def __init__(self, recipes: list[Recipe], phase: int) -> None:
        self._recipes = recipes
        self._phase = phase
        self.patient_until = (len(recipes) - 1) * phase

    def groups(self, run: Run) -> list[dict[str, Any]]:
        """Start with the first phase's recipe."""
        run.recipe = self._recipes[0]
        return super().groups(run)

    def before_epoch(self, run: Run, epoch: int) -> None:
        """Take the next recipe where a phase begins."""
        phase, rest = divmod(epoch, self._phase)
        if rest == 0 and 0 < phase < len(self._recipes):
            run.use_recipe(self._recipes[phase])


METHODS = (
    Unfreezing(name="unfreeze-last-first", words="gradual unfreezing from the head"),
    Unfreezing(
        name="unfreeze-first-last", words="gradual unfreezing from the input", from_input=True
    ),
)
