"""An Optuna storage that survives what happens to databases and to their clients."""

from __future__ import annotations

import copy
import functools
import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from biotune_optuna.errors import DeletedStudyError, StorageError
from biotune_optuna.schema import (
    CREATED_KEY,
    ENDED_KEY,
    FIXED_KEY,
    GENERATION_KEY,
    HOLDER_KEY,
    LATE_RESULT_KEY,
    LEASE_KEY,
    OWN_PREFIX,
    PARENTS_KEY,
    ROLE_KEY,
    handed_on,
)
from biotune_optuna.storage.database import reading
from biotune_optuna.storage.heartbeat import Heartbeat
from biotune_optuna.storage.holder import current_holder
from biotune_optuna.storage.journal import Journal
from biotune_optuna.storage.retry import RetryPolicy

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from biotune_optuna.storage.database import Database
    from biotune_optuna.storage.proxy import Proxied
    from biotune_optuna.storage.urls import StorageURL


T = TypeVar("T")
_Method = TypeVar("_Method", bound="Callable[..., Any]")

_MARKS = frozenset({HOLDER_KEY, LEASE_KEY, ENDED_KEY, CREATED_KEY})
# What a sampler said about a dead trial's place in the search; the place has been given back.
_CLAIMED = (GENERATION_KEY, ROLE_KEY, PARENTS_KEY)


# Each of these takes a method of Optuna's storages and returns the wrapper's method of that name.
# What `wraps` would update is left out: it holds the mark of an abstract method.


def _reads(method: _Method) -> _Method:
    """Return a method that reads from the backend, again while that cannot be reached."""

    @functools.wraps(method, updated=())
    def call(self: ResilientStorage, *args: Any, **kwargs: Any) -> Any:
        return self._read(lambda: getattr(self._backend, method.__name__)(*args, **kwargs))

    return cast("_Method", call)


def _writes(method: _Method) -> _Method:
    """Return a method that may write the same to the backend twice, with no further effect."""

    @functools.wraps(method, updated=())
    def call(self: ResilientStorage, *args: Any, **kwargs: Any) -> Any:
        return self._write(lambda _: getattr(self._backend, method.__name__)(*args, **kwargs))

    return cast("_Method", call)


def _writes_to_trial(method: _Method) -> _Method:
    """Return a method that writes to a running trial, wherever that is kept by now."""

    @functools.wraps(method, updated=())
    def call(self: ResilientStorage, trial_id: int, *args: Any, **kwargs: Any) -> None:
        late = self._late_results.get(trial_id)
        if late is None:
            try:
                self._write(
                    lambda _: getattr(self._backend, method.__name__)(trial_id, *args, **kwargs)
                )
            except UpdateFinishedTrialError:
                late = self._late_result(trial_id)
                if late is None:
                    raise
        if late is not None:
            getattr(late, method.__name__)(late.trial_id, *args, **kwargs)

    return cast("_Method", call)


class ResilientStorage(BaseStorage):
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
        database: The SQL storage under ``backend``, here or behind a proxy; None when there is
            none.
        retry_seconds: How long one call is retried.
        read_only: Refuse every write.
    """

    def __init__(
        self,
        backend: BaseStorage,
        *,
        url: StorageURL,
        database: Database | Proxied | None = None,
        retry_seconds: float = 300.0,
        read_only: bool = False,
    ) -> None:
        self.url = url
        self.retry_seconds = retry_seconds
        self.read_only = read_only
        self._backend = backend
        self._database = database
        self._names: dict[int, str] = {}
        self._set_up()

    def _set_up(self) -> None:
        self._lock = threading.Lock()
        self._late_results: dict[int, LateResult] = {}
        self.retry = RetryPolicy(self.url.place, seconds=self.retry_seconds)
        self.heartbeat = Heartbeat(
            lambda trial_id, value: self._backend.set_trial_system_attr(trial_id, LEASE_KEY, value),
            self.remove_session,
        )

    def __getstate__(self) -> dict[str, Any]:
        here = ("_lock", "_late_results", "retry", "heartbeat")
        return {key: value for key, value in self.__dict__.items() if key not in here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_up()

    def _read(self, function: Callable[[], T]) -> T:
        def attempt(_number: int) -> T:
            with reading() if self._database is not None else nullcontext():
                return function()

        with self._telling_of_deletion():
            return self.retry.call(attempt)

    def _write(self, function: Callable[[int], T]) -> T:
        if self.read_only:
            raise StorageError(f"{self.url.place} is opened read-only: nothing can be written")
        with self._telling_of_deletion():
            return self.retry.call(function)

    @contextmanager
    def _telling_of_deletion(self) -> Iterator[None]:
        """Say that a study is gone, where an id leads nowhere."""
        try:
            yield
        except DeletedStudyError:
            raise
        except KeyError:
            for study_id, name in tuple(self._names.items()):
                with suppress(KeyError):
                    if self._backend.get_study_id_from_name(name) == study_id:
                        continue
                raise DeletedStudyError(name) from None
            raise

    def _pin(self, study_id: int, name: str) -> int:
        """Remember which study an id stands for."""
        self._names[study_id] = name
        if (database := self._database) is not None:
            self.retry.call(lambda _: database.pin_study(study_id, mark=not self.read_only))
        return study_id

    # -- what can simply be repeated

    get_study_name_from_id = _reads(BaseStorage.get_study_name_from_id)
    get_study_directions = _reads(BaseStorage.get_study_directions)
    get_study_user_attrs = _reads(BaseStorage.get_study_user_attrs)
    get_study_system_attrs = _reads(BaseStorage.get_study_system_attrs)
    get_all_studies = _reads(BaseStorage.get_all_studies)
    get_trial_id_from_study_id_trial_number = _reads(
        BaseStorage.get_trial_id_from_study_id_trial_number
    )
    get_all_trials = _reads(BaseStorage.get_all_trials)
    get_n_trials = _reads(BaseStorage.get_n_trials)
    get_best_trial = _reads(BaseStorage.get_best_trial)
    set_study_user_attr = _writes(BaseStorage.set_study_user_attr)
    set_study_system_attr = _writes(BaseStorage.set_study_system_attr)
    set_trial_param = _writes_to_trial(BaseStorage.set_trial_param)
    set_trial_intermediate_value = _writes_to_trial(BaseStorage.set_trial_intermediate_value)
    set_trial_user_attr = _writes_to_trial(BaseStorage.set_trial_user_attr)
    set_trial_system_attr = _writes_to_trial(BaseStorage.set_trial_system_attr)

    def remove_session(self) -> None:
        """Give back the calling thread's connection."""
        if self._database is not None:
            self._database.remove_session()

    # -- studies

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of a study.

        Raises:
            KeyError: There is none.
        """

        def look(_attempt: int) -> int:
            with reading() if self._database is not None else nullcontext():
                return self._backend.get_study_id_from_name(study_name)

        return self._pin(self.retry.call(look), study_name)

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Create a study."""

        def create(attempt: int) -> int:
            try:
                return self._backend.create_new_study(directions, study_name)
            except DuplicatedStudyError:
                if attempt == 1 or study_name is None:
                    raise
                return self._backend.get_study_id_from_name(study_name)

        study_id = self._write(create)
        return self._pin(study_id, self.get_study_name_from_id(study_id))

    def delete_study(self, study_id: int) -> None:
        """Delete a study and all its trials."""

        def delete(attempt: int) -> None:
            try:
                self._backend.delete_study(study_id)
            except KeyError:
                if attempt == 1:
                    raise

        self._write(delete)
        self._names.pop(study_id, None)

    def keep_study_user_attr(self, study_id: int, key: str, value: Any) -> Any:
        """Set a user attribute of a study unless it has one; return what it has then.

        Of several workers that do so in the same moment, in whichever process, one is the first.
        """

        def keep(_attempt: int) -> Any:
            if isinstance(self._backend, Journal):
                return self._backend.keep_study_user_attr(study_id, key, value)
            if self._database is not None:
                return self._database.keep_study_user_attr(study_id, key, value)
            with self._lock:  # in memory
                kept = self._backend.get_study_user_attrs(study_id)
                if key not in kept:
                    self._backend.set_study_user_attr(study_id, key, value)
                return kept.get(key, value)

        return self._write(keep)

    # -- trials begin

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial, held by this process when it is to run here."""
        if template_trial is not None:
            template = copy.copy(template_trial)
            # A copied study's trials belong to nobody here.
            kept = {k: v for k, v in template.system_attrs.items() if k not in _MARKS}
            template.system_attrs = {**kept, CREATED_KEY: uuid.uuid4().hex}
            return self._create(study_id, template, CREATED_KEY)
        mark = _holder_mark()
        running = create_trial(state=TrialState.RUNNING, system_attrs={HOLDER_KEY: mark})
        with self.heartbeat.beginning(mark[1]):
            trial_id = self._create(study_id, running, HOLDER_KEY)
            self._hold(trial_id, mark[1])
        return trial_id

    def _hold(self, trial_id: int, token: str) -> None:
        if self._database is not None:
            self._database.held[trial_id] = token
        self.heartbeat.add(trial_id, token)

    def _let_go(self, trial_id: int) -> None:
        self.heartbeat.remove(trial_id)
        if self._database is not None:
            self._database.held.pop(trial_id, None)

    def _create(self, study_id: int, trial: FrozenTrial, key: str) -> int:
        """Create a trial, which its attribute ``key`` tells from all others, once."""

        def create(attempt: int) -> int:
            if attempt > 1:
                found = self._find_trial(study_id, key, trial.system_attrs[key])
                if found is not None:
                    return found
            return self._backend.create_new_trial(study_id, trial)

        return self._write(create)

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

        with self.heartbeat.beginning(holder[1]):
            started = self._write(start)
            if started:
                self._hold(trial_id, holder[1])
        if started and self._database is None:
            self.set_trial_system_attr(trial_id, HOLDER_KEY, holder)
        return started

    def _journal_gave_us(self, trial_id: int) -> bool:
        replayed = getattr(self._backend, "_replay_result", None)
        return replayed is not None and replayed.owned_trial_id == trial_id

    # -- trials run

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial; one declared dead by mistake, as it is in this process."""
        late = self._late_results.get(trial_id)
        if late is None:
            trial = self._read(lambda: self._backend.get_trial(trial_id))
            if trial.state.is_finished():
                late = self._late_result(trial_id)
            if late is None:
                return trial
        return late.running()

    def _late_result(self, trial_id: int) -> LateResult | None:
        """Go on, apart from the storage, with a trial that was declared dead by mistake.

        Returns:
            None for any other finished trial: one that was told elsewhere, or that has no
            parameters to save, so that its worker just asks for another.
        """
        if trial_id in self.heartbeat:
            trial = self._read(lambda: self._backend.get_trial(trial_id))
            is_lost = trial.system_attrs.get(ENDED_KEY) == "lost"
            if trial.state == TrialState.FAIL and is_lost and trial.params:
                self._late_results.setdefault(trial_id, LateResult(trial))
            self.heartbeat.remove(trial_id)
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
        late = self._late_results.pop(trial_id)
        if state in {TrialState.COMPLETE, TrialState.PRUNED}:
            study_id = self._study_of(trial_id, late.number)
            self.create_new_trial(study_id, late.finished(state, values))
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
                if (trial.state, trial.values) != (state, _floats(values)):
                    raise
                return True  # it was this very write, whose answer got lost

        try:
            done = self._write(finish)
        except DeletedStudyError:
            raise
        except StorageError:  # given up: others, and this process, may take its place
            self.heartbeat.remove(trial_id)
            raise
        self._let_go(trial_id)
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
            ended = self._write(end)
        except StorageError:
            self.heartbeat.remove(trial_id)
            raise
        self._let_go(trial_id)
        return ended


class LateResult(InMemoryStorage):
    """A trial that others declared dead while it goes on in this process: kept in memory.

    Args:
        trial: The trial as stored, FAIL by now.
    """

    def __init__(self, trial: FrozenTrial) -> None:
        super().__init__()
        self._stored_id, self.number = trial._trial_id, trial.number
        running = copy.copy(trial)
        running.state, running.values, running.datetime_complete = TrialState.RUNNING, None, None
        study_id = self.create_new_study([StudyDirection.MINIMIZE])
        self.trial_id = self.create_new_trial(study_id, running)

    def running(self) -> FrozenTrial:
        """Return the trial as its worker sees it."""
        trial = copy.deepcopy(self.get_trial(self.trial_id))
        trial.number, trial._trial_id = self.number, self._stored_id
        return trial

    def finished(self, state: TrialState, values: Sequence[float] | None) -> FrozenTrial:
        """Return the trial to add: of no place in the search, and nobody's."""
        trial = self.running()
        trial.state, trial.values, trial.datetime_complete = state, _floats(values), datetime.now()
        user = {k: v for k, v in trial.user_attrs.items() if k not in _CLAIMED}
        if len(user) < len(trial.user_attrs):
            user[ROLE_KEY] = "added"
        system = {k: v for k, v in trial.system_attrs.items() if not k.startswith(OWN_PREFIX)}
        trial.user_attrs = user
        trial.system_attrs = {**system, LATE_RESULT_KEY: self.number}
        return trial


def _holder_mark() -> list[str]:
    return [current_holder().to_str(), uuid.uuid4().hex[:12]]


def _waiting_trial(trial: FrozenTrial) -> FrozenTrial:
    """Return the trial as it stood in the queue before it was taken."""
    kept = {FIXED_KEY: trial.system_attrs[FIXED_KEY], CREATED_KEY: uuid.uuid4().hex}
    return create_trial(
        state=TrialState.WAITING, system_attrs=kept, user_attrs=handed_on(trial.user_attrs)
    )


def _floats(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values]
