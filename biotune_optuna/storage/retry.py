"""Retrying what a lost connection interrupted, up to a stated time."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, TypeVar

import tenacity

from biotune_optuna.errors import StorageError
from biotune_optuna.storage.database_errors import Fault, fault_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RetryPolicy"]

_logger = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0


class RetryPolicy:
    """Calls a function again while the storage cannot be reached.

    Args:
        place: What messages call the storage; must hold no secret.
        seconds: How long one call is retried before it is given up.
    """

    def __init__(self, place: str, *, seconds: float = 300.0) -> None:
        self.place = place
        self.seconds = seconds
        self._hurry_until: float | None = None
        self._hurried = threading.Event()

    def set_deadline(self, seconds: float) -> None:
        """Give up every call, running or to come, ``seconds`` from now: the worker is to stop."""
        until = time.monotonic() + seconds
        if self._hurry_until is None or until < self._hurry_until:
            self._hurry_until = until
        self._hurried.set()

    def clear_deadline(self) -> None:
        """Take back :meth:`set_deadline`."""
        self._hurry_until = None
        self._hurried.clear()

    def call(self, function: Callable[[int], T]) -> T:
        """Return ``function(attempt)``, attempt counted from 1.

        Raises:
            StorageError: The storage cannot be used, or not again within the stated time.
        """
        outer = sys.exception()
        try:
            return function(1)
        except Exception as error:
            fault = fault_of(error, outer)
            if fault is None:
                raise
        if fault.nature == "fatal":
            raise StorageError(f"{self.place} {fault.text}")
        return self._call_again(function, fault, outer)

    def _call_again(
        self, function: Callable[[int], T], fault: Fault, outer: BaseException | None
    ) -> T:
        _logger.warning(
            "%s: %s; retrying for up to %.0f s", self.place, fault.text, self._time_left(0.0)
        )
        began = time.monotonic()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: _may_pass(fault_of(error, outer))),
            wait=tenacity.wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT),
            stop=lambda _state: self._time_left(time.monotonic() - began) <= 0,
            sleep=self._sleep,
            reraise=True,
        )
        self._sleep(_FIRST_WAIT)
        attempt = 1

        def again() -> T:
            nonlocal attempt
            attempt += 1
            return function(attempt)

        try:
            result = retrying(again)
        except Exception as error:
            last = fault_of(error, outer)
            if last is None:
                raise
            fault = last
        else:
            _logger.info("%s: back after %.1f s", self.place, time.monotonic() - began)
            return result
        # Raised here, outside the handlers, so that no driver's error with the connection's
        # arguments hangs on it.
        if fault.nature == "transient":
            waited = time.monotonic() - began
            raise StorageError(f"{self.place} was lost for {waited:.0f} s: {fault.text}")
        raise StorageError(f"{self.place} {fault.text}")

    def _time_left(self, elapsed: float) -> float:
        left = self.seconds - elapsed
        if self._hurry_until is not None:
            left = min(left, self._hurry_until - time.monotonic())
        return left

    def _sleep(self, seconds: float) -> None:
        # Wakes when hurried; from then on in short steps, to use what little time is left.
        if self._hurried.is_set():
            time.sleep(min(seconds, 0.2))
        else:
            self._hurried.wait(seconds)


def _may_pass(fault: Fault | None) -> bool:
    return fault is not None and fault.nature != "fatal"
