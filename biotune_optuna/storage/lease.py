"""Leases: how one worker learns that another one, which may run on any machine, has died.

The storage writes the holder on a trial in the transaction that creates it, and raises a counter on
it while the trial lives. An observer never compares clocks of two machines: it calls a lease
expired after it has itself seen the counter unchanged for long enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from biotune_optuna.errors import StudyError
from biotune_optuna.schema import HOLDER_KEY, LEASE_KEY
from biotune_optuna.storage.holder import Holder

BEAT_SECONDS = 15.0
"""A living holder raises the counter this often."""

LEASE_SECONDS = 120.0
"""A counter seen unchanged for this long has expired."""

# One look adds at most this share of the lease, so that a database nobody could reach for an hour
# (the holder neither) does not expire every lease at the first look after it.
_LOOKS = 4


class LostTrialError(StudyError):
    """A trial was given to others before it started; its worker asks for another."""


def read_holder(system_attrs: Mapping[str, Any]) -> Holder | None:
    """Return who holds the trial with these system attributes, None when nobody is named."""
    value = system_attrs.get(HOLDER_KEY)
    try:
        return Holder.from_str(value[0]) if value else None
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def read_token(system_attrs: Mapping[str, Any]) -> str | None:
    """Return the token of the trial's creation, None when it carries none."""
    value = system_attrs.get(HOLDER_KEY)
    return value[1] if isinstance(value, list) and len(value) == 2 else None


@dataclass(slots=True)
class _Seen:
    counter: object
    last_look: float
    unchanged: float = 0.0


class LeaseWatch:
    """Tells which running trials have lost their worker.

    Args:
        seconds: How long a counter must be seen unchanged until its lease has expired.
        clock: Monotonic clock of the observer, in seconds.
    """

    def __init__(
        self, *, seconds: float = LEASE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._seen: dict[int, _Seen] = {}

    def is_lost(self, trial_id: int, system_attrs: Mapping[str, Any]) -> bool:
        """Say whether the holder of a RUNNING trial is gone, from attributes read just now.

        A dead process of this machine is known at once, a living one is never called lost. For any
        other holder, and for a trial that names none, every call counts as one look at its counter.
        """
        holder = read_holder(system_attrs)
        dead = None if holder is None else holder.is_dead()
        if dead is not None:
            return dead
        now = self._clock()
        counter = (holder, system_attrs.get(LEASE_KEY))
        seen = self._seen.get(trial_id)
        if seen is None or seen.counter != counter:
            self._seen[trial_id] = _Seen(counter, now)
            return False
        seen.unchanged += min(now - seen.last_look, self.seconds / _LOOKS)
        seen.last_look = now
        return seen.unchanged >= self.seconds

    def keep_only(self, trial_ids: Collection[int]) -> None:
        """Forget all trials but these, so that the watch does not grow with the study."""
        for trial_id in self._seen.keys() - set(trial_ids):
            del self._seen[trial_id]
