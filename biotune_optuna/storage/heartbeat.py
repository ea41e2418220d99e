"""The heartbeat: the trials this process runs, and the thread that shows that they live."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from optuna.exceptions import UpdateFinishedTrialError

from biotune_optuna.storage.lease import BEAT_SECONDS

_logger = logging.getLogger(__name__)

_heartbeats: weakref.WeakSet[Heartbeat] = weakref.WeakSet()


def runs_here(token: str) -> bool:
    """Say whether the trial with that token runs, or begins, in this process.

    Ids would not do: storages that know nothing of each other give the same ones, and one trial may
    be seen through several storages.
    """
    while True:
        try:
            heartbeats = tuple(_heartbeats)
        except RuntimeError:  # another thread has just opened or let go of a storage
            continue
        return any(heartbeat.holds(token) for heartbeat in heartbeats)


@dataclass(slots=True)
class _Trial:
    """A trial that runs in this process.

    Attributes:
        token: What its holder's mark carries.
        thread: The thread that began it.
        counter: What has been written last.
        ended: Ended by others, which its worker here does not know yet.
    """

    token: str
    thread: int
    counter: int = 0
    ended: bool = False


class Heartbeat:
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
        self._process = 0
        self._belong_here()
        _heartbeats.add(self)

    def _belong_here(self) -> None:
        if self._process != os.getpid():  # new or forked: the parent's trials are not ours
            self._process = os.getpid()
            self._trials: dict[int, _Trial] = {}
            self._beginning: set[str] = set()  # tokens
            self._thread: threading.Thread | None = None
            self._wake = threading.Event()

    def __contains__(self, trial_id: int) -> bool:
        return trial_id in self._trials and self._process == os.getpid()

    def trials(self) -> frozenset[int]:
        """Return the ids of the trials whose leases are kept."""
        ours = tuple(self._trials.items()) if self._process == os.getpid() else ()
        return frozenset(trial_id for trial_id, trial in ours if not trial.ended)

    def trials_of_this_thread(self) -> frozenset[int]:
        """Return the ids of those that the calling thread has begun."""
        mine = {i for i, t in tuple(self._trials.items()) if t.thread == threading.get_ident()}
        return self.trials() & mine

    def holds(self, token: str) -> bool:
        """Say whether the trial with that token runs, or begins, in this process."""
        known = token in self._beginning or any(
            trial.token == token for trial in tuple(self._trials.values())
        )
        return known and self._process == os.getpid()

    @contextlib.contextmanager
    def beginning(self, token: str) -> Iterator[None]:
        """Say that the trial with that token is being written, until it is added or is not."""
        with self._lock:
            self._belong_here()
            self._beginning.add(token)
        try:
            yield
        finally:
            with self._lock:
                self._beginning.discard(token)

    def add(self, trial_id: int, token: str) -> None:
        """Keep the lease of a trial from now on.

        Args:
            trial_id: The trial.
            token: What its holder's mark carries, unique to its creation.
        """
        with self._lock:
            self._belong_here()
            self._trials[trial_id] = _Trial(token, threading.get_ident())
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="biotune-heartbeat", daemon=True
                )
                self._thread.start()

    def remove(self, trial_id: int) -> None:
        """Let go of a trial's lease."""
        with self._lock:
            self._trials.pop(trial_id, None)

    def _run(self) -> None:
        while not self._wake.wait(self.seconds):
            with self._lock:
                living = {i: trial for i, trial in self._trials.items() if not trial.ended}
                if not living:
                    self._thread = None  # the next trial starts another
                    return
            for trial_id, trial in living.items():
                trial.counter += 1
                self._beat(trial_id, trial)
            self._release_connection()

    def _beat(self, trial_id: int, trial: _Trial) -> None:
        try:
            self._raise_counter(trial_id, trial.counter)
        except UpdateFinishedTrialError:
            # Finished by its worker a moment ago, or ended by another: the worker finds that at
            # its next write.
            trial.ended = True
        except KeyError:
            self.remove(trial_id)  # its study was deleted
        except Exception as error:  # noqa: BLE001  (the next beat is the retry)
            _logger.debug("a lease could not be raised: %s", type(error).__name__)
