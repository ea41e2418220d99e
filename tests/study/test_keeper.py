"""The thread that keeps leases lives as long as there are trials."""

from __future__ import annotations

import gc
import threading
import weakref

from biotune_optuna.study.keeper import LeaseKeeper


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
    keeper = LeaseKeeper(counters.write, counters.release, seconds=0.01)
    for trial_id in (1, 2):
        counters.beaten.clear()
        keeper.add(trial_id)
        thread = keeper._thread
        assert thread is not None
        assert counters.beaten.wait(30)
        keeper.remove(trial_id)
        thread.join(30)
        assert not thread.is_alive()
    assert {trial_id for trial_id, _ in counters.written} == {1, 2}
    kept = weakref.ref(counters)
    del keeper, counters, thread
    gc.collect()
    assert kept() is None, "nothing holds the storage any more"
