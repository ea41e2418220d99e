"""Which recipes of a search are confirmed, and which contender wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from biotune_optuna.sampler.ranking import rank_finished

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from biotune_optuna.confirmation.record import Contender
    from biotune_optuna.recipe import Recipe
    from biotune_optuna.study.study import TuningStudy


def leading(
    study: TuningStudy,
    most: int,
    finished: Sequence[FrozenTrial],
    *,
    before: Sequence[FrozenTrial] = (),
    probed: bool = False,
) -> list[tuple[FrozenTrial, Recipe]]:
    """Return the search's best recipes by model and by value in turn, different ones.

    Args:
        study: The study.
        most: How many, at most.
        finished: The COMPLETE trials to take them from.
        before: Trials that were confirmed before: they follow, whatever their rank. Where another
            trial leads with the recipe of one, that one takes its place, for it has been trained.
        probed: Whether a fitted linear probe is confirmed too. It is what recipes that train the
            head alone are after, so these come after all others.
    """
    space, last = study.setup.space, study.setup.blocks[-1].name
    trials = {trial.number: trial for trial in finished}
    by_model, by_value = (
        rank_finished(study.study, space, smooth=smooth, trials=finished)
        for smooth in (True, False)
    )
    order = dict.fromkeys(n for pair in zip(by_model, by_value, strict=False) for n in pair)
    recipes = {number: space.genome(trials[number].params).decode() for number in order}
    if probed:  # the sort is stable
        order = dict.fromkeys(sorted(order, key=lambda n: recipes[n].trainable == (last,)))
    found: dict[tuple[Any, ...], tuple[FrozenTrial, Recipe]] = {}
    for number in order:
        if len(found) == most:
            break
        found.setdefault(recipes[number].key(), (trials[number], recipes[number]))
    confirmed: dict[tuple[Any, ...], tuple[FrozenTrial, Recipe]] = {}
    for trial in before:
        recipe = space.genome(trial.params).decode()
        confirmed.setdefault(recipe.key(), (trial, recipe))
    return list((found | confirmed).values())


def choose(
    everyone: Sequence[Contender],
    *,
    prefer: Literal["best", "cheap"] = "best",
    tolerance: float = 1.0,
) -> tuple[Contender, list[Contender], str]:
    """Choose the winner by confirmed mean.

    Args:
        everyone: Confirmed candidates and rivals.
        prefer: ``"best"`` takes the best mean, and of equal ones the cheapest; ``"cheap"`` the
            cheapest of those within the tolerance. Cheapest is the one with the fewest image passes
            through blocks that train, then the fewest trainable parameters.
        tolerance: Standard errors of the best mean within which others count as equal to it.

    Returns:
        The winner, all that count as equal to the best, and the reason in words.
    """
    highest = max(one.mean for one in everyone)
    best = min((one for one in everyone if one.mean == highest), key=_cost)
    plateau = [c for c in everyone if c.mean >= best.mean - tolerance * best.stderr]
    winner = best if prefer == "best" else min(plateau, key=_cost)
    within = "one standard error" if tolerance == 1 else f"{tolerance:g} standard errors"
    if winner is not best:
        why = f"{winner.name} is within {within} of the best ({best.name}) and cheaper"
    elif len(best.scores) == 1:
        why = f"{best.name} has the best score on one fresh seed, whose luck is unknown"
    else:
        why = f"{best.name} has the best mean on fresh seeds"
        if len(plateau) == 1:
            why += f", by more than {within}"
        elif prefer == "cheap":
            why += f" and is the cheapest within {within} of it"
    return winner, plateau, why


def _cost(one: Contender) -> tuple[float, float]:
    """Image passes through blocks that train, then the share of the parameters that train."""
    return one.backward_cost, one.trainable_pct
