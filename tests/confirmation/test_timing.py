"""A study's clock: it follows what was measured, ends a search in time, and is stored."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import optuna
import pytest

from biotune_optuna.clock import SEARCH_SHARE, Plan, Work
from biotune_optuna.confirmation import planning
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.planning import plan_within, timing_of
from biotune_optuna.confirmation.timing import Timing, plan_of, work_of
from biotune_optuna.errors import StudyError
from biotune_optuna.schema import CLOCK_KEY
from biotune_optuna.study.study import TuningStudy
from tests.kit.studies import tiny_spec

if TYPE_CHECKING:
    from biotune_optuna.study.setup import Setup

PLAN = Plan(image_size=64, epochs=5, trials=10)


def timing(**more: object) -> Timing:
    facts: dict[str, object] = {"plan": PLAN, "work": Work(50, 20), "full": 4.0}
    return Timing(**(facts | more))  # type: ignore[arg-type]


def test_trials_that_are_slower_than_expected_move_the_whole_forecast() -> None:
    clock = timing()
    before = clock.forecast()
    assert clock.trial == pytest.approx(SEARCH_SHARE * 4)
    clock.trials, clock.shares, clock.done = [6.0] * 8, [SEARCH_SHARE] * 8, 8
    after = clock.forecast()
    assert after.search == pytest.approx(2 * clock.trial)
    assert after.confirmation / before.confirmation == pytest.approx(
        clock.trial / (4 * SEARCH_SHARE)
    )
    assert 5.8 < clock.trial < 6


def test_a_cheap_recipe_does_not_make_full_trainings_look_cheap() -> None:
    clock = timing()
    clock.trials, clock.shares, clock.done = [0.4, 6.0], [0.05, 0.75], 2
    assert clock.full_now == pytest.approx(8, rel=0.2), "twice as slow as expected"
    assert clock.trial < clock.full_now


def test_confirmation_counts_down_by_what_its_trainings_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = timing(began=100.0)
    clock.training_begins(0, 20)
    parts = clock.forecast()
    every = clock.after().left(0, 20)
    assert len(every) == 20
    assert clock.left() == pytest.approx(sum(every) + parts.report)
    for done in range(1, 20):
        now[0] += 3 * every[done - 1]  # three times as slow
        clock.training_begins(done, 20)
        slow = 3 * sum(every[done:])
        if done > 2:
            assert clock.left() - parts.report == pytest.approx(slow, rel=0.2)
    assert clock.left() - parts.report == pytest.approx(3 * every[-1], rel=0.1)


def test_trials_that_end_early_make_what_follows_shorter() -> None:
    """Half of the epochs, at the same speed: so will full fine-tuning end."""
    usual = timing(full=10.0, trials=[9.0] * 20, shares=[0.9] * 20, epochs=[0.9] * 20)
    early = timing(full=10.0, trials=[4.5] * 20, shares=[0.45] * 20, epochs=[0.45] * 20)
    assert usual.full_now == pytest.approx(usual.full)
    ratio = early.forecast().confirmation / usual.forecast().confirmation
    assert ratio == pytest.approx((20 * 0.45 + 2 * 0.9) / (22 * 0.9))


def test_what_is_done_between_trials_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock, study = timing(), optuna.create_study()

    def draw(*_: object) -> None:
        now[0] += 5

    study.optimize(lambda _: 1.0, n_trials=3, callbacks=[clock.trial_finished, draw])
    assert clock.trials[0] < 1
    assert clock.trials[1:] == [5, 5]


def test_reading_many_large_images_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Images:
        def __len__(self) -> int:
            return 800

        def load(self, _: int) -> None:
            now[0] += 0.25

    monkeypatch.setattr(planning.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(planning, "worker_count", lambda: 2)
    assert planning._reading(Images()) == pytest.approx(100)
    assert now[0] < 3


def test_nothing_follows_the_search_whose_own_models_are_the_model() -> None:
    usual, alone = timing(), timing(work=Work(50, 20, 20, from_search=True))
    assert usual.forecast().confirmation > 0
    parts = alone.forecast()
    assert (parts.confirmation, parts.final) == (0, 0)
    assert parts.search == usual.forecast().search
    alone.training_begins(0, 1)  # the choice
    assert alone.left() == pytest.approx(parts.report, abs=1)
    alone.trainings_over()
    assert alone.left() == pytest.approx(parts.report, abs=1)
    evidence = ConfirmPlan(from_search=True, members=4)
    assert timing(evidence=evidence, limit=1.0).confirm_plan(None) is evidence  # type: ignore[arg-type]


def test_the_search_ends_in_time_for_what_comes_after_it() -> None:
    clock = timing(limit=1000.0, trials=[3.0] * 50, done=50)
    assert not clock.is_time_up
    clock.spent = 1000 - clock.forecast().after
    assert clock.is_time_up

    def objective(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", 0, 1)

    study = optuna.create_study()
    study.optimize(objective, n_trials=5, callbacks=[clock.trial_finished])
    assert len(study.trials) == 1
    assert clock.done == 51
    unlimited = timing()
    study.optimize(objective, n_trials=5, callbacks=[unlimited.trial_finished])
    assert unlimited.done == 5


def test_the_clock_of_a_study_is_stored_and_found_again(setup: Setup) -> None:
    study = TuningStudy(optuna.create_study(), setup)
    clock = timing_of(study, 12, ConfirmPlan())
    assert clock.full > 0
    assert clock.work.n_train == len(setup.splits.train)
    clock.store(study.study)
    stored = study.study.user_attrs[CLOCK_KEY]
    assert plan_of(stored) == clock.plan
    assert work_of(stored) == clock.work
    assert timing_of(study, 12, ConfirmPlan()).full == clock.full  # nothing is measured again


def test_the_evidence_is_chosen_once(setup: Setup) -> None:
    study = TuningStudy(optuna.create_study(), setup)
    assert timing().confirm_plan(study) == ConfirmPlan()
    clock = timing(limit=60.0, done=5, trials=[3.0] * 5)
    chosen = clock.confirm_plan(study)
    assert chosen.n_runs < 3
    again = timing(limit=60.0, spent=50.0, done=5, trials=[3.0] * 5)
    assert again.confirm_plan(study) == chosen


def test_a_plan_for_a_time_keeps_what_was_given() -> None:
    spec = dataclasses.replace(tiny_spec(), image_size=None)
    made, plan = plan_within(3600, spec, given={"trials": 7, "image_size": 40}, device="cpu")
    assert (made.image_size, plan.image_size, plan.trials) == (40, 40, 7)
    assert made.train.epochs == plan.epochs
    with pytest.raises(StudyError, match="too short on this machine"):
        plan_within(0.01, spec, given={}, device="cpu")
    with pytest.raises(StudyError, match="the least that can be done takes about 2 h"):
        plan_within(3600, spec, given={}, device="cpu", spent=7200)
