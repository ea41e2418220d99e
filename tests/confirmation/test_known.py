"""What a search has trained is not trained again: a rival's rates, and runs on fresh seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest

from biotune_optuna.confirmation.candidates import leading
from biotune_optuna.confirmation.confirm import confirm
from biotune_optuna.confirmation.known import (
    ModelledRates,
    counted_runs,
    evaluated_again,
    rates_known,
)
from biotune_optuna.confirmation.plan import ConfirmPlan, rates_around
from biotune_optuna.confirmation.protocol import Contest, Entrant
from biotune_optuna.confirmation.record import Confirmation, Ledger, Training, trainings
from biotune_optuna.finetune.results import RunResult
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.recipe import Recipe
from biotune_optuna.report.view import as_view
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.schema import RUNS_KEY, TrialRecord
from biotune_optuna.study.objective import Objective
from biotune_optuna.study.setup import Setup
from biotune_optuna.study.study import TuningStudy

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
Fit = Callable[..., RunResult]


def worth(recipe: Recipe) -> float:
    """A landscape: best where the mean of the log rates is 3e-3, frozen blocks at 1e-5."""
    logs = [math.log10(max(1e-5, block.multiplier * recipe.lr)) for block in recipe.blocks]
    return 0.9 - 0.2 * abs(float(np.mean(logs)) + 2.5)


def add(study: TuningStudy, recipe: Recipe, value: float, *seeds: int) -> None:
    """Add a finished trial of a recipe, with a run on each seed."""
    space = study.setup.space
    runs = [{"fold": None, "seed": seed, "score": value, "best_epoch": 2} for seed in seeds]
    study.study.add_trial(
        optuna.trial.create_trial(
            value=value,
            params=dict(space.encode(recipe).params),
            distributions=space.distributions(),
            user_attrs={RUNS_KEY: runs},
        )
    )


@pytest.fixture
def study(setup: Setup) -> TuningStudy:
    """A study of twelve recipes of many kinds, none of them full fine-tuning."""
    found = TuningStudy(optuna.create_study(direction="maximize"), setup)
    rng = np.random.default_rng(0)
    for number in range(12):
        multipliers = 10 ** rng.uniform(-0.9, 0.9, len(setup.blocks))
        recipe = Recipe.from_multipliers(
            setup.blocks, multipliers.tolist(), lr=float(10 ** rng.uniform(-3, -1.6))
        )
        add(found, recipe, worth(recipe), number)
    return found


def modelled(study: TuningStudy, most: int = 5) -> ModelledRates:
    return ModelledRates(study, study.study.trials, "full", rates_around(RATES, 3), most=most)


def test_rates_around_are_half_decades() -> None:
    assert rates_around((1e-2, 1e-3), 2) == (1e-4, 3e-4, 1e-3, 1e-2, 3e-2, 1e-1)
    assert rates_around(RATES, 0) == RATES


def test_one_training_settles_a_rate_that_the_search_knows(study: TuningStudy) -> None:
    rates = modelled(study)
    assert rates.known == (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1), "what the space holds"
    assert rates.rates == (1e-5, 3e-5, 1e-4, *rates.known[:-1], rates.known[-1], 1.0)
    first = rates.further({})
    assert first == 3e-3
    value = worth(Recipe.full(study.setup.blocks, lr=first))
    assert rates.further({first: value}) is None
    assert rates.best({first: value}) == first
    expected = rates.expected({first: value})
    assert expected[first] == pytest.approx(value, abs=0.02)


def test_a_rate_that_disappoints_is_followed_by_another(study: TuningStudy) -> None:
    scores = {3e-3: 0.2}
    second = modelled(study).further(scores)
    assert second is not None
    assert second != 3e-3
    assert modelled(study, most=1).further(scores) is None, "no more than was allowed"
    scores[second] = 0.85
    assert modelled(study).best(scores) == second


def test_beyond_the_searched_space_rates_are_tried_one_by_one(setup: Setup) -> None:
    study = TuningStudy(optuna.create_study(direction="maximize"), setup)
    for number, rate in enumerate((3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 3e-2)):
        recipe = Recipe.full(setup.blocks, lr=rate)
        add(study, recipe, 0.5 - 0.1 * math.log10(rate), number)
    rates, scores = modelled(study), {3e-4: 0.85}
    assert rates.further({}) == 3e-4, "the lowest that the space holds"
    assert rates.further(scores) == 1e-4
    scores[1e-4] = 0.9
    assert rates.further(scores) == 3e-5
    scores[3e-5] = 0.88
    assert rates.further(scores) is None
    assert rates.best(scores) == 1e-4


def test_the_rates_do_not_depend_on_trials_that_end_later(study: TuningStudy) -> None:
    finished = study.study.trials
    before = ModelledRates(study, finished, "full", RATES, most=5).expected({})
    for rate in RATES:
        add(study, Recipe.full(study.setup.blocks, lr=rate), 0.99, 5)
    assert ModelledRates(study, finished, "full", RATES, most=5).expected({}) == before


def test_a_few_trials_say_too_little(study: TuningStudy) -> None:
    finished, plan = study.study.trials, ConfirmPlan()
    assert rates_known(study, plan, "full", finished) is not None
    assert rates_known(study, plan, "full", finished[:7]) is None
    assert rates_known(study, ConfirmPlan(reuse=False), "full", finished) is None
    assert rates_known(study, plan, "linear-probe", finished) is None, "it has no rate"


def test_units_of_a_modelled_rate_follow_from_the_records(study: TuningStudy) -> None:
    setup = study.setup
    first, fresh = setup.spec.search_runs()[0].seed, setup.spec.confirm_runs(2)
    entrant = Entrant(name="full", method="full", rates=modelled(study))
    contest = Contest(setup, [entrant], n_runs=2)
    (unit,) = contest.wanted()
    assert unit.name == f"full at 0.003 | seed {first}"
    contest.ledger.add(unit.name, Training(key=contest.key(unit), score=0.9, best_epoch=2))
    assert [unit.name for unit in contest.wanted()] == [f"full | seed {r.seed}" for r in fresh]
    assert {unit.setting["lr"] for unit in contest.wanted()} == {3e-3}
    for unit in contest.wanted():
        contest.ledger.add(unit.name, Training(key=contest.key(unit), score=0.8, best_epoch=2))
    (found,) = contest.run()
    assert (found.grid, found.scores) == (({"lr": 3e-3, "value": 0.9},), (0.8, 0.8))
    assert found.expected is not None
    assert {one["lr"] for one in found.expected} == set(modelled(study).known)


def test_rates_that_were_trained_before_are_known(study: TuningStudy) -> None:
    entrant = Entrant(name="full", method="full", rates=modelled(study))
    other = Entrant(name="full", method="full", grid=tuple({"lr": rate} for rate in RATES))
    ledger = Ledger()
    earlier = Contest(study.setup, [other], ledger=ledger)
    for unit in earlier.wanted():
        recipe = Recipe.full(study.setup.blocks, lr=unit.setting["lr"])
        ledger.add(unit.name, Training(key=earlier.key(unit), score=worth(recipe)))
    contest = Contest(study.setup, [entrant], n_runs=1, ledger=ledger)
    assert [unit.kind for unit in contest.wanted()] == ["repeat"]
    assert len(contest.standings()[0].graded) == len(RATES)


def test_a_run_that_counts_does_not_choose_its_recipe(study: TuningStudy) -> None:
    recipe, plan = Recipe.full(study.setup.blocks, lr=1e-2), ConfirmPlan(top_k=1)
    add(study, recipe, 0.1, 20)
    add(study, recipe, 0.99, 21)
    finished = study.study.trials
    counted, others = counted_runs(study, plan, finished)
    assert [seed for seed, _ in counted.values()] == [21]
    assert others == finished[:-1]
    ((_, best),) = leading(study, 1, others)
    assert best.key() != recipe.key()
    for plan in (ConfirmPlan(reuse=False), ConfirmPlan(n_runs=1)):
        assert counted_runs(study, plan, finished) == ({}, finished)


# -- runs of the search that count ---------------------------------------------------------------


def test_a_re_evaluation_on_a_seed_of_its_own_counts(study: TuningStudy) -> None:
    recipe = Recipe.full(study.setup.blocks, lr=1e-3)
    add(study, recipe, 0.95, 7)
    assert not evaluated_again(study, study.study.trials)
    add(study, recipe, 0.94, 7)
    assert not evaluated_again(study, study.study.trials), "the seed is the same"
    add(study, recipe, 0.93, 8)
    ((trial, seed, training),) = evaluated_again(study, study.study.trials).values()
    assert (trial.number, seed, training.score, training.best_epoch) == (14, 8, 0.93, 2)


def test_a_counted_run_stands_for_the_last_repeat(setup: Setup) -> None:
    recipe = Recipe.linear_probe(setup.blocks, lr=1e-3)
    run = Training(key=recipe.key(), score=0.5, best_epoch=1, forward=9, seconds=3.0)
    entrant = Entrant(name="trial 4", method="biotune", recipe=recipe, counted=(77, run))
    contest = Contest(setup, [entrant], n_runs=2)
    first, second = setup.spec.confirm_runs(2)
    (unit,) = contest.wanted()
    assert unit.seed == first.seed
    contest.ledger.add(unit.name, Training(key=contest.key(unit), score=0.7, forward=1))
    (found,) = contest.run()
    assert (found.scores, found.reused, found.forward) == ((0.7, 0.5), 1, 10)
    assert contest.seconds_before == 0.0, "the search is not charged again"
    contest.ledger.add(f"trial 4 | seed {second.seed}", Training(key=contest.key(unit), score=0.6))
    (found,) = contest.run()
    assert (found.scores, found.reused) == ((0.7, 0.6), 0), "what was trained before stays"
    alone = Contest(setup, [entrant], n_runs=1)
    assert [unit.kind for unit in alone.wanted()] == ["repeat"], "one run at least is fresh"


def test_a_confirmation_trains_what_is_missing(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, made = Trainer.fit, []

    def noted(
        self: Trainer, recipe: Recipe, train: Any, val: Any = None, *, seed: int, **options: Any
    ) -> RunResult:
        result = fit(self, recipe, train, val, seed=seed, **options | {"epochs": 1})
        if val is not None:
            result.score = worth(recipe) if not recipe.fitted else 0.3
            made.append((recipe, seed))
        return result

    monkeypatch.setattr(Trainer, "fit", noted)
    pruner = optuna.pruners.NopPruner()  # what epochs report is real, what counts is not
    found = TuningStudy(optuna.create_study(direction="maximize", pruner=pruner), setup)
    found.study.sampler = BioTuneSampler(space=setup.space, seed=0)
    found.study.optimize(Objective(setup), n_trials=12)
    best = found.study.best_trial
    found.study.enqueue_trial(best.params)  # evaluated once more, on seeds of its own
    found.study.optimize(Objective(setup), n_trials=1)
    made.clear()
    plan = ConfirmPlan(top_k=2, n_runs=3, members=1)
    result = confirm(found, plan)
    full = result.contender("full")
    assert full is not None
    assert full.grid is not None
    tuned = len(full.grid)
    assert tuned < len(plan.rates)
    again = result.contender(f"trial {best.number}")
    assert again is not None
    assert (again.reused, len(again.scores)) == (1, 3)
    assert len(made) == tuned + 3 + 3 + 3 + 3 - 1, "two recipes, full fine-tuning, the probe"
    assert len(made) == len(trainings(found.study.user_attrs))
    assert result.calibration is not None
    view = as_view(found.study)
    spent = [TrialRecord(trial) for trial in found.study.trials]
    spent += [*trainings(found.study.user_attrs).values(), *result.final_training.values()]
    assert view.passes[0] == sum(one.forward for one in spent), "nothing counts twice"
    assert Confirmation.of(found.study.user_attrs) == result
    anew = TuningStudy(optuna.create_study(direction="maximize"), setup)
    anew.study.add_trials(found.study.trials)
    every = confirm(anew, ConfirmPlan(top_k=2, n_runs=3, members=1, reuse=False))
    assert {one.reused for one in every.contenders} == {0}
    assert len(trainings(anew.study.user_attrs)) >= 4 * 3 + len(plan.rates)
    assert confirm(anew, plan) == every, "it has more evidence than was asked for"
