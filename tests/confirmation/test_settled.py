"""What is confirmed is settled when a confirmation begins, whatever comes late."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from biotune_optuna.cli.finish import Finish
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.record import Confirmation
from biotune_optuna.confirmation.settled import Settled, settle
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.setup import Setup
from biotune_optuna.study.study import TuningStudy


@pytest.fixture
def study(url: str) -> optuna.Study:
    """Four trials: COMPLETE, FAIL, COMPLETE and one that runs; and one that waits."""
    study = optuna.create_study(study_name="s", storage=open_storage(url), direction="maximize")
    study.tell(study.ask(), 0.5)
    study.tell(study.ask(), state=TrialState.FAIL)
    study.tell(study.ask(), 0.6)
    study.ask()
    study.enqueue_trial({})
    return study


def numbers(study: optuna.Study) -> list[int]:
    return [trial.number for trial in settle(study)]


def add(study: optuna.Study, late_of: int | None = None) -> None:
    attrs = {} if late_of is None else {"biotune:late_result_of": late_of}
    study.add_trial(create_trial(value=0.9, system_attrs=attrs))


def finish_running(study: optuna.Study) -> None:
    study._storage.set_trial_state_values(study.trials[3]._trial_id, TrialState.COMPLETE, [0.7])


@pytest.mark.parametrize("late", [lambda study: add(study, late_of=1), finish_running])
def test_a_result_that_comes_late_changes_nothing(
    study: optuna.Study, url: str, late: Callable[[optuna.Study], None]
) -> None:
    assert numbers(study) == [0, 2]
    late(study)
    other = optuna.load_study(study_name="s", storage=open_storage(url))
    assert numbers(other) == numbers(study) == [0, 2]
    confirmed = Confirmation(basis={"trials": 2}, chosen="trial 0")
    assert confirmed.unconfirmed(study.trials, study.user_attrs) is None
    add(study)
    said = confirmed.unconfirmed(study.trials, study.user_attrs)
    assert said is not None
    assert said.startswith("Confirmed on 2 of 4 trials")
    assert len(numbers(study)) == 4, "the search has gone on"
    assert numbers(other) == numbers(study)
    assert len([key for key in study.user_attrs if key.startswith("settled: ")]) == 2


def test_a_trial_that_runs_is_not_shut_out_where_none_is_complete(url: str) -> None:
    study = optuna.create_study(study_name="t", storage=open_storage(url), direction="maximize")
    trial = study.ask()
    assert numbers(study) == []
    study.tell(trial, 0.5)
    assert numbers(study) == [0]


def test_a_result_that_came_before_counts(study: optuna.Study) -> None:
    add(study, late_of=1)
    assert numbers(study) == [0, 2, 5]


def test_a_trial_that_waited_is_search_that_goes_on(study: optuna.Study) -> None:
    assert numbers(study) == [0, 2]
    study.tell(study.ask(), 0.8)  # the one in the queue
    assert numbers(study) == [0, 2, 4]


def test_of_two_that_settle_at_once_the_first_counts(
    study: optuna.Study, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = Settled.now

    def slowly(trials: list[optuna.trial.FrozenTrial]) -> Settled:
        monkeypatch.setattr(Settled, "now", now)
        found = now(trials)
        add(study, late_of=1)
        other = optuna.load_study(study_name="s", storage=open_storage(url))
        assert numbers(other) == [0, 2, 5], "it saw more, and was the first to write"
        return found

    monkeypatch.setattr(Settled, "now", slowly)
    assert numbers(study) == [0, 2, 5]


def test_the_end_of_a_study_has_one_name(study: optuna.Study, setup: Setup, tmp_path: Path) -> None:
    ends = [
        Finish(TuningStudy(study, setup), ConfirmPlan(), tmp_path, *[None] * 3)  # type: ignore[arg-type]
        for _ in range(2)
    ]
    before = ends[0]._key()
    add(study, late_of=1)
    assert ends[1]._key() == before
    assert dataclasses.replace(ends[1], plan=ConfirmPlan(members=1))._key() != before
    add(study)
    assert ends[0]._key() != before
