"""The retry policy: how long a call is retried, with which pauses, and after which errors.

A database error is *transient* (it goes away by itself), *full* (it goes away when somebody frees
space) or *fatal* (it does not go away). The first two are retried. What is no database error is
somebody else's and passes through.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import tenacity

from biotune_optuna.errors import StorageError
from biotune_optuna.storage.urls import scrub

_logger = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0
"""Seconds: the longest first pause, which doubles from one to the next, and the longest of all."""


class RetryPolicy:
    """Calls a function again while the storage cannot be reached.

    Args:
        place: What messages call the storage; must hold no secret.
        seconds: How long one call is retried before it is given up.
    """

    def __init__(self, place: str, *, seconds: float = 300.0) -> None:
        self.place = place
        self.seconds = seconds
        self._deadline: float | None = None
        self._is_stopping = threading.Event()

    def set_deadline(self, seconds: float) -> None:
        """Give up every call, running or to come, ``seconds`` from now: the worker is to stop."""
        deadline = time.monotonic() + seconds
        if self._deadline is None or deadline < self._deadline:
            self._deadline = deadline
        self._is_stopping.set()

    def clear_deadline(self) -> None:
        """Take back :meth:`set_deadline`."""
        self._deadline = None
        self._is_stopping.clear()

    def call(self, function: Callable[[int], T]) -> T:
        """Return ``function(attempt)``, attempt counted from 1; there are two at least.

        Raises:
            StorageError: The storage cannot be used, or not again within the stated time.
        """
        outer = sys.exception()
        began = time.monotonic()

        def fault_in(state: tenacity.RetryCallState) -> Fault | None:
            error = state.outcome.exception() if state.outcome else None
            return fault_of(error, outer) if isinstance(error, Exception) else None

        def may_pass(state: tenacity.RetryCallState) -> bool:
            fault = fault_in(state)
            return fault is not None and fault.nature != "fatal"

        def warn(state: tenacity.RetryCallState) -> None:
            if state.attempt_number == 1 and (fault := fault_in(state)):
                left = self._time_left(0.0)
                _logger.warning("%s: %s; retrying for up to %.0f s", self.place, fault.text, left)

        retrying = tenacity.Retrying(
            retry=may_pass,
            wait=tenacity.wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT),
            stop=lambda s: s.attempt_number > 1 and self._time_left(time.monotonic() - began) <= 0,
            sleep=self._sleep,
            before_sleep=warn,
            reraise=True,
        )
        try:
            for attempt in retrying:
                number = attempt.retry_state.attempt_number
                with attempt:
                    result = function(number)
        except Exception as error:
            fault = fault_of(error, outer)
            if fault is None:
                raise
        else:
            if number > 1:
                _logger.info("%s: back after %.1f s", self.place, time.monotonic() - began)
            return result
        # Raised here, outside the handler, so that no driver's error with the connection's
        # arguments hangs on it.
        if fault.nature == "transient":
            waited = time.monotonic() - began
            raise StorageError(f"{self.place} was lost for {waited:.0f} s: {fault.text}")
        raise StorageError(f"{self.place} {fault.text}")

    def _time_left(self, elapsed: float) -> float:
        left = self.seconds - elapsed
        if self._deadline is not None:
            left = min(left, self._deadline - time.monotonic())
        return left

    def _sleep(self, seconds: float) -> None:
        # Wakes when a deadline is set; from then on in short steps, to use what time is left.
        if self._is_stopping.is_set():
            time.sleep(min(seconds, 0.2))
        else:
            self._is_stopping.wait(seconds)


# -- what an error means

Nature = Literal["transient", "full", "fatal"]


class Fault(NamedTuple):
    """A database error, understood.

    Attributes:
        nature: "transient" goes away by itself, "full" goes away when somebody frees space,
            "fatal" does not go away.
        text: What is wrong, one line without secrets.
    """

    nature: Nature
    text: str


# Primary SQLite result codes (the low byte of the extended ones).
_SQLITE: dict[int, tuple[Nature, str]] = {
    sqlite3.SQLITE_BUSY: ("transient", "is locked by another process"),
    sqlite3.SQLITE_LOCKED: ("transient", "is locked by another thread"),
    sqlite3.SQLITE_PROTOCOL: ("transient", "could not be locked"),
    sqlite3.SQLITE_IOERR: ("transient", "could not be read or written (input/output error)"),
    sqlite3.SQLITE_FULL: ("full", "cannot grow: the disk is full; free some space"),
    sqlite3.SQLITE_CORRUPT: (
        "fatal",
        "is corrupt; it was left as it is, restore a copy or give another file",
    ),
    sqlite3.SQLITE_NOTADB: (
        "fatal",
        "is not an SQLite database; it was left as it is, give another file",
    ),
    sqlite3.SQLITE_READONLY: ("fatal", "cannot be written; check its owner and permissions"),
    sqlite3.SQLITE_PERM: ("fatal", "cannot be used; check its owner and permissions"),
    sqlite3.SQLITE_CANTOPEN: (
        "fatal",
        "cannot be opened; check that its folder exists and is writable",
    ),
}

# Connection errors of PostgreSQL carry no SQLSTATE; these are the user's to mend.
_POSTGRES_TEXTS = {
    "no password supplied": "asks for a password; put it into ~/.pgpass or the URL",
    "password authentication failed": "refused the user name or password",
    "no pg_hba.conf entry": "does not let this host or user in (pg_hba.conf)",
    "does not exist": "does not know this database or user",
    "is not permitted to log in": "does not let this user log in",
}
_POSTGRES_FATAL = {
    "28": "refused the user name or password",
    "3D": "does not know this database",
    "42501": "denies the permission; grant it to this user",
    "42P01": "has no tables of Optuna",
}
_MYSQL_FATAL = {
    1044: "does not let this user use the database",
    1045: "refused the user name or password",
    1049: "does not know this database",
    1142: "denies the permission; grant it to this user",
    1146: "has no tables of Optuna",
    1698: "refused the user name or password",
}
_MYSQL_FULL = {1021, 1114}
_FULL = "cannot grow: its disk is full; free some space"


def fault_of(error: BaseException, outer: BaseException | None = None) -> Fault | None:
    """Return what a raised error says about the storage, None when it is about something else.

    Args:
        error: The error, with those that it followed from.
        outer: The caller was handling this one when it called the storage: it says nothing.
    """
    from sqlalchemy import exc

    for link in _chain(error, outer):
        if isinstance(link, exc.IntegrityError):
            return None
        if isinstance(link, exc.DBAPIError):
            return _of_driver(link)
        if isinstance(link, exc.TimeoutError | exc.PendingRollbackError):
            return Fault("transient", "has no free connection")
        if isinstance(link, exc.NoSuchModuleError):
            return Fault("fatal", "needs a driver that is not installed")
        if isinstance(link, OSError):
            return _of_file(link)
        if type(link).__module__.startswith("grpc"):
            return _of_proxy(link)
    return None


def _chain(error: BaseException, outer: BaseException | None) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link is not outer and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _of_driver(error: object) -> Fault | None:
    from sqlalchemy import exc

    assert isinstance(error, exc.DBAPIError)
    original = error.orig
    if isinstance(original, sqlite3.Error):
        return _of_sqlite(original)
    lost = error.connection_invalidated or isinstance(
        error, exc.OperationalError | exc.InterfaceError | exc.InternalError
    )
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if type(original).__module__.startswith("psycopg"):
        return _of_postgres(str(original), state, lost=lost)
    number = original.args[0] if original is not None and original.args else None
    if number in _MYSQL_FATAL:
        return Fault("fatal", _MYSQL_FATAL[number])
    if number in _MYSQL_FULL:
        return Fault("full", _FULL)
    return Fault("transient", _first_line(original)) if lost else None


def _of_sqlite(error: sqlite3.Error) -> Fault | None:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _SQLITE:
        return Fault(*_SQLITE[code])
    return Fault("fatal", "has no tables of Optuna") if "no such table" in str(error) else None


def _of_postgres(text: str, state: str | None, *, lost: bool) -> Fault | None:
    if state is None:
        for part, meaning in _POSTGRES_TEXTS.items():
            # The driver itself, not the server, misses a password.
            if part in text and ("FATAL" in text or part == "no password supplied"):
                return Fault("fatal", meaning)
        return Fault("transient", _first_line(text)) if lost else None
    if state == "53100":
        return Fault("full", _FULL)
    for prefix, meaning in _POSTGRES_FATAL.items():
        if state.startswith(prefix):
            return Fault("fatal", meaning)
    # Class 25 holds "read-only" and "idle in transaction" of a server that is failing over.
    if lost or state[:2] in {"08", "25", "40", "53", "55", "57"}:
        return Fault("transient", _first_line(text))
    return None


# Of a proxy, see `biotune_optuna.storage.serve`, and of the network to it.
_GRPC: dict[str, Nature] = {
    "UNAVAILABLE": "transient",
    "DEADLINE_EXCEEDED": "transient",
    "CANCELLED": "transient",
    "INTERNAL": "transient",
    "RESOURCE_EXHAUSTED": "full",
    "PERMISSION_DENIED": "fatal",
}


def _of_proxy(error: Any) -> Fault | None:
    nature = _GRPC.get(getattr(error.code(), "name", "")) if hasattr(error, "code") else None
    return Fault(nature, _first_line(error.details())) if nature else None


def _of_file(error: OSError) -> Fault | None:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return Fault(*_SQLITE[sqlite3.SQLITE_FULL])
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOENT}:
        return Fault("fatal", f"cannot be used: {error.strerror}")
    if error.errno in {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.ENOLCK}:
        return Fault("transient", str(error.strerror))
    return None


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return scrub(lines[0])[:200] if lines else "cannot be reached"
