"""The trials this process runs, and the thread that keeps their leases."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING

from optuna.exceptions import UpdateFinishedTrialError

from biotune_optuna.storage.lease import BEAT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["LeaseKeeper", "is_kept_here"]

_logger = logging.getLogger(__name__)


_keepers: weakref.WeakSet[LeaseKeeper] = weakref.WeakSet()


def is_kept_here(token: str) -> bool:
    """Say whether this process keeps, or is beginning, the trial with that token.

    Ids would not do: storages that know nothing of each other give the same ones, and one trial may
    be seen through several storages.
    """
    while True:
        try:
            keepers = tuple(_keepers)
        except RuntimeError:  # another thread has just opened or let go of a storage
            continue
        return any(keeper.holds(token) for keeper in keepers)


class LeaseKeeper:
    """Raises a counter on each running trial of this process, whatever the database does.

    The thread ends where no trial runs any more, and lets go of its storage.

    Args:
        raise_counter: Writes the counter: ``raise_counter(trial_id, value)``.
        release_connection: Called by the thread after each round.
        seconds: Time between two beats.
    """

    def __init__(
        self,
        raise_counter: Callable[[int, int], None],
        release_connection: Callable[[], None],
        *,
        seconds: float = BEAT_SECONDS,
    ) -> None:
        self.seconds = seconds
        self._raise_counter = raise_counter
        self._release_connection = release_connection
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._counters: dict[int, int] = {}
        self._ended: set[int] = set()  # by others, which their workers here do not know yet
        self._tokens: dict[int, str] = {}
        self._threads: dict[int, int] = {}  # those that began the trials
        self._held: set[str] = set()  # the tokens of trials that run and of those that begin
        self._process = os.getpid()
        _keepers.add(self)

    def __contains__(self, trial_id: int) -> bool:
        ours = trial_id in self._counters or trial_id in self._ended
        return ours and self._process == os.getpid()

    def trials(self) -> frozenset[int]:
        """Return the ids of the trials whose leases are kept."""
        return frozenset(self._counters) if self._process == os.getpid() else frozenset()

    def trials_of_this_thread(self) -> frozenset[int]:
        """Return the ids of those that the calling thread has begun."""
        mine = threading.get_ident()
        return frozenset(i for i in self.trials() if self._threads.get(i) == mine)

    def holds(self, token: str) -> bool:
        """Say whether the trial with that token runs, or begins, in this process."""
        return token in self._held and self._process == os.getpid()

    @contextlib.contextmanager
    def beginning(self, token: str) -> Iterator[None]:
        """Say that the trial with that token is being written, until it is added or is not."""
        with self._lock:
            self._belong_here()
            self._held.add(token)
        try:
            yield
        finally:
            with self._lock:
                if token not in self._tokens.values():
                    self._held.discard(token)

    def add(self, trial_id: int, token: str) -> None:
        """Keep the lease of a trial from now on.

        Args:
            trial_id: The trial.
            token: What its holder's mark carries, unique to its creation.
        """
        with self._lock:
            self._belong_here()
            self._counters[trial_id] = 0
            self._tokens[trial_id] = token
            self._threads[trial_id] = threading.get_ident()
            self._held.add(token)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="biotune-leases", daemon=True
                )
                self._thread.start()

    def remove(self, trial_id: int) -> None:
        """Let go of a trial's lease."""
        with self._lock:
            self._counters.pop(trial_id, None)
            self._ended.discard(trial_id)
            self._held.discard(self._tokens.pop(trial_id, ""))
            self._threads.pop(trial_id, None)

    def _belong_here(self) -> None:
        if self._process != os.getpid():  # forked: the parent's trials are not ours
            self._counters, self._tokens, self._threads = {}, {}, {}
            self._ended, self._held = set(), set()
            self._thread, self._process = None, os.getpid()
            self._wake = threading.Event()

    def _run(self) -> None:
        while not self._wake.wait(self.seconds):
            with self._lock:
                if not self._counters:
                    self._thread = None  # the next trial starts another
                    return
                for trial_id in self._counters:
                    self._counters[trial_id] += 1
                round_ = dict(self._counters)
            for trial_id, counter in round_.items():
                self._beat(trial_id, counter)
            self._release_connection()

    def _beat(self, trial_id: int, counter: int) -> None:
        try:
            self._raise_counter(trial_id, counter)
        except UpdateFinishedTrialError:
            # Finished by its worker a moment ago, or ended by another: the worker finds that at
            # its next write.
            with self._lock:
                if self._counters.pop(trial_id, None) is not None:
                    self._ended.add(trial_id)
        except KeyError:
            self.remove(trial_id)  # its study was deleted
        except Exception as error:  # noqa: BLE001  (the next beat is the retry)
            _logger.debug("a lease could not be raised: %s", type(error).__name__)
