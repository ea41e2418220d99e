"""Stopping a worker cleanly: asked once it hands back its trial, asked twice it goes at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

POLITE_SECONDS = 6.0
"""How long the running trial may take to notice a stop; then it is handed back all the same."""

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
        wanted = frozenset(signals or (signal.SIGINT, signal.SIGTERM))
        reading, writing = socket.socketpair()  # on Windows no signal is written to a pipe
        writing.setblocking(False)
        watcher = threading.Thread(
            target=stop._watch,
            args=(reading, wanted, polite_seconds),
            name="biotune-stop",
            daemon=True,
        )

        def handler(_number: int, _frame: FrameType | None) -> None:
            stop._requested = True

        # Python runs a handler once the main thread has come back from C, and a backward pass may
        # take many seconds; but it writes the signal's number into this socket at once.
        wakeup_before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, handler) for number in wanted}
        caught = _Caught(reading, writing, wakeup_before, before)
        _all_caught.append(caught)
        watcher.start()
        try:
            yield stop
        finally:
            if caught in _all_caught:  # not in a forked child
                _all_caught.remove(caught)
                caught.let_go()
                watcher.join()

    def _watch(self, numbers: socket.socket, wanted: frozenset[int], polite_seconds: float) -> None:
        """Act on the signals whose numbers come through the socket, until that is closed."""
        with numbers:
            number = _next_signal(numbers, wanted, lambda: True)
            if not number:
                return
            self._requested = True
            for listener in tuple(self._listeners):
                with contextlib.suppress(Exception):  # the process must end all the same
                    listener()
            numbers.settimeout(_POLL_SECONDS)
            end = time.monotonic() + polite_seconds
            second = _next_signal(numbers, wanted, lambda: time.monotonic() < end)
            if second == _CLOSED:
                return
            if second is None:
                last = threading.Thread(target=self._go_at_last, daemon=True)
                last.start()
                second = _next_signal(numbers, wanted, last.is_alive)
        if second:
            os._exit(128 + second)
        with contextlib.suppress(OSError):  # nobody listens: a closed or broken pipe
            os.write(2, b"\nStopped in the middle of a training; everything finished is kept.\n")
        os._exit(128 + number)

    def _go_at_last(self) -> None:
        for last in tuple(self._at_last):
            last()


@dataclass(frozen=True)
class _Caught:
    """What `StopRequest.on_signals` has changed in this process."""

    reading: socket.socket
    writing: socket.socket
    wakeup_before: int
    before: dict[signal.Signals, Any]

    def let_go(self) -> None:
        """Put back what was before; the watcher, at the other end, finds the socket closed."""
        for number, old in self.before.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(self.wakeup_before)
        self.writing.close()


_all_caught: list[_Caught] = []


# A forked child has the parent's handlers, and its sockets are the parent's: a signal to the child,
# as the end of a process pool sends it, would stop the parent. Signals wait until it has let go.
_forking = threading.local()


def _before_fork() -> None:
    numbers = {number for caught in _all_caught for number in caught.before}
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers) if numbers else None


def _after_fork() -> None:
    if (mask := getattr(_forking, "mask", None)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    while _all_caught:
        caught = _all_caught.pop()
        caught.let_go()
        caught.reading.close()
    _after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )


_CLOSED = 0


def _next_signal(
    numbers: socket.socket, wanted: frozenset[int], go_on: Callable[[], bool]
) -> int | None:
    """Wait for one of the signals; 0 when the socket is closed, None when not to go on."""
    while go_on():
        with contextlib.suppress(TimeoutError):
            read = numbers.recv(1)
            if not read:
                return _CLOSED
            if read[0] in wanted:  # others that somebody handles come as well
                return read[0]
    return None
