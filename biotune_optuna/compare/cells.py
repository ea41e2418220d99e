"""Who does what: one Optuna study per task, whose trials are the cells of its matrix.

A worker claims a cell by writing its key on a trial of its own, then looks whether anybody else has
written the same; of two that meet, both give way. Trials carry the lease of their worker, so that a
cell whose worker died is open again.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState

from biotune_optuna._version import __version__
from biotune_optuna.data.identity import is_early
from biotune_optuna.errors import StudyError
from biotune_optuna.schema import (
    CELL_KEY,
    COMPARISON_KEY,
    CONTENDER_KEY,
    ERROR_KEY,
    FINGERPRINTS_KEY,
    RESULT_KEY,
)
from biotune_optuna.storage.open import keep_user_attr
from biotune_optuna.storage.resilient import ResilientStorage
from biotune_optuna.storage.urls import scrub
from biotune_optuna.study.stale import StaleTrials, end_trial

if TYPE_CHECKING:
    from biotune_optuna.compare.plan import Cell


_REPEATS = IntDistribution(0, 10**6)
_PAUSE = 0.2


@dataclass(frozen=True)
class Standing:
    """How a task stands.

    Attributes:
        done: Finished cells by key.
        taken: Keys of cells that are being worked on.
    """

    done: Mapping[str, FrozenTrial]
    taken: frozenset[str]


class Board:
    """The cells of one task.

    Args:
        storage: Where the studies are.
        name: Name of the task's study.
        identity: What must agree for the task to go on.

    Raises:
        StudyError: If the study there is another comparison's.
    """

    def __init__(
        self, storage: optuna.storages.BaseStorage, name: str, identity: Mapping[str, Any]
    ) -> None:
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            sampler=optuna.samplers.RandomSampler(),
            load_if_exists=True,
        )
        self.stale_trials = StaleTrials(self.study)
        stored = keep_user_attr(self.study, COMPARISON_KEY, {"version": __version__, **identity})
        _check_same(name, stored, identity)
        self.is_elsewhere = any(
            stored["spec"][key] != identity["spec"][key] for key in ("data", "weights")
        )
        """Whether data or weights are looked for at another place than when the task was begun."""

    def look(self) -> Standing:
        """Read how the task stands, and opens the cells of dead workers."""
        trials = self._trials()
        running = [t for t in trials if t.state == TrialState.RUNNING]
        if running and self.stale_trials.fail(running):
            trials = self._trials()
        done: dict[str, FrozenTrial] = {}
        taken = set()
        for trial in trials:
            key = trial.user_attrs.get(CELL_KEY, "")
            if trial.state == TrialState.COMPLETE:
                done.setdefault(key, trial)
            elif trial.state == TrialState.RUNNING and key:
                taken.add(key)
        return Standing(done, frozenset(taken))

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuses cells that another contender of the same name has finished.

        Raises:
            StudyError: If there is one.
        """
        done = self.look().done
        for cell in cells:
            stored = done[cell.key].user_attrs.get(CONTENDER_KEY) if cell.key in done else None
            # As it comes back from JSON: tuples are lists.
            given = json.loads(json.dumps(cell.contender.to_dict()))
            if stored is not None and stored != given:
                raise StudyError(
                    f"comparison {self.study.study_name!r} has another method by the name of "
                    f"{cell.contender.name!r}; give this one another name"
                )

    def pin(self, found: Mapping[str, str], *, early: str | None = None) -> None:
        """Keep the fingerprints of data and weights, or compares them with those kept.

        Args:
            found: The fingerprints by name, ``"data"`` and ``"weights"``.
            early: That of the data as early versions stored it.

        Raises:
            StudyError: If they are others.
        """
        stored = keep_user_attr(self.study, FINGERPRINTS_KEY, dict(found))
        for name, value in found.items():
            own = early if early and name == "data" and is_early(stored[name]) else value
            if stored.get(name) != own:
                raise StudyError(
                    f"comparison {self.study.study_name!r} was begun with other {name}; give the "
                    "same or another comparison name"
                )

    def _trials(self) -> list[FrozenTrial]:
        return self.study._storage.get_all_trials(self.study._study_id, deepcopy=False)

    def claim(self, cell: Cell) -> optuna.Trial | None:
        """Return a trial that holds the cell, None where somebody else does."""
        trial = self.study.ask()
        try:
            trial.set_user_attr(CELL_KEY, cell.key)
            for other in self._trials():
                same = other.user_attrs.get(CELL_KEY) == cell.key and other.number != trial.number
                if same and other.state in (TrialState.RUNNING, TrialState.COMPLETE):
                    self.hand_back(trial, "surplus")
                    time.sleep(_PAUSE * (1 + random.random()))  # noqa: S311 - two must not meet again
                    return None
            trial.set_user_attr(CONTENDER_KEY, cell.contender.to_dict())
            # A lease that expires by mistake costs a trial without parameters its result.
            self.study._storage.set_trial_param(trial._trial_id, "repeat", cell.repeat, _REPEATS)
        except BaseException:
            self.hand_back(trial, "stopped")
            raise
        return trial

    def hand_back(self, trial: optuna.Trial, why: str) -> None:
        """Give a cell up; it is open again."""
        try:
            end_trial(self.study, self.study._storage.get_trial(trial._trial_id), why)
        finally:
            self.forget(trial)  # where that failed, nobody works on it all the same

    def forget(self, trial: optuna.Trial) -> None:
        """Keep the lease of a cell no longer, so that it is open once the lease has run out."""
        storage = self.study._storage
        if isinstance(storage, ResilientStorage):
            storage.heartbeat.remove(trial._trial_id)

    def finish(self, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
        """Write what came out."""
        trial.set_user_attr(RESULT_KEY, dict(result))
        self.study.tell(trial, float(result["score"]))

    def fail(self, trial: optuna.Trial, error: Exception) -> str:
        """Write why a cell failed, and returns it in one line."""
        text = " ".join(scrub(f"{type(error).__name__}: {error}").split())[:1000]
        trial.set_user_attr(ERROR_KEY, text)
        self.study.tell(trial, state=TrialState.FAIL)
        return text


def _check_same(name: str, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuses to mix results that cannot be compared."""
    from biotune_optuna.study.spec import StudySpec

    theirs, ours = StudySpec.from_dict(stored["spec"]), StudySpec.from_dict(given["spec"])
    different = theirs.differences(ours)
    usual = {"members": 1}  # is not stored
    was, is_now = usual | dict(stored), usual | dict(given)
    different += [
        f"{key}: {was.get(key)!r}, not {is_now[key]!r}"
        for key in is_now
        if key != "spec" and was.get(key) != is_now[key]
    ]
    if different:
        raise StudyError(
            f"comparison {name!r} exists and is another one: it has {'; '.join(different)}; give "
            "the same values or another name"
        )
