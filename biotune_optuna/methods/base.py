"""What a rival is: a recipe, hooks, and the words and settings by which it is named and tuned.

PyTorch is imported by what trains, not by this module: help and plans name methods without it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from biotune_optuna.errors import ModelError
from biotune_optuna.finetune.hooks import Hooks
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from biotune_optuna.finetune.results import EpochRecord, RunResult
    from biotune_optuna.finetune.trainer import Trainer
    from biotune_optuna.recipe import BlockLike


Setting = Mapping[str, float]
"""What a method may be tuned by, JSON-ready: ``lr``; what the method has of its own, such as
``decay``; and, where a caller adds it, ``weight_decay`` (default 0)."""

RATES: Final = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""The base rates that a method tries, the same for all: AdamW's usual 1e-3 and half decades around
it. Some rivals would have liked higher ones:
docs/benchmarks/first_evidence.md."""


def lr_and_decay(setting: Setting) -> dict[str, float]:
    """``lr`` and ``weight_decay`` of a setting, as recipes take them."""
    return {"lr": setting["lr"], "weight_decay": setting.get("weight_decay", 0.0)}


@dataclass(frozen=True, slots=True)
class Task:
    """What one run is asked for, by whatever method; see `Trainer.fit`."""

    trainer: Trainer
    train_idx: ArrayLike
    val_idx: ArrayLike | None
    seed: int
    epochs: int | None
    on_epoch: Callable[[EpochRecord], object] | None
    keep_weights: bool

    def fit(self, recipe: Recipe, hooks: Hooks | None = None) -> RunResult:
        """Train a recipe from the pre-trained weights."""
        return self.trainer.fit(
            recipe,
            self.train_idx,
            self.val_idx,
            seed=self.seed,
            on_epoch=self.on_epoch,
            epochs=self.epochs,
            keep_weights=self.keep_weights,
            hooks=hooks,
        )


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to fine-tune, with all that the program has to know of it.

    This one trains every block at one rate. A method of another kind is a subclass that gives
    another `recipe`, or `hooks` for what happens during a run, or more than one training in
    `train`. All start from the same pre-trained weights and a head drawn from the run's seed, and
    each offers a few settings to choose from on the same validation images::

        method = get_method("layer-decay")
        for setting in method.settings():
            result = method.run(trainer, train_idx, val_idx, setting=setting, seed=0)

    Attributes:
        name: The name users type.
        words: What a reader calls it: "full fine-tuning".
        equal_budget: Whether a comparison gives it the search's total budget as well.
        ranges: Bounds of its own settings, beside rate and weight decay, in which such a budget is
            searched.
        in_confirmation: Whether a confirmation may train it beside the search's recipes and choose
            it; it must be no more than its recipe, and tuned by its rate alone or by nothing.
        package: Optional package that it imports; empty where it needs none.
        install: What installs that package by pip.
    """

    name: str
    words: str
    equal_budget: bool = False
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    in_confirmation: bool = False
    package: str = ""
    install: str = ""

    def settings(self) -> list[dict[str, float]]:
        """Return the settings to choose from: one for each of `RATES`."""
        return [{"lr": lr} for lr in RATES]

    @property
    def is_tuned(self) -> bool:
        """Whether there is more than one setting to choose from."""
        return len(self.settings()) > 1

    def recipe(self, blocks: Sequence[BlockLike], setting: Setting) -> Recipe:
        """Return the recipe that a run begins with: full fine-tuning."""
        return Recipe.full(blocks, **lr_and_decay(setting))

    def hooks(self, trainer: Trainer, setting: Setting) -> Hooks:  # noqa: ARG002 - for subclasses
        """Return what one run does besides: nothing."""
        return Hooks()

    def train(self, task: Task, setting: Setting) -> RunResult:
        """Train once; the trainer's model is the tuned one afterwards."""
        trainer = task.trainer
        return task.fit(self.recipe(trainer.blocks, setting), self.hooks(trainer, setting))

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
        """Train once; arguments and cost as in `Trainer.fit`, all phases charged.

        Raises:
            ModelError: If the method needs a package that is missing, or cannot train this model.
        """
        from biotune_optuna.finetune.device import ONE_AT_A_TIME

        self.check_package()
        task = Task(trainer, train_idx, val_idx, seed, epochs, on_epoch, keep_weights)
        with ONE_AT_A_TIME:  # else another run may change the weights between two phases
            return self.train(task, setting)

    @property
    def can_run(self) -> bool:
        """Whether the package that it needs is installed."""
        return not self.package or importlib.util.find_spec(self.package) is not None

    def check_package(self) -> None:
        """Refuse a method whose package is not installed.

        Raises:
            ModelError: If it is missing.
        """
        if not self.can_run:
            raise ModelError(
                f"method {self.name!r} needs the package {self.package}: pip install {self.install}"
            )
