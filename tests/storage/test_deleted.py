"""A study that is deleted while somebody works on it: nothing reaches the next one of its id."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from biotune_optuna.errors import DeletedStudyError
from biotune_optuna.storage.open import keep_user_attr, open_storage
from biotune_optuna.storage.resilient import ResilientStorage
from biotune_optuna.study.worker import run_trials

KINDS = ["sqlite", "journal"]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else f"{tmp_path}/s.log"


def replace(url: str, name: str) -> optuna.Study:
    """Another program deletes the study "old" and begins another, by Optuna alone."""
    plain: str | BaseStorage = url
    if not url.startswith("sqlite"):
        backend = optuna.storages.journal.JournalFileBackend(url)
        plain = optuna.storages.JournalStorage(backend)
    optuna.delete_study(study_name="old", storage=plain)
    study = optuna.create_study(study_name=name, storage=plain)
    study.ask()  # a trial that gets the first one's id
    study.enqueue_trial({"x": 0.25})
    return study


def state_of(study: optuna.Study) -> object:
    trials = study.get_trials()
    return (
        study.user_attrs,
        study._storage.get_study_system_attrs(study._study_id),
        [(t, t.user_attrs, t.system_attrs) for t in trials],
    )


WRITES: dict[str, Callable[[ResilientStorage, int, int], object]] = {
    "a trial": lambda s, study, _: s.create_new_trial(study),
    "a user attribute": lambda s, study, _: s.set_study_user_attr(study, "k", 1),
    "a system attribute": lambda s, study, _: s.set_study_system_attr(study, "k", 1),
    "the deletion": lambda s, study, _: s.delete_study(study),
    "a trial's attribute": lambda s, _, trial: s.set_trial_user_attr(trial, "k", 1),
    "a trial's system attribute": lambda s, _, trial: s.set_trial_system_attr(trial, "k", 1),
    "a report": lambda s, _, trial: s.set_trial_intermediate_value(trial, 1, 0.5),
    "a result": lambda s, _, trial: s.set_trial_state_values(trial, TrialState.COMPLETE, [1.0]),
    "a failure": lambda s, _, trial: s.set_trial_state_values(trial, TrialState.FAIL),
    "a parameter": lambda s, _, trial: s.set_trial_param(
        trial, "y", 0.5, optuna.distributions.FloatDistribution(0, 1)
    ),
}


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize("name", ["old", "new"])
def test_no_write_reaches_the_next_study(url: str, what: str, name: str) -> None:
    storage = open_storage(url, retry_seconds=1)
    old = optuna.create_study(study_name="old", storage=storage)
    trial = old.ask()
    other = replace(url, name)
    before = state_of(other)
    is_trials = what in {"a result", "a failure", "a report", "a parameter"} or "trial's" in what
    if is_trials and not url.startswith("sqlite"):
        WRITES[what](storage, old._study_id, trial._trial_id)  # into the deleted one, for nobody
    else:
        with pytest.raises(DeletedStudyError, match="study 'old' was deleted while it was worked"):
            WRITES[what](storage, old._study_id, trial._trial_id)
    assert state_of(other) == before


def test_what_is_kept_once_and_ended_is_not_the_next_studys(url: str) -> None:
    storage = open_storage(url, retry_seconds=1)
    old = optuna.create_study(study_name="old", storage=storage)
    old.ask()
    trial = old.get_trials()[0]
    other = replace(url, "new")
    before = state_of(other)
    with pytest.raises(DeletedStudyError):
        keep_user_attr(old, "key", 1)
    if url.startswith("sqlite"):
        with pytest.raises(DeletedStudyError):
            storage.end_trial(old._study_id, trial, "lost")
        with pytest.raises(DeletedStudyError):  # of the queue that is now the other's
            storage.set_trial_state_values(other.get_trials()[1]._trial_id, TrialState.RUNNING)
    assert state_of(other) == before


def test_the_heartbeat_leaves_the_next_studys_trial_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    storage = open_storage(url, retry_seconds=1)
    old = optuna.create_study(study_name="old", storage=storage)
    trial = old.ask()
    other = replace(url, "new")
    before = state_of(other)
    ((_, ours),) = storage.heartbeat._trials.items()
    storage.heartbeat._beat(trial._trial_id, ours)
    assert trial._trial_id not in storage.heartbeat
    with pytest.raises(DeletedStudyError):  # now as before
        trial.report(0.5, 1)
    assert state_of(other) == before


@pytest.mark.parametrize("again", [False, True])
def test_a_worker_of_a_deleted_study_ends_with_one_line(
    url: str, again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(url, retry_seconds=1)
    old = optuna.create_study(study_name="old", storage=storage)
    others: list[optuna.Study] = []

    def objective(trial: optuna.Trial) -> float:
        value = trial.suggest_float("x", 0, 1)
        if trial.number == 2:
            if again:
                others.append(replace(url, "new"))
            else:
                optuna.delete_study(study_name="old", storage=open_storage(url))
        return value

    with caplog.at_level(logging.WARNING), pytest.raises(DeletedStudyError) as caught:
        run_trials(old, objective, n_trials=5)
    assert str(caught.value).startswith("study 'old' was deleted while it was worked on")
    assert "\n" not in str(caught.value)
    for other in others:
        assert [t.state for t in other.get_trials()] == [TrialState.RUNNING, TrialState.WAITING]
        assert not any("y" in t.params or t.user_attrs for t in other.get_trials())


def test_a_study_begun_anew_by_the_same_storage_is_worked_on(url: str) -> None:
    storage = open_storage(url)
    for _ in range(2):
        study = optuna.create_study(study_name="s", storage=storage)
        run_trials(study, lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        assert len(study.trials) == 2
        optuna.delete_study(study_name="s", storage=storage)
    with pytest.raises(KeyError) as caught:
        optuna.load_study(study_name="s", storage=storage)
    assert not isinstance(caught.value, DeletedStudyError)


def test_a_study_that_another_program_began_anew_is_found_by_its_name(url: str) -> None:
    storage = open_storage(url)
    optuna.create_study(study_name="old", storage=storage).ask()
    replace(url, "old")
    found = optuna.load_study(study_name="old", storage=storage)
    run_trials(
        found, lambda trial: trial.suggest_float("x", 0, 1), n_trials=3, wait_for_others=False
    )
    assert sum(trial.state == TrialState.COMPLETE for trial in found.trials) == 2
