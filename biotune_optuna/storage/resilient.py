"""An Optuna storage that survives what happens to databases and to their clients."""

from __future__ import annotations

import copy
import json
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.errors import StorageError
from biotune_optuna.schema import CREATED_KEY, ENDED_KEY, FIXED_KEY, HOLDER_KEY, LEASE_KEY
from biotune_optuna.storage.heartbeat import LeaseKeeper
from biotune_optuna.storage.holder import current_holder
from biotune_optuna.storage.late_results import LateResult, LateResults
from biotune_optuna.storage.retrying import RetryingStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.distributions import BaseDistribution

__all__ = ["ResilientStorage"]


class ResilientStorage(RetryingStorage):
    """Wraps an Optuna storage; made by :func:`~biotune_optuna.storage.open.open_storage`.

    - Every call that fails because the storage cannot be reached is retried. A write whose outcome
      is unknown is never done twice: creations carry a token that is looked up first, and a
      finished trial is compared with what was to be written.
    - A trial that begins names its holder in the transaction that creates it, and its lease is
      kept by a thread for as long as the trial runs in this process, however it is run.
    - A trial that others declared dead while it ran here keeps its parameters, values and
      attributes in this process; when it finishes, it is added as a trial of its own.

    Args:
        backend: The storage to wrap.
        url: What it was opened from.
        database: The SQL storage under ``backend``; None when there is none.
        retry_seconds: How long one call is retried.
        read_only: Refuse every write.
    """

    def _set_up(self) -> None:
        super()._set_up()
        self.keeper = LeaseKeeper(
            lambda trial_id, value: self._backend.set_trial_system_attr(trial_id, LEASE_KEY, value),
            self.remove_session,
        )
        self._late_results = LateResults()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        for key in ("keeper", "_late_results"):
            del state[key]
        return state

    # -- trials begin

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial, held by this process when it is to run here."""
        key: str
        mark: str | list[str]
        if template_trial is None:
            key, mark = HOLDER_KEY, _holder_mark()
            template = _trial(TrialState.RUNNING, {HOLDER_KEY: mark}, {}, datetime.now())
        else:
            key, mark = CREATED_KEY, uuid.uuid4().hex
            template = copy.copy(template_trial)
            # A copied study's trials belong to nobody here.
            kept = {k: v for k, v in template.system_attrs.items() if k not in _LEASE_KEYS}
            template.system_attrs = {**kept, key: mark}

        def create(attempt: int) -> int:
            if attempt > 1:
                found = self._find_trial(study_id, key, mark)
                if found is not None:
                    return found
            return self._backend.create_new_trial(study_id, template)

        if template_trial is not None:
            return self._write(create)
        with self.keeper.beginning(mark[1]):
            trial_id = self._write(create)
            self.keeper.add(trial_id, mark[1])
        return trial_id

    def _find_trial(self, study_id: int, key: str, mark: object) -> int | None:
        if self._database is not None:
            trial_id = self._database.find_trial(study_id, key, json.dumps(mark))
            if trial_id is not None:
                # Fills the cache in between, which knows only trials that it has created or read.
                self._backend.get_all_trials(study_id, deepcopy=False)
            return trial_id
        for trial in self._backend.get_all_trials(study_id, deepcopy=False):
            if trial.system_attrs.get(key) == mark:
                return trial._trial_id
        return None

    def _start_waiting(self, trial_id: int) -> bool:
        holder = _holder_mark()

        def start(attempt: int) -> bool:
            if self._database is not None:
                return self._database.start_waiting_trial(trial_id, holder)
            if self._backend.set_trial_state_values(trial_id, TrialState.RUNNING):
                return True
            return attempt > 1 and self._journal_gave_us(trial_id)

        with self.keeper.beginning(holder[1]):
            started = self._write(start)
            if started:
                self.keeper.add(trial_id, holder[1])
        if started and self._database is None:
            self.set_trial_system_attr(trial_id, HOLDER_KEY, holder)
        return started

    def _journal_gave_us(self, trial_id: int) -> bool:
        replayed = getattr(self._backend, "_replay_result", None)
        return replayed is not None and replayed.owned_trial_id == trial_id

    # -- trials run

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Set a parameter of a trial."""
        self._change(
            trial_id,
            lambda: self._backend.set_trial_param(
                trial_id, param_name, param_value_internal, distribution
            ),
            lambda late: late.set_param(param_name, param_value_internal, distribution),
        )

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Report a value of a trial at a step."""
        self._change(
            trial_id,
            lambda: self._backend.set_trial_intermediate_value(trial_id, step, intermediate_value),
            lambda late_result: late_result.set_intermediate_value(step, intermediate_value),
        )

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a trial."""
        self._change(
            trial_id,
            lambda: self._backend.set_trial_user_attr(trial_id, key, value),
            lambda late_result: late_result.set_user_attr(key, value),
        )

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a system attribute of a trial."""
        self._change(
            trial_id,
            lambda: self._backend.set_trial_system_attr(trial_id, key, value),
            lambda late_result: late_result.set_system_attr(key, value),
        )

    def _change(
        self, trial_id: int, stored: Callable[[], None], late: Callable[[LateResult], None]
    ) -> None:
        late_result = self._late_results.get(trial_id)
        if late_result is None:
            try:
                self._write(lambda _: stored())
            except UpdateFinishedTrialError:
                late_result = self._late_result(trial_id)
                if late_result is None:
                    raise
        if late_result is not None:
            late(late_result)

    def _late_result(self, trial_id: int) -> LateResult | None:
        """Go on, apart from the storage, with a trial that was declared dead by mistake.

        Returns:
            None for any other finished trial: one that was told elsewhere, or that has no
            parameters to save, so that its worker just asks for another.
        """
        if trial_id in self.keeper:
            trial = self._read(lambda: self._backend.get_trial(trial_id))
            is_lost = trial.system_attrs.get(ENDED_KEY) == "lost"
            if trial.state == TrialState.FAIL and is_lost and trial.params:
                self._late_results.add(trial)
            self.keeper.remove(trial_id)
        return self._late_results.get(trial_id)

    # -- trials end

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Start a waiting trial or finish a running one; repeated, it has no further effect."""
        if state == TrialState.RUNNING:
            return self._start_waiting(trial_id)
        if trial_id not in self._late_results:
            try:
                return self._finish(trial_id, state, values)
            except UpdateFinishedTrialError:
                if self._late_result(trial_id) is None:
                    raise
        finished = self._late_results.pop(trial_id).finished(state, values)
        if finished is not None:
            self.create_new_trial(self._study_of(trial_id, finished.number), finished)
        return True

    def _study_of(self, trial_id: int, number: int) -> int:
        for study in self.get_all_studies():
            try:
                if trial_id == self.get_trial_id_from_study_id_trial_number(
                    study._study_id, number
                ):
                    return study._study_id
            except KeyError:
                continue
        raise KeyError(f"no study has a trial with id {trial_id}")

    def _finish(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
        def finish(attempt: int) -> bool:
            try:
                return self._backend.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if attempt == 1:
                    raise
                trial = self._backend.get_trial(trial_id)
                same = None if values is None else [float(value) for value in values]
                if (trial.state, trial.values) != (state, same):
                    raise
                return True  # it was this very write, whose answer got lost

        try:
            done = self._write(finish)
        except StorageError:  # given up: others, and this process, may take its place
            self.keeper.remove(trial_id)
            raise
        self.keeper.remove(trial_id)
        return done

    def end_trial(
        self, study_id: int, trial: FrozenTrial, why: str, *, requeue: bool = True
    ) -> bool:
        """Fail a RUNNING trial that nobody will finish.

        Args:
            study_id: Study of the trial.
            trial: The trial.
            why: "lost", "stopped" or "surplus", kept in the trial.
            requeue: Put a trial that came from the queue back there.

        Returns:
            False when somebody else has ended the trial meanwhile.
        """
        trial_id = trial._trial_id
        again = _waiting_trial(trial) if requeue and FIXED_KEY in trial.system_attrs else None

        def end(attempt: int) -> bool:
            if self._database is not None:
                return self._database.end_trial(study_id, trial_id, (ENDED_KEY, why), again)
            try:
                self._backend.set_trial_system_attr(trial_id, ENDED_KEY, why)
                self._backend.set_trial_state_values(trial_id, TrialState.FAIL)
            except UpdateFinishedTrialError:
                found = self._backend.get_trial(trial_id)
                mark = found.system_attrs.get(ENDED_KEY)
                if attempt == 1 or (found.state, mark) != (TrialState.FAIL, why):
                    return False
                # An attempt before this one did so, and failed at its answer or at what follows.
            if again is not None:
                mark = again.system_attrs[CREATED_KEY]
                if attempt == 1 or self._find_trial(study_id, CREATED_KEY, mark) is None:
                    self._backend.create_new_trial(study_id, again)
            return True

        try:
            return self._write(end)
        finally:
            self.keeper.remove(trial_id)

    # -- trials are read

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial; one declared dead by mistake, as it is in this process."""
        late_result = self._late_results.get(trial_id)
        if late_result is None:
            trial = self._read(lambda: self._backend.get_trial(trial_id))
            if trial.state.is_finished():
                late_result = self._late_result(trial_id)
            if late_result is None:
                return trial
        return late_result.frozen()


_LEASE_KEYS = frozenset({HOLDER_KEY, LEASE_KEY, ENDED_KEY, CREATED_KEY})


def _holder_mark() -> list[str]:
    return [current_holder().to_str(), uuid.uuid4().hex[:12]]


def _waiting_trial(trial: FrozenTrial) -> FrozenTrial:
    """Return the trial as it stood in the queue before it was taken."""
    kept = {FIXED_KEY: trial.system_attrs[FIXED_KEY], CREATED_KEY: uuid.uuid4().hex}
    return _trial(TrialState.WAITING, kept, dict(trial.user_attrs), None)


def _trial(
    state: TrialState,
    system_attrs: dict[str, Any],
    user_attrs: dict[str, Any],
    start: datetime | None,
) -> FrozenTrial:
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=state,
        value=None,
        values=None,
        datetime_start=start,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs=user_attrs,
        system_attrs=system_attrs,
        intermediate_values={},
    )
