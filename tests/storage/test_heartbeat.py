"""The thread that raises counters lives as long as there are trials."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest
from optuna.exceptions import UpdateFinishedTrialError

from biotune_optuna.storage import heartbeat as module
from biotune_optuna.storage.heartbeat import Heartbeat, runs_here


class Counters:
    """Stands for a storage: notes what is written, and tells when."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int]] = []
        self.beaten = threading.Event()

    def write(self, trial_id: int, value: int) -> None:
        self.written.append((trial_id, value))
        self.beaten.set()

    def release(self) -> None: ...


def test_the_thread_ends_with_the_last_trial_and_begins_anew() -> None:
    counters = Counters()
    heartbeat = Heartbeat(counters.write, counters.release, seconds=0.01)
    for trial_id in (1, 2):
        counters.beaten.clear()
        heartbeat.add(trial_id, f"token {trial_id}")
        thread = heartbeat._thread
        assert thread is not None
        assert counters.beaten.wait(30)
        heartbeat.remove(trial_id)
        thread.join(30)
        assert not thread.is_alive()
    assert {trial_id for trial_id, _ in counters.written} == {1, 2}
    kept = weakref.ref(counters)
    del heartbeat, counters, thread
    gc.collect()
    assert kept() is None, "nothing holds the storage any more"


def test_storages_may_come_and_go_while_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Heartbeat(lambda *_: None, lambda: None, seconds=1e9)
    held.add(1, "a token")

    class Changing:
        changes = 2

        def __iter__(self) -> Iterator[Heartbeat]:
            yield held
            if self.changes:
                self.changes -= 1
                raise RuntimeError("Set changed size during iteration")

    monkeypatch.setattr(module, "_heartbeats", Changing())
    assert runs_here("a token")
    assert not runs_here("another")
    held.remove(1)
    assert not runs_here("a token")


def test_a_thread_knows_the_trials_that_it_began() -> None:
    mine = Heartbeat(lambda *_: None, lambda: None, seconds=1e9)
    mine.add(1, "one")
    thread = threading.Thread(target=mine.add, args=(2, "two"))
    thread.start()
    thread.join(30)
    assert mine.trials() == {1, 2}
    assert mine.trials_of_this_thread() == {1}
    mine.remove(1)
    assert not mine.trials_of_this_thread()


def test_what_others_ended_is_beaten_no_more() -> None:
    errors = {1: UpdateFinishedTrialError, 2: KeyError}
    beaten: list[int] = []
    begin = threading.Event()

    def write(trial_id: int, _value: int) -> None:
        assert begin.wait(30)
        beaten.append(trial_id)
        raise errors[trial_id]

    heartbeat = Heartbeat(write, lambda: None, seconds=0.01)
    for trial_id in errors:
        heartbeat.add(trial_id, f"token {trial_id}")
    thread = heartbeat._thread
    assert thread is not None
    begin.set()
    thread.join(30)
    assert not thread.is_alive()
    assert sorted(beaten) == [1, 2]
    assert not heartbeat.trials()
    assert 1 in heartbeat, "its worker has not found it yet"
    assert 2 not in heartbeat, "its study was deleted"
    heartbeat.remove(1)
    assert 1 not in heartbeat
