"""Which recipes of a search are confirmed, and which contender wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from biotune_optuna.sampler.ranking import rank_finished

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from biotune_optuna.confirmation.record import Contender
    from biotune_optuna.recipe import Recipe
    from biotune_optuna.study.study import TuningStudy


def leading(
    study: TuningStudy, most: int, finished: Sequence[FrozenTrial]
) -> list[tuple[FrozenTrial, Recipe]]:
    """Return the search's best recipes by model and by value in turn, different ones.

    Args:
        study: The study.
        most: How many, at most.
        finished: The COMPLETE trials to take them from.
    """
    space = study.setup.space
    trials = {trial.number: trial for trial in finished}
    by_model, by_value = (
        [n for n in rank_finished(study.study, space, smooth=smooth) if n in trials]
        for smooth in (True, False)
    )
    found: dict[tuple[Any, ...], tuple[FrozenTrial, Recipe]] = {}
    for number in (n for pair in zip(by_model, by_value, strict=False) for n in pair):
        recipe = space.genome(trials[number].params).decode()
        found.setdefault(recipe.key(), (trials[number], recipe))
    return list(found.values())[:most]


def choose(
    everyone: Sequence[Contender], *, tolerance: float = 1.0
) -> tuple[Contender, list[Contender], str]:
    """Choose the winner by confirmed mean; among equals the cheapest.

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
