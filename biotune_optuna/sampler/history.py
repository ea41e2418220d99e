"""What the trials of a study amount to, folded in one by one as they change.

Nothing here is kept anywhere but in the trials themselves: a process that starts later folds them
once and knows the same. The cost of a look is that of the trials that changed since the last one.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import TYPE_CHECKING, Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.sampler.claims import Claim, Opening
from biotune_optuna.schema import ENDED_KEY, FIXED_KEY, RAISED_KEY, SOURCE_KEY

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


MAX_FAILURES = 3  # chosen by hand
"""A slot whose objective raised this often is given up and ranks last."""

_GIVEN_UP = (3.0,)


@dataclass(frozen=True, slots=True)
class Record:
    """A trial that counts as an individual.

    Attributes:
        trial: The trial, as the storage keeps it.
        claim: Its claim, None for an added trial.
        rank: Sort key of the result, smaller is better: finite values, then values that are no
            finite number, then pruned trials by progress and value, then slots given up.
        cost: The value to be minimised; NaN where there is no finite one.
        params: Its genome.
    """

    trial: FrozenTrial
    claim: Claim | None
    rank: tuple[float, ...]
    cost: float
    params: Mapping[str, Any]


def _hashable(value: Any) -> Any:
    """Return a parameter's value; what cannot be hashed, such as a list, as it is written."""
    return value if isinstance(value, (float, int, str, NoneType)) else repr(value)


@dataclass(slots=True)
class Slot:
    """One slot of the generation that is open.

    Attributes:
        running: Trials that hold it.
        failed: Trials that failed on it, oldest first.
        result: The trial that filled it.
    """

    running: set[int] = field(default_factory=set)
    failed: list[int] = field(default_factory=list)
    result: int | None = None

    @property
    def is_free(self) -> bool:
        """Whether it waits for a trial: neither filled nor held."""
        return self.result is None and not self.running


class History:
    """The state of a search, as far as one process has looked.

    Args:
        direction: Whether the study minimises or maximises.
        keep: How many newcomers are worth keeping: the size of the population.
        names: Parameters that make up a genome; None takes all that a trial has.
        first: The search's first trial: claims below it are void. None makes all void, for a search
            that has not begun.

    Attributes:
        claims: All claims by trial number.
        records: All individuals by trial number.
        finite: Numbers of trials with a finite value, as they were seen to finish.
        dismissed: Numbers of trials that finished without one, pruned, NaN or infinite, and of the
            last failures of slots that were given up.
        pending: Numbers of trials that have not finished.
        openings: The trial that opened each generation.
        n_enqueued: How many claims without a slot each generation has.
        generation: The generation that is open.
        opener: The trial that opened it, -1 in generation 0.
        slots: Its slots that have been claimed, by index.
        newcomers: The best individuals from elsewhere that finished since it opened, best first.
        common: The distributions that all completed trials share.
        waiting_again: Enqueued trials whose worker died and for which no other stands in yet.
    """

    def __init__(
        self,
        direction: StudyDirection,
        *,
        keep: int,
        names: Sequence[str] | None = None,
        first: int | None = 0,
    ) -> None:
        self.first = first
        self._keep = keep
        self._names = names
        self._evaluations: dict[tuple[Any, ...], set[int]] = {}
        self._sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
        self._seen = 0
        self.claims: dict[int, Claim] = {}
        self.records: dict[int, Record] = {}
        self.finite: list[int] = []
        self.dismissed: list[int] = []
        self.pending: set[int] = set()
        self.openings: dict[int, int] = {}
        self.n_enqueued: dict[int, int] = {}
        self.generation = 0
        self.opener = -1
        self.slots: dict[int, Slot] = {}
        self.newcomers: list[int] = []
        self.common: dict[str, BaseDistribution] | None = None
        self.waiting_again: dict[int, FrozenTrial] = {}
        self._adopted: set[int] = set()
        self._raised: dict[tuple[int, int], int] = {}

    @property
    def offset(self) -> float:
        """See `biotune_optuna.evolution.paper.extinction`."""
        return 1.0 if self._sign < 0 else 0.0

    @property
    def opening(self) -> Opening | None:
        """What opened the current generation; None in generation 0."""
        return None if self.opener < 0 else self.claims[self.opener].opening

    def fold(self, trials: Sequence[FrozenTrial]) -> None:
        """Take in what changed.

        Args:
            trials: All trials of the study by number, as the storage returns them.
        """
        changed = sorted(self.pending) + list(range(self._seen, len(trials)))
        self._seen = len(trials)
        news = [trial for number in changed if self._note(trial := trials[number])]
        newest = max(self.openings, default=0)
        if newest != self.generation:
            self._enter(newest, trials)
            return
        for trial in news:
            self._place(trial)

    def _note(self, trial: FrozenTrial) -> bool:
        """Note a trial's claim and, when it has finished, its result; True if either is new."""
        number = trial.number
        claim = self.claims.get(number)
        is_new = False
        if claim is None:
            if self.first is not None and number >= self.first:
                claim = Claim.of(trial)
            if claim is not None:
                is_new = True
                self.claims[number] = claim
                self._count(number, claim.params)
                if claim.index < 0 and not self._stands_in(claim):
                    enqueued = self.n_enqueued.get(claim.generation, 0)
                    self.n_enqueued[claim.generation] = enqueued + 1
                if claim.source is not None:
                    self._adopted.add(claim.source)
                    self.waiting_again.pop(claim.source, None)
                if claim.opening is not None:
                    first = min(number, self.openings.get(claim.generation, number))
                    self.openings[claim.generation] = first
        if not trial.state.is_finished():
            self.pending.add(number)
            return is_new
        self.pending.discard(number)
        if trial.state == TrialState.FAIL:
            self._note_waiting_again(trial, claim)
            if claim is not None:
                self._evaluations[self._key(claim.params)].discard(number)
                self._note_raised(trial, claim)
        else:
            self._record(trial, claim)
        return True

    def _stands_in(self, claim: Claim) -> bool:
        """Whether an enqueued trial's claim is the one of a dead trial, taken over whole."""
        dead = None if claim.source is None else self.claims.get(claim.source)
        here = (claim.generation, claim.index)
        return dead is not None and (dead.generation, dead.index) == here

    def _note_waiting_again(self, trial: FrozenTrial, claim: Claim | None) -> None:
        """Note an enqueued trial whose worker died: another one is to stand in for it."""
        enqueued = FIXED_KEY in trial.system_attrs or (
            claim is not None and claim.role in ("enqueued", "donated")
        )
        if claim is None and SOURCE_KEY in trial.system_attrs:
            return  # it died before it took over: the one it was to stand in for still waits
        if enqueued and ENDED_KEY in trial.system_attrs and trial.number not in self._adopted:
            self.waiting_again[trial.number] = trial

    def _note_raised(self, trial: FrozenTrial, claim: Claim) -> None:
        """Count how often a slot's objective raised; after the last time the slot is given up."""
        # Counted for slots of all generations: a process that starts later enters the newest one
        # at once, and must leave out the same genomes.
        if claim.index < 0 or RAISED_KEY not in trial.system_attrs:
            return
        slot = (claim.generation, claim.index)
        self._raised[slot] = self._raised.get(slot, 0) + 1
        if self._raised[slot] == MAX_FAILURES:
            params = {**claim.params, **trial.params}
            self.records[trial.number] = Record(trial, claim, _GIVEN_UP, math.nan, params)
            self.dismissed.append(trial.number)

    def _record(self, trial: FrozenTrial, claim: Claim | None) -> None:
        """Make an individual of a finished trial."""
        rank, cost = self._rank(trial)
        self.records[trial.number] = Record(trial, claim, rank, cost, trial.params)
        (self.finite if rank[0] == 0.0 else self.dismissed).append(trial.number)
        self._count(trial.number, trial.params)
        if trial.state != TrialState.COMPLETE or not trial.distributions:
            return
        if self.common is None:
            self.common = dict(trial.distributions)
        elif self.common != trial.distributions:
            self.common = {
                name: distribution
                for name, distribution in self.common.items()
                if trial.distributions.get(name) == distribution
            }

    def _rank(self, trial: FrozenTrial) -> tuple[tuple[float, ...], float]:
        """Return a finished trial's sort key and cost (`Record`)."""
        if trial.state == TrialState.COMPLETE:
            cost = self._sign * (math.nan if trial.value is None else trial.value)
            return ((0.0, cost), cost) if math.isfinite(cost) else ((1.0,), math.nan)
        step = trial.last_step
        if step is None:
            return (2.0, math.inf), math.nan
        cost = self._sign * trial.intermediate_values[step]
        return (2.0, -float(step), cost if math.isfinite(cost) else math.inf), math.nan

    def _enter(self, generation: int, trials: Sequence[FrozenTrial]) -> None:
        """Move on to the newest generation and sort the trials into it."""
        self.generation = generation
        self.opener = self.openings[generation]
        self.slots, self.newcomers = {}, []
        opening = self.opening
        assert opening is not None
        for first, last in opening.unfinished:
            for number in range(first, last + 1):
                self._place(trials[number])
        for trial in trials[self.opener : self._seen]:
            self._place(trial)

    def _place(self, trial: FrozenTrial) -> None:
        """Put a trial into its slot, or among the newcomers."""
        number = trial.number
        opening = self.opening
        if opening is not None and opening.judged(number, self.opener):
            return
        claim = self.claims.get(number)
        if claim is None or claim.generation != self.generation or claim.index < 0:
            self._add_newcomer(number)
            return
        slot = self.slots.setdefault(claim.index, Slot())
        if not trial.state.is_finished():
            slot.running.add(number)
            return
        slot.running.discard(number)
        if trial.state == TrialState.FAIL:
            if number not in slot.failed:
                slot.failed.append(number)
                if slot.result is None and number in self.records:  # the slot was given up
                    slot.result = number
        elif slot.result is None:
            slot.result = number
        elif slot.result != number:
            self._add_newcomer(number)

    def _add_newcomer(self, number: int) -> None:
        """Let an individual from elsewhere compete, if it is good enough."""
        record = self.records.get(number)
        if record is None or record.rank == _GIVEN_UP or number in self.newcomers:
            return
        bisect.insort(self.newcomers, number, key=lambda n: (self.records[n].rank, n))
        del self.newcomers[self._keep :]

    def _key(self, params: Mapping[str, Any]) -> tuple[Any, ...]:
        if self._names is not None:
            return tuple(_hashable(params.get(name)) for name in self._names)
        return tuple((name, _hashable(params[name])) for name in sorted(params))

    def _count(self, number: int, params: Mapping[str, Any]) -> None:
        self._evaluations.setdefault(self._key(params), set()).add(number)

    # -- questions -----------------------------------------------------------------------------

    @property
    def n_finished(self) -> int:
        """How many individuals of the open generation have finished, extras included."""
        return sum(slot.result is not None for slot in self.slots.values())

    def free_slot(self, planned: int) -> int:
        """Return the first slot that is neither filled nor held; a new one when all are taken.

        Args:
            planned: Number of slots that the generation has from the start.
        """
        extras = sorted(index for index in self.slots if index >= planned)
        for index in itertools.chain(range(planned), extras):
            if index not in self.slots or self.slots[index].is_free:
                return index
        return extras[-1] + 1 if extras else planned

    def is_free(self, claim: Claim) -> bool:
        """Whether a claim's slot belongs to the open generation and waits for a trial."""
        slot = self.slots.get(claim.index) if claim.generation == self.generation else None
        return slot is not None and slot.is_free

    def earlier_claim(self, index: int) -> Claim | None:
        """Return the claim of a trial that failed on a slot: its genome is evaluated again."""
        slot = self.slots.get(index)
        return self.claims[slot.failed[-1]] if slot is not None and slot.failed else None

    def n_evaluations(self, params: Mapping[str, Any]) -> int:
        """How many trials evaluate or have evaluated this very genome."""
        return len(self._evaluations.get(self._key(params), ()))

    def unfinished_below(self, number: int) -> list[int]:
        """Numbers of trials below ``number`` that have not finished, sorted."""
        return sorted(n for n in self.pending if n < number)
