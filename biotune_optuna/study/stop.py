"""Stopping a worker cleanly: asked once it hands back its trial, asked twice it goes at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["StopRequest", "Stopped"]

POLITE_SECONDS = 6.0
"""How long the running trial may take to notice a stop before it is handed back over its head."""

_POLL_SECONDS = 0.1


class Stopped(BaseException):
    """The worker was asked to stop, and what ran here noticed."""


class StopRequest:
    """A wish to stop, which long work looks at between its steps.

    ::

        with StopRequest.on_signals() as stop:
            run_trials(study, objective, n_trials=100, stop=stop)

    An objective calls :meth:`check` after each epoch or batch.
    """

    def __init__(self) -> None:
        self._requested = False
        self._listeners: list[Callable[[], None]] = []
        self._at_last: list[Callable[[], None]] = []

    @property
    def requested(self) -> bool:
        """Whether somebody has asked to stop."""
        return self._requested

    def request(self) -> None:
        """Ask to stop; may be called from any thread and from a signal handler."""
        first, self._requested = not self._requested, True
        if first:
            for listener in tuple(self._listeners):
                listener()

    def check(self) -> None:
        """Return if nobody has asked to stop.

        Raises:
            Stopped: Somebody has.
        """
        if self._requested:
            raise Stopped

    def wait(self, seconds: float) -> bool:
        """Sleep, or less if a stop is requested; return whether it is."""
        end = time.monotonic() + seconds
        while not self._requested and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))
        return self._requested

    @contextlib.contextmanager
    def calling(self, at_once: Callable[[], None], at_last: Callable[[], None]) -> Iterator[None]:
        """Within the block, call ``at_once`` on a request, ``at_last`` before a forced exit."""
        self._listeners.append(at_once)
        self._at_last.append(at_last)
        try:
            if self._requested:
                at_once()
            yield
        finally:
            self._listeners.remove(at_once)
            self._at_last.remove(at_last)

    @classmethod
    @contextlib.contextmanager
    def on_signals(
        cls,
        *signals: signal.Signals,
        polite_seconds: float = POLITE_SECONDS,
    ) -> Iterator[StopRequest]:
        """Within the block, signals (default SIGINT and SIGTERM) ask to stop.

        After ``polite_seconds`` the running trial is handed back and the process exits with
        128 + the signal's number, whatever it is doing; at a second signal it does so at once and
        leaves the trial to be found by the others. Outside the main thread no signal is caught.
        """
        stop = cls()
        if threading.current_thread() is not threading.main_thread():
            yield stop
            return
        reading, writing = os.pipe()
        watcher = threading.Thread(
            target=stop._watch, args=(reading, polite_seconds), name="biotune-stop", daemon=True
        )

        def handler(number: int, _frame: FrameType | None) -> None:
            # Only what is safe between any two instructions: a flag and a write to a pipe.
            if stop._requested:
                os._exit(128 + number)
            stop._requested = True
            os.write(writing, bytes([number]))

        before = {s: signal.signal(s, handler) for s in signals or (signal.SIGINT, signal.SIGTERM)}
        watcher.start()
        try:
            yield stop
        finally:
            for number, old in before.items():
                signal.signal(number, old)
            os.close(writing)
            watcher.join()

    def _watch(self, pipe: int, polite_seconds: float) -> None:
        with open(pipe, "rb", buffering=0) as file:
            number = file.read(1)
            if not number:
                return
            for listener in tuple(self._listeners):
                listener()
            end = time.monotonic() + polite_seconds
            os.set_blocking(pipe, False)
            while time.monotonic() < end:
                if file.read(1) == b"":  # closed: the block has been left in time
                    return
                time.sleep(_POLL_SECONDS)
        for last in tuple(self._at_last):
            last()
        os.write(2, b"\nStopped in the middle of a training; everything finished is kept.\n")
        os._exit(128 + number[0])
