"""Trials that others declared dead while they go on in this process."""

from __future__ import annotations

import copy
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.schema import GENERATION_KEY, LATE_RESULT_KEY, OWN_PREFIX, PARENTS_KEY, ROLE_KEY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution

__all__ = ["LateResult", "LateResults"]

# What a sampler said about the dead trial's place in the search; the place has been given back.
_CLAIMED = (GENERATION_KEY, ROLE_KEY, PARENTS_KEY)


class LateResult:
    """One such trial: what the storage had of it, and what has happened since.

    Args:
        trial: The trial as stored, FAIL by now.
    """

    def __init__(self, trial: FrozenTrial) -> None:
        self._trial = copy.deepcopy(trial)
        self._trial.state = TrialState.RUNNING
        self._trial.values = None
        self._trial.datetime_complete = None

    def frozen(self) -> FrozenTrial:
        """Return the trial as its worker sees it: RUNNING."""
        return copy.deepcopy(self._trial)

    def set_param(self, name: str, internal: float, distribution: BaseDistribution) -> None:
        """Set a parameter."""
        self._trial.params = {**self._trial.params, name: distribution.to_external_repr(internal)}
        self._trial.distributions = {**self._trial.distributions, name: distribution}

    def set_intermediate_value(self, step: int, value: float) -> None:
        """Report a value."""
        self._trial.intermediate_values[step] = value

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set a user attribute."""
        self._trial.user_attrs = {**self._trial.user_attrs, key: value}

    def set_system_attr(self, key: str, value: Any) -> None:
        """Set a system attribute."""
        self._trial.system_attrs = {**self._trial.system_attrs, key: value}

    def finished(self, state: TrialState, values: Sequence[float] | None) -> FrozenTrial | None:
        """Return the trial to add, None when it failed after all."""
        if state not in {TrialState.COMPLETE, TrialState.PRUNED}:
            return None
        trial = self.frozen()
        trial.state = state
        trial.values = None if values is None else [float(value) for value in values]
        trial.datetime_complete = datetime.now()
        user = {k: v for k, v in trial.user_attrs.items() if k not in _CLAIMED}
        if len(user) < len(trial.user_attrs):
            user[ROLE_KEY] = "added"
        trial.user_attrs = user
        system = {k: v for k, v in trial.system_attrs.items() if not k.startswith(OWN_PREFIX)}
        trial.system_attrs = {**system, LATE_RESULT_KEY: trial.number}
        return trial


class LateResults:
    """All such trials of this process, by trial id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._late_results: dict[int, LateResult] = {}

    def __contains__(self, trial_id: int) -> bool:
        return trial_id in self._late_results

    def get(self, trial_id: int) -> LateResult | None:
        """Return the late_result, None when the trial is none."""
        return self._late_results.get(trial_id)

    def add(self, trial: FrozenTrial) -> LateResult:
        """Take in a trial as stored."""
        with self._lock:
            return self._late_results.setdefault(trial._trial_id, LateResult(trial))

    def pop(self, trial_id: int) -> LateResult:
        """Return the late_result and forget it."""
        with self._lock:
            return self._late_results.pop(trial_id)
