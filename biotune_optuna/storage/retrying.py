"""An Optuna storage whose calls are retried."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage

from biotune_optuna.errors import StorageError
from biotune_optuna.storage.database import Database, reading
from biotune_optuna.storage.journal import Journal
from biotune_optuna.storage.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from optuna.study import StudyDirection
    from optuna.study._frozen import FrozenStudy
    from optuna.trial import FrozenTrial, TrialState

    from biotune_optuna.storage.urls import StorageURL

__all__ = ["RetryingStorage"]

T = TypeVar("T")


class RetryingStorage(BaseStorage):
    """Wraps an Optuna storage; every call that cannot reach it is retried.

    What concerns whole studies, and what is only read, is here; the lives of trials, where a
    repeated call could do something twice, are
    :class:`~biotune_optuna.storage.resilient.ResilientStorage`'s.

    Args:
        backend: The storage to wrap.
        url: What it was opened from.
        database: The SQL storage under ``backend``; None when there is none.
        retry_seconds: How long one call is retried.
        read_only: Refuse every write.
    """

    def __init__(
        self,
        backend: BaseStorage,
        *,
        url: StorageURL,
        database: Database | None = None,
        retry_seconds: float = 300.0,
        read_only: bool = False,
    ) -> None:
        self.url = url
        self.retry_seconds = retry_seconds
        self.read_only = read_only
        self._backend = backend
        self._database = database
        self._set_up()

    def _set_up(self) -> None:
        self._lock = threading.Lock()
        self.retry = RetryPolicy(self.url.place, seconds=self.retry_seconds)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["retry"], state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_up()

    # -- calls

    def _read(self, function: Callable[[], T]) -> T:
        def attempt(_number: int) -> T:
            with reading() if self._database is not None else nullcontext():
                return function()

        return self.retry.call(attempt)

    def _write(self, function: Callable[[int], T]) -> T:
        if self.read_only:
            raise StorageError(f"{self.url.place} is opened read-only: nothing can be written")
        return self.retry.call(function)

    # -- studies

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

        return self._write(create)

    def delete_study(self, study_id: int) -> None:
        """Delete a study and all its trials."""

        def delete(attempt: int) -> None:
            try:
                self._backend.delete_study(study_id)
            except KeyError:
                if attempt == 1:
                    raise

        self._write(delete)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a study."""
        self._write(lambda _: self._backend.set_study_user_attr(study_id, key, value))

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

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a system attribute of a study."""
        self._write(lambda _: self._backend.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of a study."""
        return self._read(lambda: self._backend.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study."""
        return self._read(lambda: self._backend.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return whether a study minimises or maximises, for each objective."""
        return self._read(lambda: self._backend.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the user attributes of a study."""
        return self._read(lambda: self._backend.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the system attributes of a study."""
        return self._read(lambda: self._backend.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all studies of the storage."""
        return self._read(self._backend.get_all_studies)

    # -- trials are read

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Return the id of a trial."""
        return self._read(
            lambda: self._backend.get_trial_id_from_study_id_trial_number(study_id, trial_number)
        )

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials of a study, ordered by number."""
        return self._read(lambda: self._backend.get_all_trials(study_id, deepcopy, states))

    def get_n_trials(
        self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None
    ) -> int:
        """Count the trials of a study."""
        return self._read(lambda: self._backend.get_n_trials(study_id, state))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best trial of a study."""
        return self._read(lambda: self._backend.get_best_trial(study_id))

    def remove_session(self) -> None:
        """Give back the calling thread's connection."""
        if self._database is not None:
            self._database.remove_session()
