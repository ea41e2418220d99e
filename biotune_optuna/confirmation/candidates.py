"""Recipes up for confirmation, and which of them wins."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from biotune_optuna.finetune.results import epochs_of_final_run, standard_error
from biotune_optuna.sampler.ranking import rank_finished
from biotune_optuna.study.objective import recipe_summary

if TYPE_CHECKING:
    from collections.abc import Collection

    from optuna.trial import FrozenTrial

    from biotune_optuna.recipe import Recipe
    from biotune_optuna.study.study import TuningStudy

__all__ = ["Candidate", "choose", "leading"]


@dataclass
class Candidate:
    """A recipe up for confirmation and what is known of it.

    Attributes:
        name: ``"trial 12"`` or the rival's name.
        method: ``"biotune"``, ``"full"`` or ``"linear-probe"``.
        recipe: The recipe.
        trial: Trial number, None for a rival.
        search_value: Its value in the search (rivals: the best of the rates tried).
        search_stderr: Standard error of that value, where it is a mean.
        grid: Rates tried and their values (rivals only).
        scores: Validation scores on the fresh seeds.
        best_epochs: Best epoch of each of those runs, counted from 1.
        trainable_pct: Share of the parameters that train, in percent.
        forward: Image passes forward in the confirmation runs.
        backward: Image passes backward in the confirmation runs.
        seconds: Wall time of the confirmation runs.
    """

    name: str
    method: str
    recipe: Recipe
    trial: int | None = None
    search_value: float = math.nan
    search_stderr: float | None = None
    grid: list[dict[str, float]] | None = None
    scores: list[float] = field(default_factory=list)
    best_epochs: list[int] = field(default_factory=list)
    trainable_pct: float = 0.0
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Mean confirmed score."""
        return float(np.mean(self.scores))

    @property
    def stderr(self) -> float:
        """Standard error of the confirmed mean; 0 with one run."""
        return standard_error(self.scores)

    @property
    def backward_cost(self) -> float:
        """Image passes backward times the share of blocks that train."""
        return self.backward * len(self.recipe.trainable) / len(self.recipe.blocks)

    @property
    def final_epochs(self) -> int:
        """Median best epoch, the length of the final training; at least 1."""
        return epochs_of_final_run(self.best_epochs)

    def to_dict(self) -> dict[str, Any]:
        """Return the candidate as JSON-ready data."""
        data = asdict(self)
        return data | {
            "recipe": recipe_summary(self.recipe).to_dict(),
            "describe": self.recipe.describe(),
            "lr": self.recipe.lr,
            "mean": self.mean,
            "stderr": self.stderr,
            "backward_cost": self.backward_cost,
            "final_epochs": self.final_epochs,
        }


def leading(
    study: TuningStudy, most: int, *, among: Collection[int] | None = None
) -> list[tuple[FrozenTrial, Recipe]]:
    """Return the search's best recipes by model and by value in turn, different ones.

    Args:
        study: The study.
        most: How many, at most.
        among: Numbers of the trials to take them from; None takes all that are COMPLETE.
    """
    space = study.setup.space
    trials = {trial.number: trial for trial in study.study.get_trials(deepcopy=False)}
    by_model, by_value = (
        [
            number
            for number in rank_finished(study.study, space, smooth=smooth)
            if (number in trials if among is None else number in among)
        ]
        for smooth in (True, False)
    )
    found: dict[tuple[Any, ...], tuple[FrozenTrial, Recipe]] = {}
    for number in (n for pair in zip(by_model, by_value, strict=False) for n in pair):
        recipe = space.genome(trials[number].params).decode()
        found.setdefault(recipe.key(), (trials[number], recipe))
    return list(found.values())[:most]


def choose(
    everyone: list[Candidate], *, tolerance: float = 1.0
) -> tuple[Candidate, list[Candidate], str]:
    """Chooses the winner by confirmed mean; among equals the cheapest.

    Equals are those within ``tolerance`` standard errors of the best. Cheapest is the one with the
    fewest image passes through blocks that train, then the fewest trainable parameters.

    Args:
        everyone: Confirmed candidates and rivals.
        tolerance: Standard errors of the best mean; 0 leaves only exact ties.

    Returns:
        The winner, all candidates that cannot be told from the best, and the reason in words.
    """
    best = max(everyone, key=lambda c: c.mean)
    plateau = [c for c in everyone if c.mean >= best.mean - tolerance * best.stderr]
    winner = min(plateau, key=lambda c: (c.backward_cost, c.trainable_pct))
    within = "one standard error" if tolerance == 1 else f"{tolerance:g} standard errors"
    if tolerance == 0:
        why = f"{winner.name} has the best mean on fresh seeds"
    elif winner is best and len(plateau) == 1:
        why = (
            f"{best.name} has the best mean on fresh seeds, by more than {within}"
            if len(best.scores) > 1
            else f"{best.name} has the best score on one fresh seed, whose luck is unknown"
        )
    elif winner is best:
        why = f"{best.name} has the best mean on fresh seeds and is the cheapest within {within} "
        why += "of it"
    else:
        why = f"{winner.name} is within {within} of the best ({best.name}) and cheaper"
    return winner, plateau, why
