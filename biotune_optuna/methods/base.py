"""Rival methods that change something during a run, each from its own paper's definition."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from biotune_optuna.finetune.device import ONE_AT_A_TIME
from biotune_optuna.finetune.tactic import Tactic
from biotune_optuna.models.blocks import output_layers
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike
    from torch import nn

    from biotune_optuna.finetune.loop import Run
    from biotune_optuna.finetune.results import RunResult
    from biotune_optuna.finetune.trainer import Trainer
    from biotune_optuna.recipe import BlockLike

__all__ = [
    "RATES",
    "LinearProbeThenFull",
    "Setting",
    "StartingPoint",
    "Unfreezing",
    "base",
]

Setting = Mapping[str, float]
"""What a method may be tuned by, JSON-ready: ``lr``; ``decay`` for layer-decay; and, where a caller
adds it, ``weight_decay`` (default 0)."""

RATES: Final = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""The base rates that every method but layer-decay tries."""

PROBE_RATE: Final = 1e-2
"""The head's rate in the first phase of lp-ft: a probe converges, so its rate matters little."""


def base(setting: Setting) -> dict[str, float]:
    """``lr`` and ``weight_decay`` of a setting, as recipes take them."""
    return {"lr": setting["lr"], "weight_decay": setting.get("weight_decay", 0.0)}


@dataclass(frozen=True, slots=True)
class RateMethod:
    """A method tuned by its base rate alone, with no recipe of its own.

    Attributes:
        name: The name users type.
    """

    name: str

    def settings(self) -> list[dict[str, float]]:
        """One setting for each of `RATES`."""
        return [{"lr": lr} for lr in RATES]

    def recipe(self, blocks: Sequence[BlockLike], setting: Setting) -> Recipe | None:  # noqa: ARG002
        """None: no recipe trains as this method does."""
        return None


# -- gradual unfreezing ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unfreezing(RateMethod):
    """Gradual unfreezing (ULMFiT: Howard and Ruder, 2018, Sec. 3.3).

    Phase k (from 0) lasts one epoch and trains the head and k more blocks, taken from the output
    side or from the input side; then all train to the end. Blocks that join get a fresh optimiser
    state, the others keep theirs; the schedule runs on. Where there are more phases than epochs,
    several blocks join at once, so that all train in the last epoch at the latest. Patience counts
    from the epoch in which all train. A setting may give ``phase``, the epochs of a phase.

    Attributes:
        name: The name users type.
        from_input: Whether blocks join from the input side (the paper's G-FL) instead.
    """

    from_input: bool = False

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
        phase = max(1, int(setting.get("phase", 1)))
        phases = math.ceil(trainer.settings.epochs / phase)
        tactic = _Phases(self.recipes(full, phases), phase)
        return trainer.fit(full, train_idx, val_idx, seed=seed, tactic=tactic, **options)

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


class _Phases(Tactic):
    """Goes from recipe to recipe."""

    prefix_is_fixed = False

    def __init__(self, recipes: list[Recipe], phase: int) -> None:
        self._recipes = recipes
        self._phase = phase

    def groups(self, run: Run) -> list[dict[str, Any]]:
        run.recipe = self._recipes[0]
        return run.recipe.apply(run.model)

    def before_epoch(self, run: Run, epoch: int) -> None:
        phase, rest = divmod(epoch, self._phase)
        if rest == 0 and 0 < phase < len(self._recipes):
            run.use_recipe(self._recipes[phase])

    @property
    def patient_until(self) -> int:
        return (len(self._recipes) - 1) * self._phase


# -- linear probe, then full -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinearProbeThenFull(RateMethod):
    """LP-FT (Kumar et al., 2022): a linear probe, then full fine-tuning from its head.

    The probe trains at `PROBE_RATE` for the settings' epochs, or until patience ends it, and gives
    its best head; both phases are charged, and the epochs and the score are the second phase's. A
    callback is told of the epochs of both, and may end the run in either.
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
        probe = Recipe.linear_probe(
            trainer.blocks, lr=PROBE_RATE, weight_decay=setting.get("weight_decay", 0.0)
        )
        on_epoch = options.get("on_epoch")
        with ONE_AT_A_TIME:  # else another run may change the head in between
            first = trainer.fit(
                probe, train_idx, val_idx, seed=seed, keep_weights=True, on_epoch=on_epoch
            )
            if first.stopped == "callback":
                return first
            names = (*trainer.blocks[-1].parameter_names, *trainer.blocks[-1].buffer_names)
            state = {
                **dict(trainer.model.named_parameters()),
                **dict(trainer.model.named_buffers()),
            }
            head = {name: state[name].detach().clone() for name in names}
            full = Recipe.full(trainer.blocks, **base(setting))
            second = trainer.fit(
                full, train_idx, val_idx, seed=seed, tactic=_FromHead(head), **options
            )
        return charge(second, first)


class _FromHead(Tactic):
    """Starts from a head that is trained already."""

    def __init__(self, head: Mapping[str, torch.Tensor]) -> None:
        self._head = head

    def groups(self, run: Run) -> list[dict[str, Any]]:
        state = {**dict(run.model.named_parameters()), **dict(run.model.named_buffers())}
        with torch.no_grad():
            for name, value in self._head.items():
                state[name].copy_(value)
        return run.recipe.apply(run.model)


def charge(result: RunResult, earlier: RunResult) -> RunResult:
    """Add an earlier phase's cost to a result, and returns it."""
    result.seconds += earlier.seconds
    result.images_forward += earlier.images_forward
    result.images_backward += earlier.images_backward
    result.cache_hits += earlier.cache_hits
    result.cache_misses += earlier.cache_misses
    result.peak_memory_mb = max(result.peak_memory_mb, earlier.peak_memory_mb)
    return result


# -- starting point as reference -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartingPoint(RateMethod):
    """L2-SP and L1-SP (Xuhong et al., 2018, Sec. 3): pulled towards the pre-trained weights.

    Besides any weight decay of the setting, L2-SP adds ``alpha / 2 * ||w - w0||_2^2``, L1-SP
    ``alpha * ||w - w0||_1``, over weights that were pre-trained, and both add
    ``beta / 2 * ||w||_2^2`` over the new head's. Weights are tensors of two or more dimensions:
    norms and biases are free.

    Attributes:
        name: The name users type.
        norm: 1 or 2.
        alpha: Strength of the pull.
        beta: Weight decay of the head.
    """

    norm: int = 2
    alpha: float = 0.1
    beta: float = 0.01

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
        tactic = _Pull(self.norm, self.alpha, self.beta)
        return trainer.fit(full, train_idx, val_idx, seed=seed, tactic=tactic, **options)


class _Pull(Tactic):
    """Adds the penalty to each step's loss."""

    def __init__(self, norm: int, alpha: float, beta: float) -> None:
        self._norm, self._alpha, self._beta = norm, alpha, beta
        self._held: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._head: list[nn.Parameter] = []

    def groups(self, run: Run) -> list[dict[str, Any]]:
        new = new_parameters(run.model, run.recipe)
        weights = {n: p for n, p in run.model.named_parameters() if p.ndim > 1}
        self._head = [p for n, p in weights.items() if n in new]
        self._held = [(p, p.detach().clone()) for n, p in weights.items() if n not in new]
        return run.recipe.apply(run.model)

    def penalty(self, run: Run) -> torch.Tensor:
        total = torch.zeros((), device=run.device)
        for weight, start in self._held:
            moved = weight - start
            if self._norm == 2:
                total = total + self._alpha / 2 * moved.square().sum()
            else:
                total = total + self._alpha * moved.abs().sum()
        for weight in self._head:
            total = total + self._beta / 2 * weight.square().sum()
        return total


def new_parameters(model: nn.Module, recipe: Recipe) -> set[str]:
    """Names of parameters that are drawn anew, not pre-trained: the classifier's output layers."""
    paths = tuple(f"{path}." for path in output_layers(model))
    if not paths:
        return set(recipe.blocks[-1].parameter_names)
    return {name for name, _ in model.named_parameters() if name.startswith(paths)}
