"""Which trials a confirmation stands on: settled once, when it begins.

A trial that was declared dead by mistake may still bring its result, and a trial that was running
may end. Neither changes what is being confirmed, else workers would confirm different trials and
look at the test images again. Trials that begin afterwards do: then the search has gone on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.schema import LATE_RESULT_KEY, SETTLED_PREFIX, as_mapping
from biotune_optuna.storage.open import keep_user_attr

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Settled:
    """The trials of a study as a confirmation found them.

    Attributes:
        begun: How many trials there were, in whatever state.
        running: Numbers of those that were running.
        waiting: Numbers of those that waited.
    """

    begun: int
    running: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()

    @classmethod
    def of(cls, user_attrs: Mapping[str, Any]) -> Self | None:
        """Return what was settled last, None where nothing was; argument: a study's attributes."""
        count = how_often(user_attrs)
        return cls.at(user_attrs, count - 1) if count else None

    @classmethod
    def at(cls, user_attrs: Mapping[str, Any], count: int) -> Self | None:
        """Return what was settled when so many were before it."""
        stored = as_mapping(user_attrs.get(f"{SETTLED_PREFIX}{count}"))
        if not stored:
            return None
        listed = (tuple(stored.get(name, ())) for name in ("running", "waiting"))
        return cls(int(stored["begun"]), *listed)

    @classmethod
    def now(cls, trials: Iterable[FrozenTrial]) -> Self:
        """Return the trials of a study as they are."""
        every = list(trials)
        running, waiting = (
            tuple(trial.number for trial in every if trial.state == state)
            for state in (TrialState.RUNNING, TrialState.WAITING)
        )
        return cls(len(every), running, waiting)

    def among(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return those of a study's trials that were COMPLETE."""
        return [
            trial for trial in trials if trial.state == TrialState.COMPLETE and self._has(trial)
        ]

    def went_on(self, trials: Iterable[FrozenTrial]) -> bool:
        """Whether a trial that had not begun is COMPLETE."""
        return any(
            trial.state == TrialState.COMPLETE and not self._has(trial) and not self._began(trial)
            for trial in trials
        )

    def _has(self, trial: FrozenTrial) -> bool:
        ended = trial.number not in (*self.running, *self.waiting)
        return trial.number < self.begun and ended

    def _began(self, trial: FrozenTrial) -> bool:
        number = trial.system_attrs.get(LATE_RESULT_KEY, trial.number)
        return number < self.begun and number not in self.waiting


def how_often(user_attrs: Mapping[str, Any]) -> int:
    """Return how often the trials of a study were settled; argument: its attributes."""
    return sum(key.startswith(SETTLED_PREFIX) for key in user_attrs)


def settled_before(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """Return the COMPLETE trials of an earlier `settle`, that of a count, now as then."""
    found = Settled.at(study.user_attrs, count)
    return [] if found is None else found.among(study.get_trials(deepcopy=False))


def settle(study: optuna.Study) -> list[FrozenTrial]:
    """Return the COMPLETE trials that are to be confirmed, the same in every process.

    The first call that finds any settles them. They stand until the search has gone on.
    """
    while True:
        trials = study.get_trials(deepcopy=False)
        attrs = study.user_attrs
        settled = Settled.of(attrs)
        known = settled.among(trials) if settled is not None else []
        if settled is not None and known and not settled.went_on(trials):
            return known
        if not any(trial.state == TrialState.COMPLETE for trial in trials):
            return []  # nothing to stand on: what still runs is not shut out
        name = f"{SETTLED_PREFIX}{how_often(attrs)}"
        keep_user_attr(study, name, asdict(Settled.now(trials)))
