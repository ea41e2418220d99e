"""How far a study has come: what counts towards its total, and what is under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.sampler.history import MAX_FAILURES
from biotune_optuna.sampler.sampler import slot_of
from biotune_optuna.schema import RAISED_KEY

if TYPE_CHECKING:
    import optuna


# Looking a member up in its class costs more than all else that counting does.
_DONE = TrialState.COMPLETE, TrialState.PRUNED
_RUNNING, _FAIL = TrialState.RUNNING, TrialState.FAIL


@dataclass(frozen=True, slots=True)
class Totals:
    """The trials of a study, counted.

    Attributes:
        finished: COMPLETE and PRUNED trials plus slots given up: what ``n_trials`` is a total of.
        running: Trials that are RUNNING, by number.
    """

    finished: int
    running: tuple[FrozenTrial, ...]

    def running_below(self, number: int) -> int:
        """How many trials numbered below ``number`` are RUNNING."""
        return sum(trial.number < number for trial in self.running)


def count(study: optuna.Study) -> Totals:
    """Count the trials of a study as they are now (one read of the storage)."""
    return count_trials(study._storage.get_all_trials(study._study_id, deepcopy=False))


def count_trials(trials: Sequence[FrozenTrial]) -> Totals:
    """Count trials that have been read."""
    finished = 0
    running: list[FrozenTrial] = []
    failed: list[FrozenTrial] = []
    for trial in trials:
        state = trial.state
        if state in _DONE:
            finished += 1
        elif state == _RUNNING:
            running.append(trial)
        elif state == _FAIL and RAISED_KEY in trial.system_attrs:
            failed.append(trial)
    return Totals(finished + _given_up(failed), tuple(running))


def _given_up(failed: Iterable[FrozenTrial]) -> int:
    """Count the slots whose objective raised so often that the sampler went on without them."""
    slots = Counter(
        (slot.generation, slot.index)
        for trial in failed
        if (slot := slot_of(trial)).generation >= 0 and slot.index >= 0
    )
    return sum(strikes >= MAX_FAILURES for strikes in slots.values())
