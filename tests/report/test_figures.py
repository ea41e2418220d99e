"""Golden numbers behind each figure, and what each does with little and with much."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from biotune_optuna.genome import GenomeSpace
from biotune_optuna.recipe import BlockRecipe
from biotune_optuna.report import figures
from biotune_optuna.report.cost import time_spent
from biotune_optuna.report.figures import NothingToShow, StudyFigure, all_figures
from biotune_optuna.report.figures.accuracy_against_cost import pareto_front
from biotune_optuna.report.figures.block_importance import importances
from biotune_optuna.report.figures.single_blocks import worths
from biotune_optuna.report.status import study_status
from biotune_optuna.report.view import DoesNotApply, as_view
from biotune_optuna.report.words import describe_trial, verdict
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.schema import CONFIRM_KEY, ENDED_KEY

START = dt.datetime(2026, 1, 5)
Trials = Iterable[dict[str, Any]]


def study_of(trials: Trials, *, direction: str = "maximize", **attrs: Any) -> optuna.Study:
    """A study of hand-written trials: value, state, seconds and user attributes."""
    study = optuna.create_study(direction=direction, study_name="hand")
    for key, value in attrs.items():
        study.set_user_attr(key, value)
    for spec in trials:
        one = dict(spec)
        seconds = one.pop("wall", 1.0)
        value, state = one.pop("value", None), one.pop("state", TrialState.COMPLETE)
        steps = one.pop("steps", {})
        ended = one.pop("ended", None)
        multipliers = one.pop("m", None)
        if multipliers is not None:
            one["recipe"] = {"lr": 0.1, "multipliers": dict(zip("abc", multipliers, strict=True))}
        trial = create_trial(
            state=state, value=value, intermediate_values=steps, user_attrs=one, params={}
        )
        trial.system_attrs |= {ENDED_KEY: ended} if ended else {}
        trial.datetime_start = START
        trial.datetime_complete = START + dt.timedelta(seconds=seconds)
        study.add_trial(trial)
    return study


SPEC = {"spec": {"train": {"epochs": 3, "metric": "accuracy"}}}


def trace(figure: Any, name: str) -> Any:
    return next(t for t in figure.data if t.name == name)


def test_history_draws_every_point_the_best_line_and_the_counts() -> None:
    study = study_of(
        [
            {"value": 0.5, "generation": 0, "role": "immigrant"},
            {"value": 0.4, "generation": 0, "role": "immigrant"},
            {"value": 0.7, "generation": 1, "role": "offspring", "parents": "0, 1"},
            {"state": TrialState.FAIL, "generation": 1, "role": "offspring"},
            {"value": 0.6, "generation": 1, "role": "exploit", "parents": "0"},
        ],
        biotune=SPEC,
    )
    figure = figures.draw("search-history", study)
    best = trace(figure, "best so far")
    assert (list(best.x), list(best.y)) == ([0, 2, 4], [0.5, 0.7, 0.7])
    assert list(trace(figure, "random newcomer").y) == [0.5, 0.4]
    bars = {t.name: list(t.y) for t in figure.data if t.type == "bar"}
    assert bars == {
        "random newcomer": [2, 0],
        "offspring": [0, 2],
        "small step from an elite": [0, 1],
    }
    assert figure.layout.title.text == "Best accuracy so far: 70.0\u00a0%"


def test_history_of_a_minimised_study_follows_the_smallest() -> None:
    figure = figures.draw(
        "search-history", study_of([{"value": v} for v in (3, 5, 1)], direction="minimize")
    )
    assert list(trace(figure, "best so far").y) == [3, 1, 1]
    assert figure.layout.title.text == "Best value so far: 1"


def test_history_of_thousands_is_thinned_and_says_so() -> None:
    values = np.random.default_rng(0).uniform(size=3000)
    figure = figures.draw("search-history", study_of({"value": float(v)} for v in values))
    points = trace(figure, "trial")
    assert len(points.x) == 1500
    assert (points.x[0], points.x[-1]) == (0, 2999)
    assert "(1,500 of 3,000 points drawn)" in figure.layout.title.text
    assert trace(figure, "best so far").y[-1] == values.max()


def test_lineage_follows_the_best_parents() -> None:
    study = study_of(
        [
            {"value": 0.5, "generation": 0, "role": "immigrant"},
            {"value": 0.3, "generation": 0, "role": "immigrant"},
            {"value": 0.6, "generation": 1, "role": "offspring", "parents": "0, 1"},
            {"value": 0.2, "generation": 1, "role": "immigrant"},
            {"value": 0.9, "generation": 2, "role": "exploit", "parents": "2"},
        ],
        biotune=SPEC,
    )
    figure = figures.draw("lineage", study)
    line = trace(figure, "line of the best parent")
    assert (list(line.x), list(line.y)) == ([0, 1, 2], [0.5, 0.6, 0.9])
    assert figure.layout.title.text == "Where trial 4 comes from: +40.0\u00a0points in 2 steps"
    drawn = {n for t in figure.data if t.customdata is not None for n, *_ in t.customdata}
    assert drawn == {0, 1, 2, 4}
    offspring = trace(figure, "offspring")
    assert offspring.customdata[0][2] == "+10.0\u00a0points against its better parent"


def test_lineage_of_many_draws_the_nearest_and_says_so() -> None:
    trials = [{"value": i / 500, "generation": i, "parents": str(i - 1)} for i in range(1, 200)]
    figure = figures.draw("lineage", study_of([{"value": 0.0, "generation": 0}, *trials]))
    assert "(60 nearest of 199 ancestors drawn)" in figure.layout.title.text


def test_lineage_is_told_only_where_it_explains() -> None:
    study = study_of([{"value": 0.9}, {"value": 0.5, "parents": "0"}])
    study.set_user_attr(
        CONFIRM_KEY,
        {
            "winner": "trial 1",
            "candidates": [{"name": "trial 1", "method": "biotune", "trial": 1, "scores": [0.9]}],
        },
    )
    with pytest.raises(NothingToShow, match="no better in the search than trial 0"):
        figures.draw("lineage", study)


def test_lineage_survives_a_circle() -> None:
    study = study_of([{"value": 0.1, "parents": "1"}, {"value": 0.2, "parents": "0"}])
    assert list(trace(figures.draw("lineage", study), "line of the best parent").y) == [0.1, 0.2]


def test_heatmap_has_rates_and_hatched_freezing_best_first() -> None:
    study = study_of([{"value": 0.1, "m": [0, 1, 10]}, {"value": 0.9, "m": [0.1, 0, 2]}])
    figure = figures.draw("genome-heatmap", study)
    cells = next(t for t in figure.data if t.type == "heatmap")
    assert [list(row) for row in cells.z] == [
        [-1, None],
        [None, 0],
        [pytest.approx(0.30103, abs=1e-4), 1],
    ]
    frozen = trace(figure, "frozen")
    assert sorted(zip(frozen.x, [b + 0.46 for b in frozen.base], strict=True)) == [(0, 1), (1, 0)]
    assert list(figure.layout.xaxis2.ticktext) == ["1", "0"]


def test_heatmap_of_thousands_keeps_the_best_hundred() -> None:
    rng = np.random.default_rng(0)
    study = study_of({"value": float(v), "m": [1, 0, v + 0.1]} for v in rng.uniform(size=3000))
    figure = figures.draw("genome-heatmap", study)
    cells = next(t for t in figure.data if t.type == "heatmap")
    assert {len(row) for row in cells.z} == {100}
    assert figure.layout.title.text.startswith("The best 100 of 3,000 recipes")


def test_freezing_is_counted_among_the_best() -> None:
    best = [{"value": 0.9, "m": [0, 1, r]} for r in (1, 2, 4, 8)] + [{"value": 0.8, "m": [1, 0, 3]}]
    rest = [{"value": 0.1, "m": [1, 1, 1]}] * 15
    study = study_of([*rest, *best])
    figure = figures.draw("freeze-by-block", study)
    assert list(figure.data[0].x) == [0.8, 0.2, 0.0]
    assert list(figure.data[0].text) == ["4 of 5", "1 of 5", "0 of 5"]
    median = trace(figure, "median")
    assert list(median.x) == pytest.approx([1, 1, 3])
    assert figure.layout.title.text.endswith("the best 5 of 20 trials")


def test_rates_beyond_the_usual_range_stay_in_the_picture() -> None:
    figure = figures.draw("freeze-by-block", study_of([{"value": 0.1, "m": [0.001, 1, 100]}]))
    low, high = figure.layout.xaxis2.range
    assert low < -3
    assert high > 2


def test_importance_finds_the_block_that_decides() -> None:
    rng = np.random.default_rng(0)
    trials = []
    for _ in range(80):
        m = [float(10 ** rng.uniform(-1, 1)) * float(rng.random() < 0.6) for _ in range(3)]
        trials.append({"value": 0.5 + 0.3 * (m[1] > 0) + 0.01 * math.log10(m[2] or 1), "m": m})
    view = as_view(study_of(trials))
    found = importances(view, view.complete)
    assert max(found, key=lambda key: found[key]) == ("mask", "b")
    assert found["mask", "b"] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    figure = figures.draw("block-importance", view)
    assert trace(figure, "freeze or train").x[1] == pytest.approx(found["mask", "b"])


def test_importance_says_why_it_is_left_out() -> None:
    few = study_of([{"value": i / 10, "m": [1, 1, i + 1]} for i in range(3)])
    with pytest.raises(
        NothingToShow, match="needs 15 complete trials to mean anything; there are 3"
    ):
        figures.draw("block-importance", few)
    same_value = study_of([{"value": 0.5, "m": [1, 1, i + 1]} for i in range(20)])
    with pytest.raises(NothingToShow, match="same value"):
        figures.draw("block-importance", same_value)
    same_recipe = study_of([{"value": i / 20, "m": [1, 1, 1]} for i in range(20)])
    with pytest.raises(NothingToShow, match="same recipe"):
        figures.draw("block-importance", same_recipe)


def searched(wanted: int, n_trials: int, direction: str = "maximize") -> optuna.Study:
    """A search in which one block must train, and the others had better not."""
    space = GenomeSpace([BlockRecipe(name, 1.0) for name in ("stem", "a", "b", "c", "head")])
    sign = 1.0 if direction == "maximize" else -1.0

    def objective(trial: optuna.Trial) -> float:
        recipe = space.suggest(trial).decode()
        trial.set_user_attr("recipe", {"lr": recipe.lr, "multipliers": recipe.multipliers})
        trained = [m > 0 for m in recipe.multipliers.values()][:-1]
        luck = 0.02 * math.cos(7 * trial.number)
        return sign * (0.5 + 0.3 * trained[wanted] - 0.05 * sum(trained) + luck)

    sampler = BioTuneSampler(space=space, seed=0)
    study = optuna.create_study(direction=direction, sampler=sampler)
    for genes in np.random.default_rng(0).random((n_trials // 2, len(space.gene_names))):
        study.enqueue_trial(dict(zip(space.gene_names, genes.tolist(), strict=True)) | {"lr": 5e-3})
    study.optimize(objective, n_trials=n_trials)
    return study


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("wanted", [0, 2])
def test_what_a_block_is_worth_is_seen_alone_and_by_leaving_it_out(
    wanted: int, direction: str
) -> None:
    view = as_view(searched(wanted, 60, direction))
    assert view.space is not None
    found = worths(view, view.space)
    sign = 1.0 if direction == "maximize" else -1.0
    alone = [sign * one.value for one in found.alone]
    without = [sign * one.value for one in found.without]
    assert int(np.argmax(alone)) == wanted
    assert int(np.argmin(without)) == wanted
    assert alone[wanted] > sign * found.probe.value + 0.1
    assert without[wanted] < sign * found.full.value - 0.05
    assert all(one.deviation > 0 for one in (*found.alone, *found.without))
    figure = figures.draw("single-blocks", view)
    assert figure.data[0].x == tuple(one.value for one in found.alone)
    assert figure.data[1].x == tuple(one.value for one in found.without)
    assert figure.data[0].y == ("stem", "a", "b", "c")


def test_what_a_block_is_worth_says_why_it_is_left_out() -> None:
    with pytest.raises(NothingToShow, match="needs 10 complete trials"):
        figures.draw("single-blocks", searched(0, 9))
    foreign = study_of([{"value": i / 10, "m": [1, 1, i + 1]} for i in range(12)])
    with pytest.raises(NothingToShow, match="genome space"):
        figures.draw("single-blocks", foreign)


def test_pareto_front_is_what_nothing_beats() -> None:
    points = [(0.5, 10), (0.7, 20), (0.6, 20), (0.7, 30), (0.9, 40), (0.4, 5)]
    study = study_of([{"value": v, "trainable_pct": c, "seconds": c} for v, c in points])
    view = as_view(study)
    front = pareto_front(view, [(t, t.user_attrs["seconds"]) for t in view.complete])
    assert [(t.value, c) for t, c in front] == [(0.4, 5), (0.5, 10), (0.7, 20), (0.9, 40)]
    drawn = trace(figures.draw("accuracy-against-cost", study), "Pareto front")
    assert list(drawn.x) == [5, 10, 20, 40]


def test_time_is_counted_once() -> None:
    study = study_of(
        [
            {"value": 0.5, "seconds": 8.0, "wall": 10.0},
            {"value": 0.4, "seconds": 3.0, "wall": 4.0, "state": TrialState.PRUNED},
            {"state": TrialState.FAIL, "seconds": 1.0, "wall": 6.0},
            {"state": TrialState.FAIL, "wall": 54_000.0, "ended": "lost"},
        ],
        confirm={"seconds": 7.5},
    )
    spent = time_spent(as_view(study))
    assert spent == {
        "training, trial kept": 8.0,
        "training, trial stopped early": 3.0,
        "trials that failed or were stopped": 6.0,
        "around training (loading, writing)": 3.0,
        "confirmation": 7.5,
    }
    assert sum(spent.values()) == 10 + 4 + 6 + 7.5
    assert list(figures.draw("where-time-went", study).data[0].x) == list(spent.values())


@pytest.mark.parametrize("first", [0, 1])
def test_learning_curves_split_runs_at_the_epochs(first: int) -> None:
    values = [0.1, 0.2, 0.3, 0.2, 0.4]
    steps = dict(zip(range(first, first + 5), values, strict=True))
    study = study_of(
        [{"value": 0.35, "steps": steps}, {"state": TrialState.PRUNED, "steps": {first: 0.05}}],
        biotune=SPEC,
    )
    figure = figures.draw("learning-curves", study)
    best = trace(figure, "trial 0: 35.0\u00a0%")
    assert list(best.x) == [1, 2, 3, None, 1, 2, None]
    assert list(best.y) == [0.1, 0.2, 0.3, None, 0.2, 0.4, None]
    assert list(trace(figure, "stopped early (1)").y) == [0.05, None]


def test_confirmation_is_drawn_with_its_intervals(confirmed_study: optuna.Study) -> None:
    confirm = confirmed_study.user_attrs["confirm"]
    figure = figures.draw("search-confirmed-test", confirmed_study)
    test = trace(figure, "test")
    stored = {t["name"]: t for t in confirm["tests"]}
    order = [one.name for one in as_view(confirmed_study).confirmation.ranked[::-1]]
    assert list(test.x) == [stored[n]["score"] for n in order]
    low = [x - e for x, e in zip(test.x, test.error_x.arrayminus, strict=True)]
    assert low == pytest.approx([stored[n]["low"] for n in order])
    mean = trace(figure, "confirmed on fresh seeds")
    errors = {c["name"]: c["stderr"] for c in [*confirm["candidates"], *confirm["rivals"]]}
    assert list(mean.error_x.array) == [errors[n] for n in order]
    assert list(mean.x) == sorted(mean.x), "the best one on top"


def test_confusion_counts_are_the_stored_ones(confirmed_study: optuna.Study) -> None:
    confirm = confirmed_study.user_attrs["confirm"]
    counts = np.array(confirm["ensemble"]["confusion"])
    figure = figures.draw("confusion-matrix", confirmed_study)
    cells = figure.data[0]
    assert np.allclose(cells.z, counts / counts.sum(1, keepdims=True))
    assert [[int(t or 0) for t in row] for row in cells.text] == counts.tolist()
    right = int(np.trace(counts))
    assert figure.layout.title.text == f"{right} of 500 test images right, {500 - right} wrong"


def test_confusion_of_many_classes_lists_the_most_frequent() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, (60, 60)) + 20 * np.eye(60, dtype=int)
    counts[7, 9] = 50
    confirm = {
        "winner": "full",
        "classes": [f"class <{i}>" for i in range(60)],
        "rivals": [{"name": "full", "method": "full"}],
        "tests": [{"name": "full", "confusion": counts.tolist()}],
    }
    figure = figures.draw("confusion-matrix", study_of([], confirm=confirm))
    assert figure.data[0].type == "bar"
    assert figure.data[0].x[0] == 50
    assert figure.data[0].y[0] == "class &lt;7&gt; → class &lt;9&gt;"
    assert len(figure.data[0].x) == 25


@pytest.mark.parametrize("entry", all_figures(), ids=lambda e: e.name)
def test_every_figure_draws_from_a_full_study(
    entry: StudyFigure, confirmed_study: optuna.Study
) -> None:
    # some need genomes, not only recipes
    studies = {"single-blocks": lambda: searched(0, 30), "training-genes": wide_study}
    study = studies.get(entry.name, lambda: confirmed_study)()
    figure = entry.draw(as_view(study))
    assert figure.layout.title.text
    assert all(
        any(v is not None and len(v) for v in (t.x, t.y, getattr(t, "z", None)))
        for t in figure.data
    )


@pytest.mark.parametrize("entry", all_figures(), ids=lambda e: e.name)
@pytest.mark.parametrize("n", [0, 1, 3])
def test_every_figure_of_a_young_study_draws_data_or_says_one_sentence(
    entry: StudyFigure, n: int, make_study: Any
) -> None:
    try:
        figure = entry.draw(as_view(make_study(n)))
    except NothingToShow as nothing:
        sentence = str(nothing)
        assert sentence.endswith(".")
        assert "\n" not in sentence
    else:
        assert n > 0
        assert all(len(t.x) for t in figure.data if t.x is not None)


def test_figures_of_plain_studies_draw_what_they_can(plain_study: optuna.Study) -> None:
    drawn = []
    for entry in all_figures():
        try:
            entry.draw(as_view(plain_study))
        except NothingToShow:
            continue
        drawn.append(entry.name)
    assert drawn == ["search-history", "accuracy-against-cost", "where-time-went"]


def test_several_objectives_are_refused_in_one_line() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], study_name="two")
    with pytest.raises(NothingToShow, match="'two' has 2 objectives"):
        figures.draw("search-history", study)


def test_infinite_values_are_left_out() -> None:
    figure = figures.draw("search-history", study_of([{"value": math.inf}, {"value": 0.5}]))
    assert list(trace(figure, "trial").y) == [0.5]
    study = study_of([{"value": math.inf}])
    assert verdict(as_view(study)).headline == "No trial has a finite value yet."
    with pytest.raises(NothingToShow, match="No trial has a finite value yet, so there is no hist"):
        figures.draw("search-history", study)


@pytest.fixture(scope="module")
def own_objective() -> optuna.Study:
    """Plain ``optuna.create_study`` with our sampler and somebody's own objective."""
    from biotune_optuna.genome import GenomeSpace
    from biotune_optuna.recipe import BlockRecipe
    from biotune_optuna.sampler.sampler import BioTuneSampler

    space = GenomeSpace([BlockRecipe(name, 1.0) for name in ("stem", "body", "head")])
    study = optuna.create_study(
        direction="maximize", sampler=BioTuneSampler(space=space, population_size=6, seed=1)
    )

    def objective(trial: optuna.Trial) -> float:
        rates = space.suggest(trial).decode().multipliers
        return rates["head"] / 10 - 0.05 * (rates["stem"] > 0)

    study.optimize(objective, n_trials=30)
    return study


def test_genomes_of_somebody_elses_objective_are_decoded(own_objective: optuna.Study) -> None:
    view = as_view(own_objective)
    assert view.blocks == ("stem", "body", "head")
    for trial in view.complete:
        rates = view.recipes[trial.number]
        assert trial.value == rates["head"] / 10 - 0.05 * (rates["stem"] > 0)
    cells = next(t for t in figures.draw("genome-heatmap", view).data if t.type == "heatmap")
    best = view.recipes[view.ranked[0].number]
    expected = [round(math.log10(m), 4) if m > 0 else None for m in best.values()]
    assert [row[0] for row in cells.z] == expected


def test_all_views_take_somebody_elses_objective(own_objective: optuna.Study) -> None:
    view = as_view(own_objective)
    assert view.best is not None
    words = describe_trial(view, view.best)
    assert words.startswith("Its recipe: ")
    assert f"head at {view.recipes[view.best.number]['head']:.2g}×" in words
    assert study_status(own_objective)["best"]
    assert "trial" in verdict(view).headline.lower()


def test_roles_and_parents_of_somebody_elses_objective_are_drawn(
    own_objective: optuna.Study,
) -> None:
    figure = figures.draw("search-history", own_objective)
    assert {"random newcomer", "offspring"} & {t.name for t in figure.data}
    assert sum(sum(t.y) for t in figure.data if t.type == "bar") == 30
    assert figures.draw("lineage", own_objective).data


def wide_study() -> optuna.Study:
    study = optuna.create_study(direction="maximize", study_name="wide")
    choices = {"train.augment": ("none", "crop"), "train.length": (1.0, 2.0)}
    distributions = {k: optuna.distributions.CategoricalDistribution(v) for k, v in choices.items()}
    for i in range(24):
        params = {"train.augment": ("none", "crop")[i % 2], "train.length": (1.0, 2.0)[i // 12]}
        recipe = {
            "lr": 0.1,
            "multipliers": {"a": 0.0, "b": 1.0, "c": 1.0 + i % 3},
            "modes": {"b": "norms"} if i % 4 == 0 else {},
            "training": {k.removeprefix("train."): v for k, v in params.items()},
        }
        value = 0.5 + 0.2 * (i % 2) + 0.001 * i
        study.add_trial(
            create_trial(
                value=value, params=params, distributions=distributions,
                user_attrs={"recipe": recipe},
            )
        )  # fmt: skip
    return study


def test_training_genes_are_drawn_with_the_middle_of_each_value() -> None:
    figure = figures.draw("training-genes", wide_study())
    medians = [t for t in figure.data if t.name == "median"]
    by_value = dict(zip(medians[0].x, medians[0].y, strict=True))
    assert by_value["crop"] - by_value["none"] == pytest.approx(0.201)
    assert [a.text for a in figure.layout.annotations][:2] == ["augment", "length"]


def test_a_study_without_training_genes_has_no_such_figure() -> None:
    with pytest.raises(DoesNotApply, match="does not search how a recipe trains"):
        figures.draw("training-genes", study_of([{"value": 0.5, "m": [1, 1, 1]}]))


def test_modes_are_letters_in_the_heat_map() -> None:
    figure = figures.draw("genome-heatmap", wide_study())
    (letters,) = [t for t in figure.data if t.type == "scatter" and t.mode == "text"]
    assert list(letters.text) == ["n"] * 6
    assert set(letters.y) == {1}


def test_training_genes_have_their_share_of_the_importance() -> None:
    view = as_view(wide_study())
    found = importances(view, view.complete)
    assert found["gene", "train.augment"] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    figure = figures.draw("block-importance", view)
    assert list(trace(figure, "how it trains").y) == ["augment", "length"]
    assert "TrivialAugment" not in describe_trial(view, view.complete[0])
    assert "random crops" in describe_trial(view, view.complete[1])
