"""A connection lost at any call, before or after the database did the work, costs nothing."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial

from biotune_optuna.errors import StorageError
from biotune_optuna.schema import HOLDER_KEY
from biotune_optuna.storage import retry
from biotune_optuna.storage.lease import read_holder
from biotune_optuna.storage.open import open_storage
from tests.kit.faults import Faults, connection_lost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from biotune_optuna.storage.resilient import ResilientStorage

SPACE = {"x": optuna.distributions.FloatDistribution(0, 1)}


@pytest.fixture(autouse=True)
def quick_and_quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.0005)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(level)


def faulty(storage: ResilientStorage, faults: Faults) -> ResilientStorage:
    storage._backend = faults.around(storage._backend)
    if storage._database is not None:
        storage._database = faults.around(storage._database)
    return storage


def objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    trial.report(x, 0)
    trial.set_user_attr("seen", x)
    if trial.number == 2:
        raise optuna.TrialPruned
    return x + trial.suggest_int("n", 1, 3)


def play(storage: ResilientStorage, name: str = "s") -> list[tuple[Any, ...]]:
    """Create, enqueue, add, run two trials; return what the study then holds."""
    study = optuna.create_study(
        study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler(seed=1)
    )
    study.set_user_attr("a", 1)
    study.enqueue_trial({"x": 0.25})
    study.add_trial(create_trial(params={"x": 0.5}, distributions=SPACE, value=7.0))
    study.optimize(objective, n_trials=2)
    return [
        (t.number, t.state.name, t.values, t.params, t.intermediate_values, t.user_attrs)
        for t in study.get_trials(deepcopy=False)
    ]


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
@pytest.mark.parametrize("after", [False, True])
def test_each_call_of_a_study_may_fail_once(tmp_path: Path, kind: str, *, after: bool) -> None:
    url = f"sqlite:///{tmp_path}/s.db" if kind == "sqlite" else f"journal:///{tmp_path}/s.log"
    counting = Faults()
    expected = play(faulty(open_storage(url), counting))
    assert [row[1] for row in expected] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert counting.calls > 20
    storage = open_storage(url)
    faults = Faults(after=after)
    faulty(storage, faults)
    for call in range(1, counting.calls + 1):
        faults.calls, faults.at = 0, {call}
        assert play(storage, f"study {call}") == expected, counting.names[call - 1]
        assert faults.calls > counting.calls


def test_several_failures_in_a_row(tmp_path: Path) -> None:
    expected = play(open_storage(f"sqlite:///{tmp_path}/a.db"))
    faults = Faults(at={n for n in range(1, 2000) if n % 7 < 4}, after=True)
    assert play(faulty(open_storage(f"sqlite:///{tmp_path}/b.db"), faults)) == expected


def test_given_up_after_the_stated_time_with_one_line() -> None:
    storage = open_storage("memory://", retry_seconds=0.2)
    faulty(storage, Faults(at=set(range(1, 10_000))))
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"memory:// was lost for \d+ s: server closed"):
        storage.get_all_studies()
    assert 0.1 < time.monotonic() - began < 5


def test_a_worker_that_must_stop_does_not_wait() -> None:
    storage = open_storage("memory://", retry_seconds=300)
    faulty(storage, Faults(at=set(range(1, 10_000))))
    storage.retry.set_deadline(0.1)
    began = time.monotonic()
    with pytest.raises(StorageError):
        storage.get_all_studies()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("end", ["told", "ended"])
def test_a_trial_whose_end_cannot_be_written_is_kept_no_longer(tmp_path: Path, end: str) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", retry_seconds=0.01)
    study = optuna.create_study(storage=storage)
    trial = study.ask(SPACE)
    frozen = storage.get_trial(trial._trial_id)
    assert storage.heartbeat.trials() == {trial._trial_id}
    faulty(storage, Faults(at=set(range(100_000))))
    ends = {
        "told": lambda: storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [1.0]),
        "ended": lambda: storage.end_trial(study._study_id, frozen, "stopped"),
    }
    with pytest.raises(StorageError, match="was lost for"):
        ends[end]()
    assert not storage.heartbeat.trials()


def test_errors_that_are_not_the_connections_pass_through(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/a.db")
    study = optuna.create_study(study_name="s", storage=storage)
    with pytest.raises(DuplicatedStudyError):
        optuna.create_study(study_name="s", storage=storage)
    with pytest.raises(KeyError):
        storage.get_study_id_from_name("t")
    with pytest.raises(KeyError):
        storage.delete_study(77)
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [2.0])
    assert study.trials[0].value == 1.0


@pytest.mark.parametrize("kind", ["sqlite", "journal", "memory"])
def test_what_the_caller_was_handling_is_not_the_storages_error(tmp_path: Path, kind: str) -> None:
    urls = {"sqlite": f"sqlite:///{tmp_path}/s.db", "journal": f"journal:///{tmp_path}/s.log"}
    storage = open_storage(urls.get(kind, "memory://"))
    study = optuna.create_study(storage=storage)
    trial = study.ask(SPACE)
    try:
        (tmp_path / "recipe.json").read_text()
    except FileNotFoundError:
        with pytest.raises(KeyError):
            storage.get_study_id_from_name("t")
        assert storage.end_trial(study._study_id, storage.get_trial(trial._trial_id), "stopped")
        with pytest.raises(UpdateFinishedTrialError):
            trial.set_user_attr("late", 1)


def test_a_trial_names_its_holder_from_its_first_moment(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/a.db")
    study = optuna.create_study(study_name="s", storage=storage)
    study.enqueue_trial({"x": 0.5})
    waiting = study.get_trials()[0]
    assert HOLDER_KEY not in waiting.system_attrs
    for trial in (study.ask(), study.ask()):
        holder = read_holder(study.get_trials()[trial.number].system_attrs)
        assert holder is not None
        assert holder.is_dead() is False


def test_two_processes_never_pop_the_same_trial(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    first, second = open_storage(url), open_storage(url)
    study = optuna.create_study(study_name="s", storage=first)
    study.enqueue_trial({"x": 0.5})
    trial = study.get_trials()[0]
    assert second.get_trial(trial._trial_id).state == TrialState.WAITING
    assert first.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    assert not second.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    assert trial._trial_id in first.heartbeat
    assert trial._trial_id not in second.heartbeat


def test_a_copied_study_is_held_by_nobody(tmp_path: Path) -> None:
    source = open_storage(f"sqlite:///{tmp_path}/a.db")
    study = optuna.create_study(study_name="s", storage=source)
    study.ask()
    target = open_storage(f"sqlite:///{tmp_path}/b.db")
    optuna.copy_study(from_study_name="s", from_storage=source, to_storage=target)
    (copied,) = optuna.load_study(study_name="s", storage=target).trials
    assert copied.state == TrialState.RUNNING
    assert read_holder(copied.system_attrs) is None


def declare_dead(storage: ResilientStorage, trial: optuna.Trial) -> None:
    other = open_storage(storage.url.url)
    frozen = other.get_trial(trial._trial_id)
    assert other.end_trial(trial.study._study_id, frozen, "lost")


@pytest.mark.parametrize("moment", ["suggest", "report", "attribute", "tell"])
def test_a_trial_declared_dead_by_mistake_adds_its_value(tmp_path: Path, moment: str) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/a.db")
    study = optuna.create_study(study_name="s", storage=storage)

    def live(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        if moment == "suggest":
            declare_dead(storage, trial)
        y = trial.suggest_float("y", 0, 1)
        trial.report(0.1, 0)
        if moment == "report":
            declare_dead(storage, trial)
        trial.report(0.2, 1)
        if moment == "attribute":
            declare_dead(storage, trial)
        trial.set_user_attr("role", "offspring")
        trial.set_user_attr("mine", [1])
        trial.set_system_attr("biotune:slot", 3) if hasattr(trial, "set_system_attr") else None
        if moment == "tell":
            declare_dead(storage, trial)
        return y

    study.optimize(live, n_trials=2, callbacks=[lambda s, _t: s.stop()])
    dead, added = study.trials
    assert dead.state == TrialState.FAIL
    assert dead.system_attrs["biotune:ended"] == "lost"
    assert added.state == TrialState.COMPLETE
    assert added.value == added.params["y"]
    assert set(added.params) == {"x", "y"}
    assert added.intermediate_values == {0: 0.1, 1: 0.2}
    assert added.user_attrs == {"mine": [1], "role": "added"}
    assert added.system_attrs["biotune:late_result_of"] == dead.number
    assert HOLDER_KEY not in added.system_attrs
    # The worker lives on.
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=1)
    assert study.trials[-1].state == TrialState.COMPLETE


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_value_told_elsewhere_is_the_trials_value(tmp_path: Path, kind: str) -> None:
    url = f"sqlite:///{tmp_path}/s.db" if kind == "sqlite" else f"journal:///{tmp_path}/s.log"
    storage = open_storage(url)
    study = optuna.create_study(study_name="s", storage=storage)
    elsewhere = optuna.load_study(study_name="s", storage=open_storage(url))
    for value in (0.0, 1.0):
        trial = study.ask(SPACE)
        elsewhere.tell(trial.number, value)
        with pytest.raises(UpdateFinishedTrialError):
            trial.set_user_attr("late", 1)
        assert storage.get_trial(trial._trial_id).state == TrialState.COMPLETE
        assert study.tell(trial, 9.0, skip_if_finished=True).value == value
    assert [t.value for t in study.trials] == [0.0, 1.0]
    assert not storage.heartbeat.trials()


def test_a_value_whose_answer_got_lost_is_told_once(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/a.db", retry_seconds=0.1)
    study = optuna.create_study(study_name="s", storage=storage)
    trial = study.ask(SPACE)
    backend = storage._backend
    tell = backend.set_trial_state_values

    def told_and_gone(*args: Any) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            tell(*args)
        raise connection_lost()

    backend.set_trial_state_values = told_and_gone
    with pytest.raises(StorageError):
        study.tell(trial, 1.0)
    backend.set_trial_state_values = tell
    assert study.tell(trial, 1.0, skip_if_finished=True).value == 1.0
    assert [t.value for t in study.trials] == [1.0]


def test_a_dead_worker_queue_entry_is_queued_again_exactly_once(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/a.db")
    study = optuna.create_study(study_name="s", storage=storage)
    study.enqueue_trial({"x": 0.5}, user_attrs={"why": "mine"})
    frozen = storage.get_trial(study.ask()._trial_id)
    faults = Faults(at={1}, after=True)  # the answer to the first attempt gets lost
    storage._database = faults.around(storage._database)
    storage.end_trial(study._study_id, frozen, "lost")
    assert not storage.end_trial(study._study_id, frozen, "lost")
    failed, waiting = study.trials
    assert (failed.state, waiting.state) == (TrialState.FAIL, TrialState.WAITING)
    assert waiting.system_attrs["fixed_params"] == {"x": 0.5}
    assert waiting.user_attrs == {"why": "mine"}
    assert study.ask().suggest_float("x", 0, 1) == 0.5


@pytest.mark.parametrize("kind", ["journal", "memory"])
@pytest.mark.parametrize("after", [False, True])
def test_without_transactions_too_nothing_leaves_the_queue(
    tmp_path: Path, kind: str, *, after: bool
) -> None:
    storage = open_storage(f"journal:///{tmp_path}/s.log" if kind == "journal" else "memory://")
    backend = storage._backend
    for call in (1, 2, 3):  # reason, state, queue
        study = optuna.create_study(storage=storage)
        study.enqueue_trial({"x": 0.5})
        frozen = storage.get_trial(study.ask()._trial_id)
        storage._backend = Faults(at={call}, after=after).around(backend)
        assert storage.end_trial(study._study_id, frozen, "lost")
        assert not storage.end_trial(study._study_id, frozen, "lost")
        assert [t.state.name for t in study.trials] == ["FAIL", "WAITING"]
        storage._backend = backend


def test_leases_go_on_after_retry(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/a.db")
    study = optuna.create_study(study_name="s", storage=storage)
    faults = Faults(at={1, 2, 3})
    storage.heartbeat._raise_counter = faults.wrap("beat", storage.heartbeat._raise_counter)
    storage.heartbeat.seconds = 0.02
    trial = study.ask()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        counter = storage.get_trial(trial._trial_id).system_attrs.get("biotune:lease", 0)
        if counter > 5:
            break
        time.sleep(0.02)
    assert counter > 5
    study.tell(trial, 1.0)
    assert trial._trial_id not in storage.heartbeat
