"""Which blocks' settings explain the differences between trials."""

import logging
import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import plotly.graph_objects as go
from optuna import Study
from optuna.trial import FrozenTrial

from biotune_optuna.page.style import BLUE, GREY, ORANGE, finish, shorten
from biotune_optuna.report.figures import NothingToShow, StudyFigure
from biotune_optuna.report.figures.shared import thin, with_recipe
from biotune_optuna.report.view import StudyView

MAX_FOR_IMPORTANCE = 300
MIN_FOR_IMPORTANCE = 15


@StudyFigure(
    name="block-importance",
    title="Which blocks matter",
    caption="How much of the difference between recipes each block's setting explains (fANOVA). It"
    " says where choices mattered within what was tried, not which block is good.",
    chapter="search",
    place=40,
    dashboard="4-importance",
    dashboard_limits={"max_trials": 100},
)
def block_importance(
    view: StudyView, *, seed: int = 0, max_trials: int = MAX_FOR_IMPORTANCE
) -> go.Figure:
    """Which blocks' settings explain the differences between trials.

    Optuna's fANOVA on two parameters per block, whether it trains and the logarithm of its rate
    (a frozen block takes the median rate, so that the two do not tell the same twice).

    Args:
        view: A study with at least 15 complete trials that carry recipes.
        seed: Seed of the evaluator's forest.
        max_trials: Trials used at most, evenly over the study: the time grows with them.
    """
    trials = sorted(with_recipe(view), key=lambda t: t.number)
    if len(trials) < MIN_FOR_IMPORTANCE:
        raise NothingToShow(
            f"Block importance needs {MIN_FOR_IMPORTANCE} complete trials to mean anything;"
            f" there are {len(trials)}."
        )
    if len({t.value for t in trials}) < 2:
        raise NothingToShow("All trials have the same value, so no block explains a difference.")
    used = thin(trials, max_trials)
    shares = importances(view, used, seed=seed)
    labels = [shorten(b) for b in view.blocks]
    figure = go.Figure()
    genes = [name for part, name in shares if part == "gene"]
    if genes:
        figure.add_bar(
            x=[shares["gene", name] for name in genes],
            y=[shorten(name.removeprefix("train.")) for name in genes],
            orientation="h",
            name="how it trains",
            marker={"color": GREY},
            hovertemplate="%{y}: %{x:.0%}<extra></extra>",
        )
        labels += [shorten(name.removeprefix("train.")) for name in genes]
    for part, words, colour, shape in (
        ("mask", "freeze or train", ORANGE, "/"),
        ("rate", "how fast", BLUE, ""),
    ):
        figure.add_bar(
            x=[shares[part, b] for b in view.blocks],
            y=labels[: len(view.blocks)],
            orientation="h",
            name=words,
            marker={
                "color": colour,
                "pattern": {"shape": shape, "fgcolor": "white", "fillmode": "overlay", "size": 5},
            },
            hovertemplate="%{y}, " + words + ": %{x:.0%}<extra></extra>",
        )
    figure.update_xaxes(title_text="share of what can be explained", tickformat=".0%")
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1])
    title = f"Which blocks matter (from {len(used):,} trials)"
    if len(used) < 50:
        title += ": a rough guide"
    height = 140 + 26 * max(4, len(labels))
    return finish(figure, title, height=height, legend=True, barmode="stack")


def importances(
    view: StudyView, trials: Sequence[FrozenTrial], *, seed: int = 0
) -> dict[tuple[str, str], float]:
    """Return the importance per ("mask" or "rate", block) and ("gene", training gene).

    All of them sum to 1.

    Args:
        view: The study read.
        trials: Complete trials with recipes.
        seed: Seed of the evaluator's forest.
    """
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    distributions: dict[str, BaseDistribution] = {}
    columns: dict[str, list[Any]] = {}
    for block in view.blocks:
        rates = [view.recipes[t.number][block] for t in trials]
        trained = [math.log10(rate) for rate in rates if rate > 0]
        if 0 < len(trained) < len(rates):
            distributions[f"mask {block}"] = CategoricalDistribution([False, True])
            columns[f"mask {block}"] = [rate > 0 for rate in rates]
        if len(set(trained)) > 1:
            middle = median(trained)
            distributions[f"rate {block}"] = FloatDistribution(min(trained), max(trained))
            columns[f"rate {block}"] = [math.log10(r) if r > 0 else middle for r in rates]
    genes = [name for name in trials[0].params if name.startswith("train.")]
    for name in genes:
        values = [t.params.get(name) for t in trials]
        if len(set(values)) > 1:
            columns[name] = values
            distributions[name] = CategoricalDistribution(sorted(set(values), key=str))
    if not distributions:
        raise NothingToShow("All trials used the same recipe, so no block explains a difference.")
    stand_in = _silent_study()
    stand_in.add_trials(
        create_trial(
            params={name: column[i] for name, column in columns.items()},
            distributions=distributions,
            value=trial.value,
        )
        for i, trial in enumerate(trials)
    )
    found = get_param_importances(stand_in, evaluator=FanovaImportanceEvaluator(seed=seed))
    of_blocks = {
        (part, b): float(found.get(f"{part} {b}", 0.0))
        for part in ("mask", "rate")
        for b in view.blocks
    }
    return of_blocks | {("gene", name): float(found.get(name, 0.0)) for name in genes}


def _silent_study() -> Study:
    """Return a study in memory that Optuna does not announce in the log."""
    import optuna

    log = logging.getLogger("optuna.storages._in_memory")
    before, log.disabled = log.disabled, True
    try:
        return optuna.create_study(direction="maximize", storage=optuna.storages.InMemoryStorage())
    finally:
        log.disabled = before
