"""The worker's loop: totals, failures, a lost storage, leases."""

from __future__ import annotations

import dataclasses
import threading
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from biotune_optuna.errors import LostDeviceError, StorageError, StudyError
from biotune_optuna.schema import ENDED_KEY, ERROR_KEY, HOLDER_KEY
from biotune_optuna.storage import retry
from biotune_optuna.storage.holder import current_holder
from biotune_optuna.storage.lease import LeaseWatch
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study import worker as workers
from biotune_optuna.study.stale import StaleTrials
from biotune_optuna.study.totals import count
from biotune_optuna.study.worker import StopRequest, run_trials
from tests.kit.faults import Faults
from tests.kit.studies import make, objective, states

pytestmark = pytest.mark.usefixtures("quiet")


# -- totals


@pytest.mark.parametrize("sampler", ["biotune", "random"])
def test_n_trials_is_a_total_of_the_study(sampler: str) -> None:
    study = make(sampler=sampler)
    study.add_trial(create_trial(value=1.0))
    run_trials(study, objective, n_trials=5)
    assert states(study) == ["COMPLETE"] * 5
    run_trials(study, objective, n_trials=5)
    assert len(study.trials) == 5
    run_trials(study, objective, n_trials=7)
    assert states(study) == ["COMPLETE"] * 7


def test_pruned_trials_count_and_failed_ones_do_not() -> None:
    def some_fail(trial: optuna.Trial) -> float:
        x = objective(trial)
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number in {2, 4}:
            raise RuntimeError("out of luck")
        return x

    study = make()
    run_trials(study, some_fail, n_trials=4)
    assert states(study) == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    assert count(study).finished == 4
    # The sampler evaluates the failed trial's genome again.
    assert study.trials[3].params == study.trials[2].params


def test_a_slot_given_up_counts() -> None:
    bad: list[float] = []

    def one_genome_fails(trial: optuna.Trial) -> float:
        x = objective(trial)
        if trial.number == 2:
            bad.append(x)
        if x in bad:
            raise RuntimeError("this genome does not train")
        return x

    study = make()
    run_trials(study, one_genome_fails, n_trials=5)
    assert states(study) == [*["COMPLETE"] * 2, *["FAIL"] * 3, *["COMPLETE"] * 2]
    assert count(study).finished == 5


def test_a_trial_begins_only_if_those_below_it_leave_room() -> None:
    study = make()
    other = study.ask()  # some other worker's, number 0

    def finish_other_late(trial: optuna.Trial) -> float:
        if trial.number == 2:
            study.tell(other, 0.5)
        return objective(trial)

    run_trials(study, finish_other_late, n_trials=3)
    assert states(study) == ["COMPLETE"] * 3


def test_surplus_trials_end_at_once_unevaluated_and_uncounted() -> None:
    study = make()
    evaluated = []
    ask = study.ask

    def ask_after_others(*args: Any, **kwargs: Any) -> optuna.Trial:
        if not evaluated:  # another worker is faster, by one trial
            study.tell(ask(), 0.5)
        return ask(*args, **kwargs)

    study.ask = ask_after_others  # type: ignore[method-assign]

    def watched(trial: optuna.Trial) -> float:
        evaluated.append(trial.number)
        return objective(trial)

    run_trials(study, watched, n_trials=1)
    assert evaluated == []
    assert states(study) == ["COMPLETE", "FAIL"]
    assert study.trials[1].system_attrs["biotune:ended"] == "surplus"
    assert count(study).finished == 1


def test_timeout_begins_no_trial_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    study = make()
    now = [0.0]
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def takes_a_second(trial: optuna.Trial) -> float:
        now[0] += 1.0
        return objective(trial)

    run_trials(study, takes_a_second, timeout=2.5)
    assert len(study.trials) == 3
    run_trials(study, takes_a_second, timeout=0.5)
    assert len(study.trials) == 4


def test_study_stop_and_callbacks() -> None:
    study = make()
    seen: list[int] = []

    def callback(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        assert trial.state == TrialState.COMPLETE
        seen.append(trial.number)
        if trial.number == 2:
            study.stop()

    run_trials(study, objective, n_trials=10, callbacks=[callback])
    assert seen == [0, 1, 2]


# -- failures


def test_the_error_is_kept_without_secrets() -> None:
    study = make()

    def fails_first(trial: optuna.Trial) -> float:
        if trial.number == 0:
            raise OSError("no answer from postgresql://bob:hunter2@host/db")
        return objective(trial)

    run_trials(study, fails_first, n_trials=1)
    assert study.trials[0].user_attrs["error"] == (
        "OSError: no answer from postgresql://bob:***@host/db"
    )


@pytest.mark.parametrize("value", [None, "abc", float("nan"), [1.0, 2.0]])
def test_what_is_no_number_is_a_failure(value: Any) -> None:
    study = make(sampler="random")

    def returns(trial: optuna.Trial) -> float:
        x = objective(trial)
        return value if trial.number == 0 else x

    run_trials(study, returns, n_trials=1)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert "the objective returned" in study.trials[0].user_attrs["error"]


def test_three_failures_of_one_kind_stop_the_worker_with_one_line() -> None:
    study = make()

    def fails(trial: optuna.Trial) -> float:
        objective(trial)
        raise MemoryError("out of memory\nat device 0")

    with pytest.raises(StudyError) as caught:
        run_trials(study, fails, n_trials=10)
    message = str(caught.value)
    assert "3 trials in a row" in message
    assert "MemoryError: out of memory at device 0" in message
    assert "\n" not in message
    assert states(study) == ["FAIL"] * 3


def test_a_lost_gpu_ends_the_worker_and_hands_its_trial_back() -> None:
    study = make()
    lost = [True]

    def lose(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.number == 1 and lost.pop():
            raise LostDeviceError("device cuda:0 failed: CUDA error: device-side assert triggered")
        return value

    with pytest.raises(LostDeviceError, match="cannot use the device any more"):
        run_trials(study, lose, n_trials=3)
    assert states(study) == ["COMPLETE", "FAIL"]
    ended = study.trials[1]
    assert ended.system_attrs[ENDED_KEY] == "stopped"
    assert ERROR_KEY not in ended.user_attrs, "it is nobody's failure"
    run_trials(study, objective, n_trials=3)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[2].params == ended.params


def test_failures_of_different_kinds_do_not_stop_it() -> None:
    study = make(sampler="random")
    kinds = [ValueError, OSError, ValueError, OSError, KeyError, ValueError]

    def fails(trial: optuna.Trial) -> float:
        if trial.number < len(kinds):
            raise kinds[trial.number]("no")
        return objective(trial)

    run_trials(study, fails, n_trials=2)
    assert states(study) == [*["FAIL"] * 6, *["COMPLETE"] * 2]


def test_after_a_success_three_different_genomes_must_fail() -> None:
    study = make()

    def fails_from_one(trial: optuna.Trial) -> float:
        x = objective(trial)
        if trial.number > 0:
            raise RuntimeError("the disk is gone")
        return x

    with pytest.raises(StudyError):
        run_trials(study, fails_from_one, n_trials=10)
    failed = study.trials[1:]
    assert len({t.params["x"] for t in failed}) == 3


def test_a_failing_ask_ends_no_trial_of_another_thread(url: str) -> None:
    """Two studies in one storage: the sampler of one fails while the other evaluates."""
    evaluating = make(url)
    asking, begun, failed = threading.Event(), threading.Event(), threading.Event()

    class Broken(optuna.samplers.RandomSampler):
        def before_trial(self, *_args: object) -> None:
            asking.set()
            begun.wait(60)
            raise ValueError("out of order")

    broken = optuna.create_study(storage=evaluating._storage, sampler=Broken())

    def slow(trial: optuna.Trial) -> float:
        begun.set()
        failed.wait(60)
        return objective(trial)

    def evaluate() -> None:
        asking.wait(60)
        run_trials(evaluating, slow, n_trials=1)

    thread = threading.Thread(target=evaluate)
    thread.start()
    with pytest.raises(ValueError, match="out of order"):
        run_trials(broken, objective, n_trials=1)
    failed.set()
    thread.join(60)
    assert states(evaluating) == ["COMPLETE"]
    assert states(broken) == ["FAIL"]


# -- losing the storage


def test_the_storage_lost_for_good_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.001)
    study = make()
    storage: Any = study._storage
    storage.retry.seconds = 0.1
    faults = Faults()
    storage._backend = faults.around(storage._backend)

    def unplug(trial: optuna.Trial) -> float:
        faults.at = set(range(faults.calls, faults.calls + 100_000))
        return objective(trial)

    with pytest.raises(StorageError, match="was lost for"):
        run_trials(study, unplug, n_trials=3)
    faults.at = set()
    assert storage.retry._time_left(0.0) > 0  # the same storage is usable again
    elsewhere = make()  # another storage, in which a trial of the same id runs
    assert elsewhere.ask()._trial_id == study.trials[0]._trial_id
    run_trials(study, objective, n_trials=1)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[0].system_attrs["biotune:ended"] == "lost"


@pytest.mark.parametrize("queued", [False, True], ids=["new", "from the queue"])
def test_a_trial_that_is_just_being_created_is_not_taken_for_lost(url: str, queued: bool) -> None:
    study = make(url)
    if queued:
        study.enqueue_trial({"x": 0.5})
    storage: Any = study._storage
    stale_trials, seen = StaleTrials(study), []
    write = storage._write

    def write_and_look(call: Any) -> Any:
        done = write(call)
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        seen.extend(trial.number for trial in running)
        assert stale_trials.fail(running) == 0
        return done

    storage._write = write_and_look  # as the thread that looks for stale trials may at any time
    study.tell(study.ask(), 1.0)
    assert 0 in seen
    assert states(study) == ["COMPLETE"]


def test_a_trial_declared_dead_by_mistake_adds_its_value_and_the_worker_lives(url: str) -> None:
    study = make(url)

    def declared_dead(trial: optuna.Trial) -> float:
        x = objective(trial)
        if trial.number == 1:
            other = open_storage(url)
            assert other.end_trial(study._study_id, other.get_trial(trial._trial_id), "lost")
            trial.report(x, 3)
        return x

    run_trials(study, declared_dead, n_trials=4)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    late = study.trials[2]
    assert late.system_attrs["biotune:late_result_of"] == 1
    assert late.user_attrs["role"] == "added"
    assert late.intermediate_values == {3: late.value}
    # Its slot has come back, with its genome.
    assert study.trials[3].params == study.trials[1].params


def test_a_trial_given_away_before_it_began_is_abandoned(url: str) -> None:
    study = make(url)
    claimed = study.sampler.before_trial
    given: list[int] = []

    def give_away(study_: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number == 1:
            other = open_storage(url)
            given.append(trial.number)
            assert other.end_trial(study._study_id, other.get_trial(trial._trial_id), "lost")
        claimed(study_, trial)

    study.sampler.before_trial = give_away  # type: ignore[method-assign]
    run_trials(study, objective, n_trials=3)
    assert given == [1]
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_plain_optuna_storage_will_do() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({"x": 0.5})
    stop = StopRequest()

    def stops(trial: optuna.Trial) -> float:
        objective(trial)
        stop.request()
        stop.check()
        raise AssertionError

    run_trials(study, stops, n_trials=3, stop=stop)
    assert states(study) == ["FAIL", "WAITING"]
    run_trials(study, objective, n_trials=3)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert study.trials[1].params["x"] == 0.5


def test_trials_of_workers_elsewhere_are_stale_by_their_lease_alone(url: str) -> None:
    study = make(url)
    now = [0.0]
    stale_trials = StaleTrials(study, watch=LeaseWatch(seconds=60, clock=lambda: now[0]))
    storage: Any = study._storage
    storage.heartbeat.seconds = 1e9
    trial, living = study.ask(), study.ask()
    for one in (trial, living):
        one.suggest_float("x", 0, 1)
        elsewhere = dataclasses.replace(current_holder(), host="elsewhere", pid=one.number + 1)
        _, token = storage.get_trial_system_attrs(one._trial_id)[HOLDER_KEY]
        storage.set_trial_system_attr(one._trial_id, HOLDER_KEY, [elsewhere.to_str(), token])
    for step in range(12):
        now[0] += 10.0
        storage.set_trial_system_attr(living._trial_id, "biotune:lease", step)
        stale_trials.fail(study.get_trials(states=(TrialState.RUNNING,)))
    assert states(study) == ["FAIL", "RUNNING"]
