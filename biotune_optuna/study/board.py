"""Who does what: work in named parts, each a trial of an Optuna study that one worker holds.

A worker claims a part by a trial of its own, whose number it writes down as the first to do so:
storages keep the first of several writers. The trial carries the worker's lease, so that the part
of a dead worker is open again.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.schema import (
    BOARD_ID_KEY,
    BOARD_KEY,
    CELL_KEY,
    CLAIM_PREFIX,
    ERROR_KEY,
    RESULT_KEY,
)
from biotune_optuna.storage.open import keep_user_attr
from biotune_optuna.storage.resilient import ResilientStorage
from biotune_optuna.storage.urls import scrub
from biotune_optuna.study.stale import StaleTrials, end_trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Standing:
    """How the work stands.

    Attributes:
        done: Finished parts by name.
        taken: Parts that are being worked on, by name.
    """

    done: Mapping[str, FrozenTrial]
    taken: Mapping[str, FrozenTrial]


class Board:
    """The parts of some work.

    Args:
        storage: Where the studies are.
        name: Name of the study whose trials are the parts; made where it is missing.
    """

    def __init__(self, storage: optuna.storages.BaseStorage, name: str) -> None:
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            sampler=optuna.samplers.RandomSampler(),
            load_if_exists=True,
        )
        self.stale_trials = StaleTrials(self.study)

    def look(self) -> Standing:
        """Read how the work stands, and open the parts of dead workers."""
        trials = self._trials()
        running = [t for t in trials if t.state == TrialState.RUNNING]
        if running and self.stale_trials.fail(running):
            trials = self._trials()
        done: dict[str, FrozenTrial] = {}
        taken: dict[str, FrozenTrial] = {}
        for trial in trials:
            key = trial.user_attrs.get(CELL_KEY, "")
            if trial.state == TrialState.COMPLETE:
                done.setdefault(key, trial)
            elif trial.state == TrialState.RUNNING and key:
                taken.setdefault(key, trial)
        return Standing(done, taken)

    def _trials(self) -> list[FrozenTrial]:
        return self.study._storage.get_all_trials(self.study._study_id, deepcopy=False)

    def claim(
        self,
        key: str,
        *,
        attributes: Mapping[str, Any] | None = None,
        param: tuple[str, float, BaseDistribution] | None = None,
    ) -> optuna.Trial | None:
        """Return a trial that holds a part, None where somebody else does.

        Args:
            key: The part.
            attributes: User attributes of the trial.
            param: Its parameter, as it is stored, and that one's distribution. A lease that expires
                by mistake costs a trial without parameters its result.
        """
        trial = self.study.ask()
        try:
            trial.set_user_attr(CELL_KEY, key)
            if not self._is_first(key, trial.number):
                self.hand_back(trial, "surplus")
                return None
            for name, value in (attributes or {}).items():
                trial.set_user_attr(name, value)
            if param is not None:
                self.study._storage.set_trial_param(trial._trial_id, *param)
        except BaseException:
            self.hand_back(trial, "stopped")
            raise
        return trial

    def _is_first(self, key: str, number: int) -> bool:
        """Whether a trial is the first to claim what no living or finished trial has."""
        claims, trials = self.study.user_attrs, self._trials()
        if any(
            t.state == TrialState.COMPLETE and t.user_attrs.get(CELL_KEY) == key for t in trials
        ):
            return False
        for attempt in itertools.count():
            name = f"{CLAIM_PREFIX}{attempt}: {key}"
            holder = claims.get(name)
            if holder is None:
                return bool(keep_user_attr(self.study, name, number) == number)
            if trials[holder].state != TrialState.FAIL:
                return False
        raise AssertionError

    def hand_back(self, trial: optuna.Trial, why: str) -> None:
        """Give a part up; it is open again."""
        try:
            end_trial(self.study, self.study._storage.get_trial(trial._trial_id), why)
        finally:
            self.forget(trial)  # where that failed, nobody works on it all the same

    def forget(self, trial: optuna.Trial) -> None:
        """Keep the lease of a part no longer, so that it is open once the lease has run out."""
        storage = self.study._storage
        if isinstance(storage, ResilientStorage):
            storage.heartbeat.remove(trial._trial_id)

    def finish(self, trial: optuna.Trial, result: Mapping[str, Any], value: float) -> None:
        """Write what came out."""
        trial.set_user_attr(RESULT_KEY, dict(result))
        self.study.tell(trial, value)

    def fail(self, trial: optuna.Trial, error: Exception) -> str:
        """Write why a part failed, and return it in one line."""
        text = " ".join(scrub(f"{type(error).__name__}: {error}").split())[:1000]
        trial.set_user_attr(ERROR_KEY, text)
        self.study.tell(trial, state=TrialState.FAIL)
        return text


# -- the trainings of a study's confirmation -------------------------------------------------------


def board_of(study: optuna.Study) -> Board:
    """Return the board of what a study has trained after its search."""
    token = keep_user_attr(study, BOARD_ID_KEY, uuid.uuid4().hex[:12])
    board = Board(study._storage, _board_name(study.study_name, token))
    keep_user_attr(board.study, BOARD_KEY, study.study_name)
    return board


def parts_of(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials of a study's board, only looked at; none where it has no board."""
    storage = study._storage
    token = study.user_attrs.get(BOARD_ID_KEY)
    try:
        study_id = storage.get_study_id_from_name(_board_name(study.study_name, token))
    except KeyError:
        return []
    return storage.get_all_trials(study_id, deepcopy=False)


def study_names(storage: optuna.storages.BaseStorage) -> list[str]:
    """Return the names of the studies of a storage, sorted, without those of boards."""
    every = storage.get_all_studies()
    return sorted(one.study_name for one in every if BOARD_KEY not in one.user_attrs)


def _board_name(study: str, token: object) -> str:
    return f"{study} (trainings {token})"
