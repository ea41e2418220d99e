"""BioTune's rivals behind one protocol, each usable alone.

    method = METHODS["layer-decay"]
    for setting in method.settings():
        result = method.run(trainer, train_idx, val_idx, setting=setting, seed=0)

All start from the same pre-trained weights and a head drawn from the run's seed, and each offers
five settings to choose from on the same validation images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from biotune_optuna.errors import BioTuneError
from biotune_optuna.methods.base import (
    RATES,
    LinearProbeThenFull,
    Setting,
    StartingPoint,
    Unfreezing,
    base,
)
from biotune_optuna.methods.lora import LoRA
from biotune_optuna.methods.rgn import AutoRGN
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike

    from biotune_optuna.finetune.results import EpochRecord, RunResult
    from biotune_optuna.finetune.trainer import Trainer
    from biotune_optuna.recipe import BlockLike

__all__ = ["METHODS", "RATES", "Method", "Setting", "get_method"]


class Method(Protocol):
    """A way to fine-tune."""

    @property
    def name(self) -> str:
        """The name users type."""

    def settings(self) -> list[dict[str, float]]:
        """Return the five settings to choose from."""

    def recipe(self, blocks: Sequence[BlockLike], setting: Setting) -> Recipe | None:
        """Return the recipe that trains as the method does, where there is one."""

    def run(
        self,
        trainer: Trainer,
        train_idx: ArrayLike,
        val_idx: ArrayLike | None = None,
        *,
        setting: Setting,
        seed: int,
        epochs: int | None = None,
        on_epoch: Callable[[EpochRecord], object] | None = None,
        keep_weights: bool = False,
    ) -> RunResult:
        """Trains once; arguments and cost as in `Trainer.fit`, all phases charged."""


@dataclass(frozen=True, slots=True)
class RecipeMethod:
    """A method that is no more than a recipe.

    Attributes:
        name: The name users type.
        make: Builds the recipe from blocks and setting.
        choices: The settings to choose from.
    """

    name: str
    make: Callable[[Sequence[BlockLike], Setting], Recipe]
    choices: tuple[tuple[tuple[str, float], ...], ...] = tuple((("lr", lr),) for lr in RATES)

    def settings(self) -> list[dict[str, float]]:
        """Return the five settings to choose from."""
        return [dict(choice) for choice in self.choices]

    def recipe(self, blocks: Sequence[BlockLike], setting: Setting) -> Recipe:
        """Return the recipe of a setting."""
        return self.make(blocks, setting)

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
        """Trains the recipe once; see `Method.run`."""
        recipe = self.recipe(trainer.blocks, setting)
        return trainer.fit(recipe, train_idx, val_idx, seed=seed, **options)


METHODS: Final[dict[str, Method]] = {
    method.name: method
    for method in (
        RecipeMethod("full", lambda blocks, s: Recipe.full(blocks, **base(s))),
        RecipeMethod("linear-probe", lambda blocks, s: Recipe.linear_probe(blocks, **base(s))),
        RecipeMethod(
            "layer-decay",
            lambda blocks, s: Recipe.layer_decay(blocks, decay=s["decay"], **base(s)),
            tuple(
                (("lr", lr), ("decay", decay))
                for lr, decay in (
                    (1e-3, 0.75),
                    (3e-3, 0.65),
                    (3e-3, 0.75),
                    (3e-3, 0.9),
                    (1e-2, 0.75),
                )
            ),
        ),
        Unfreezing("unfreeze-last-first"),
        Unfreezing("unfreeze-first-last", from_input=True),
        LinearProbeThenFull("lp-ft"),
        StartingPoint("l2-sp", norm=2, alpha=0.1, beta=0.01),
        StartingPoint("l1-sp", norm=1, alpha=1e-3, beta=0.01),
        AutoRGN("auto-rgn"),
        LoRA("lora"),
    )
}
"""The methods by name."""


def get_method(name: str) -> Method:
    """Look a method up.

    Raises:
        BioTuneError: If there is none of that name.
    """
    try:
        return METHODS[name]
    except KeyError:
        raise BioTuneError(f"method {name!r} is not one of {', '.join(METHODS)}") from None
