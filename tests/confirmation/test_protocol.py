"""The protocol: which trainings are wanted, and final trainings that diverge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from biotune_optuna.confirmation.baseline import run_baseline
from biotune_optuna.confirmation.protocol import Contest, Entrant, Unit
from biotune_optuna.confirmation.record import Contender, Ledger, Training, trainings
from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.results import RunResult
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.recipe import Recipe
from biotune_optuna.study.setup import Setup
from biotune_optuna.study.spec import StudySpec

RATES = ({"lr": 1e-3}, {"lr": 1e-2})


def made_up(contest: Contest, unit: Unit, score: float) -> None:
    """Write a unit down as if it had been trained."""
    training = Training(key=contest.key(unit), score=score, best_epoch=2)
    contest.ledger.add(unit.name, training)


def recipe_entrant(setup: Setup, name: str = "trial 4") -> Entrant:
    recipe = Recipe.linear_probe(setup.blocks, lr=1e-3)
    return Entrant(name=name, method="biotune", recipe=recipe, trial=4)


# -- what is wanted ----------------------------------------------------------------------------


def test_units_follow_from_the_records(setup: Setup) -> None:
    first, fresh = setup.spec.search_runs()[0].seed, setup.spec.confirm_runs(2)
    rival = Entrant(name="full", method="full", grid=RATES, more_rates=1)
    contest = Contest(setup, [recipe_entrant(setup), rival], n_runs=2)

    def wanted() -> list[str]:
        return [unit.name for unit in contest.wanted()]

    repeats = [f"trial 4 | seed {run.seed}" for run in fresh]
    assert wanted() == [f"full at 0.001 | seed {first}", f"full at 0.01 | seed {first}", *repeats]
    for unit, score in zip(contest.wanted()[:2], (0.2, 0.3), strict=True):
        made_up(contest, unit, score)
    assert wanted() == [f"full at 0.03 | seed {first}", *repeats], "the highest rate is the best"
    made_up(contest, contest.wanted()[0], 0.1)
    assert wanted() == [*repeats, *(f"full | seed {run.seed}" for run in fresh)]
    assert {unit.setting["lr"] for unit in contest.wanted()[2:]} == {1e-2}
    for unit in contest.wanted():
        made_up(contest, unit, 0.4)
    assert not contest.wanted()
    recipe, full = contest.run()
    assert (recipe.name, recipe.trial, recipe.scores) == ("trial 4", 4, (0.4, 0.4))
    assert (full.name, full.search_value, full.recipe.lr) == ("full", 0.3, 1e-2)
    assert full.grid == tuple(
        {"lr": lr, "value": value} for lr, value in ((1e-3, 0.2), (1e-2, 0.3), (3e-2, 0.1))
    )


def test_a_record_of_another_recipe_does_not_count(setup: Setup) -> None:
    contest = Contest(setup, [recipe_entrant(setup)], n_runs=1)
    (unit,) = contest.wanted()
    contest.ledger.add(unit.name, Training(key=("another",), score=0.9))
    assert contest.wanted() == [unit]


def test_equal_settings_go_to_the_lowest_rate(setup: Setup) -> None:
    entrant = Entrant(name="full", method="full", grid=RATES[::-1])
    contest = Contest(setup, [entrant], n_runs=1)
    for unit in contest.wanted():
        made_up(contest, unit, 0.5)
    assert [unit.setting for unit in contest.wanted()] == [{"lr": 1e-3}]


def test_workers_that_share_a_ledger_share_the_work(setup: Setup) -> None:
    study = optuna.create_study()
    entrant = Entrant(name="linear-probe", method="linear-probe", grid=RATES)
    here, there = (Contest(setup, [entrant], n_runs=1, ledger=Ledger(study)) for _ in range(2))
    first, second = here.wanted()
    there.train(second)
    assert here.wanted() == [first]
    here.train(first)
    (repeat,) = there.wanted()
    trained = there.train(repeat)
    assert here.run() == there.run()
    assert here.run()[0].scores == (trained.score,)
    everything = sum(one.seconds for one in trainings(study.user_attrs).values())
    assert here.seconds_before + there.seconds_before == pytest.approx(everything)


def test_a_method_without_a_recipe_takes_part(setup: Setup) -> None:
    setting = {"lr": 1e-3, "weight_decay": 0.07, "epochs": 1}
    contest = Contest(setup, [Entrant(name="a", method="lp-ft", setting=setting)], n_runs=1)
    (found,) = contest.run()
    assert len(found.scores) == 1
    assert not found.recipe.multipliers
    n = len(setup.splits.train)
    assert found.backward == 2 * n, "one epoch of each phase"


# -- the end -----------------------------------------------------------------------------------


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Makes the final trainings of some seeds diverge; gives the seeds in the order of training."""
    fit, seen = Trainer.fit, []

    def make(*seeds: int) -> list[int]:
        def explode(
            self: Trainer, recipe: Recipe, train: Any, val: Any = None, *, seed: int, **options: Any
        ) -> RunResult:
            result = fit(self, recipe, train, val, seed=seed, **options)
            if val is None:
                seen.append(seed)
                result.diverged = seed in seeds
            return result

        monkeypatch.setattr(Trainer, "fit", explode)
        return seen

    return make


def test_the_first_final_seed_is_the_one_of_old() -> None:
    seeds = StudySpec(model="resnet50", data="digits").final_seeds(3)
    assert seeds[0] == 2613022947
    assert len(set(seeds)) == 3


def test_where_the_final_training_diverges_the_next_seed_is_taken(
    setup: Setup, diverging: Callable[..., list[int]]
) -> None:
    contest = Contest(setup, [recipe_entrant(setup)])
    plain = contest.finish("trial 4", 2)
    first, second, _ = setup.spec.final_seeds(3)
    seen = diverging(first)
    result = contest.finish("trial 4", 2)
    assert seen == [first, second]
    assert result.seeds == (second,)
    assert result.training.backward == 2 * plain.training.backward


def test_members_are_trained_on_seeds_of_their_own(
    setup: Setup, diverging: Callable[..., list[int]]
) -> None:
    seeds = setup.spec.final_seeds(5)
    assert seeds[:3] == setup.spec.final_seeds(3)
    contest = Contest(setup, [recipe_entrant(setup)])
    single = contest.finish("trial 4", 1)
    seen = diverging(seeds[1])
    final = contest.finish("trial 4", 1, members=3)
    assert seen == list(seeds[:4])
    assert final.seeds == (seeds[0], *seeds[2:4]), "the next seed takes the place of a diverged one"
    assert final.training.backward == 4 * single.training.backward
    first, *others = contest.predict(final)
    assert np.array_equal(first, *contest.predict(single))
    assert not any(np.array_equal(first, other) for other in others)
    assert np.array_equal(setup.trainer.predict(setup.splits.test), first)


def test_a_model_may_have_fewer_members_than_were_asked_for(
    setup: Setup, diverging: Callable[..., list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    seeds = setup.spec.final_seeds(6)
    seen = diverging(*seeds[1:4])
    final = Contest(setup, [recipe_entrant(setup)]).finish("trial 4", 1, members=4)
    assert seen == list(seeds[:4])
    assert final.seeds == seeds[:1]
    assert "the model has 1 of 4 members" in caplog.text


@pytest.mark.parametrize("fits", [True, False])
def test_a_fitted_head_has_one_member_whatever_its_bits(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, *, fits: bool
) -> None:
    seen, fit = [], Trainer.fit

    def fitted(self: Trainer, recipe: Recipe, *images: Any, seed: int, **options: Any) -> RunResult:
        seen.append(seed)
        if not fits:  # as a network with two heads
            recipe = dataclasses.replace(recipe, fitted=False)
        result = fit(self, recipe, *images, seed=seed, **options)
        with torch.no_grad():  # as on another device
            self.model.get_parameter(setup.blocks[-1].parameter_names[0]).add_(1e-6 * len(seen))
        return result

    monkeypatch.setattr(Trainer, "fit", fitted)
    entrant = Entrant(name="linear-probe", method="linear-probe")
    final = Contest(setup, [entrant]).finish("linear-probe", 1, members=3)
    assert seen == list(setup.spec.final_seeds(3)[: 1 if fits else 3])
    assert len(final.members) == len(final.seeds) == len(seen)


def test_a_recipe_that_always_diverges_is_neither_tested_nor_exported(setup: Setup) -> None:
    entrant = recipe_entrant(setup)
    Contest(setup, [entrant]).finish(entrant.name, 1)
    entrant = dataclasses.replace(entrant, recipe=Recipe.full(setup.blocks, lr=1e6))
    contest = Contest(setup, [entrant])
    with pytest.raises(StudyError, match=r"rate 1e\+06, epochs 2\) diverged on 3 seeds") as caught:
        contest.finish(entrant.name, 2, members=5)
    assert "lower lr" in str(caught.value)


def test_a_baseline_takes_the_next_seed_too(
    setup: Setup, diverging: Callable[..., list[int]]
) -> None:
    seeds = setup.spec.final_seeds(3)
    seen = diverging(*seeds[:2])
    run_baseline(setup, "linear-probe", n_runs=1)
    assert seen == list(seeds)
    diverging(*seeds)
    test = run_baseline(setup, "linear-probe", n_runs=1).test
    assert test is not None
    assert test.score < 1, "tested as it is"


def test_a_rival_that_always_diverges_does_not_stop_a_confirmation(setup: Setup) -> None:
    entrant = Entrant(name="full", method="full", setting={"lr": 1e6})
    contest = Contest(setup, [entrant])
    final = contest.finish("full", 2, must_hold=False)
    test = contest.test("full", *contest.predict(final))
    assert test.low <= test.score <= test.high
    assert Contender(name="full", method="full").is_rival
