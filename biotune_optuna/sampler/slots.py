"""What a process knows of a study, and which slot and genome the next trial gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import TrialState

from biotune_optuna.evolution import strategy
from biotune_optuna.evolution.domain import Domain
from biotune_optuna.evolution.generation import Generation, Individual
from biotune_optuna.recipe import ranges
from biotune_optuna.sampler import claims, codec
from biotune_optuna.sampler.archive import ArchiveBuilder
from biotune_optuna.sampler.claims import Claim, Liveness, Opening
from biotune_optuna.sampler.history import History, Record
from biotune_optuna.schema import CLAIM_KEY, DONOR_KEY, FIXED_KEY, SOURCE_KEY, handed_on
from biotune_optuna.storage.holder import current_holder

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from biotune_optuna.evolution.generation import Archive, Role
    from biotune_optuna.genome import GenomeSpace
    from biotune_optuna.sampler.config import Config


# Bounds of what a trial costs however long the study is; chosen by hand. The model takes fewer
# genomes than are archived.
_MOST_ARCHIVED = 400
_MOST_CACHED = 1000


class SlotAllocator:
    """Gives the next trial of one study its slot, from what this process has read of the study.

    `refresh` reads, `is_blocked` says whether the trial must wait, `choose_claim` chooses.

    Args:
        wanted: The configuration that the sampler was made with.
        grace_period: See `Liveness`.

    Attributes:
        space: The parameters that evolve, as far as they are known.
    """

    def __init__(self, wanted: Config, *, grace_period: float) -> None:
        self._wanted = wanted
        self._config: Config | None = None
        self._drawn: int | None = None
        self._liveness = Liveness(seconds=grace_period)
        self._trials: list[FrozenTrial] = []
        self._history: History | None = None
        self.space: dict[str, BaseDistribution] = {}
        self._domain = Domain((), np.zeros(0, dtype=np.int64))
        self._common: dict[str, BaseDistribution] = {}
        self._individuals: dict[int, Individual | None] = {}
        self._archive_builder = ArchiveBuilder(self._domain)

    # -- configuration -------------------------------------------------------------------------

    def seed(self, study: optuna.Study) -> int:
        """Return the study's seed; before the first claim, the one it is going to have."""
        self._load_config(study)
        known = self._config.seed if self._config is not None else self._wanted.seed
        if known is not None:
            return known
        if self._drawn is None:
            self._drawn = int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> 1)
        return self._drawn

    def _load_config(self, study: optuna.Study) -> None:
        if self._config is None:
            data = claims.study_config(study)
            if data is not None:
                self._config = self._wanted.kept_as(data)

    def _settle_config(self, study: optuna.Study, trial: FrozenTrial) -> Config:
        """Read the configuration, or keep this sampler's: all trials below have published."""
        self._load_config(study)
        if self._config is None:
            config = replace(self._wanted, seed=self.seed(study), first=trial.number)
            claims.keep_config(study, config.to_json())
            self._config = config
        return self._config

    # -- reading -------------------------------------------------------------------------------

    def refresh(self, study: optuna.Study) -> None:
        """Read the trials and fold in what changed."""
        pending = self._history.pending if self._history is not None else ()
        trials = claims.read_trials(study, self._trials, pending)
        if _are_of_another_study(self._trials, trials):
            self._config = self._drawn = self._history = None
        # After the trials: without a configuration then, none of their claims is this search's.
        self._load_config(study)
        config = self._config or self._wanted
        if self._history is None or self._history.first != config.first:
            names = None if config.space is None else config.space.names
            keep = config.settings.population_size
            self._history = History(study.direction, keep=keep, names=names, first=config.first)
            self._forget()
        self._history.fold(trials)
        self._trials = trials
        self._update_space(config.space)

    @property
    def history(self) -> History:
        """The history; `refresh` comes first."""
        assert self._history is not None
        return self._history

    def _update_space(self, genomes: GenomeSpace | None) -> None:
        common = self.history.common or {}
        if self.space and common is self._common:
            return
        self._common = common
        space: dict[str, BaseDistribution] = {}
        if genomes is not None:
            space |= genomes.distributions()
        for name in sorted(common):
            if not common[name].single():
                space.setdefault(name, common[name])
        if space == self.space:
            return
        self.space = space
        choices = [codec.n_choices(one) for one in space.values()]
        cells = tuple(map(codec.n_cells, space.values()))
        self._domain = Domain(tuple(space), np.array(choices, dtype=np.int64), genomes, cells)
        self._forget()

    def _forget(self) -> None:
        """Drop what was derived from another space or another history."""
        self._individuals.clear()
        self._archive_builder = ArchiveBuilder(self._domain)

    def space_of(self, claim: Claim) -> dict[str, BaseDistribution]:
        """Return the distributions of a claim's parameters."""
        return {name: dist for name, dist in self.space.items() if name in claim.params}

    def is_blocked(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether a trial below has neither published its claim nor finished.

        One that has lost its worker is failed; so are claims whose holder died.
        """
        again = False
        below = self.history.unfinished_below(trial.number)
        for number in below:
            one = self._trials[number]
            claim = self.history.claims.get(number)
            if one.state != TrialState.RUNNING or (claim is None and _is_foreign(study, one)):
                continue
            if self._liveness.is_lost(study, one, claim):
                claims.fail(study, one, "lost")
                again = True
            elif claim is None:
                return True  # those above it may be waiting for it: do not hurry them
        if again:
            self.refresh(study)
        self._liveness.keep_only({self._trials[number]._trial_id for number in below})
        return False

    # -- choosing ------------------------------------------------------------------------------

    def choose_claim(self, study: optuna.Study, trial: FrozenTrial) -> Claim:
        """Return the claim of a trial, all trials below having published theirs."""
        config = self._settle_config(study, trial)
        blank = Claim(
            number=trial.number,
            home=claims.home_of(study, trial),
            holder=current_holder().to_str(),
            generation=self.history.generation,
            index=-1,
            role="donated" if DONOR_KEY in trial.user_attrs else "enqueued",
        )
        fixed = claims.fixed_params(trial)
        if fixed is None and self.history.waiting_again:
            # An enqueued trial whose worker died: this one stands in for it.
            dead = self.history.waiting_again[min(self.history.waiting_again)]
            fixed = claims.fixed_params(dead) or {}
            claims.mark(study, trial, SOURCE_KEY, dead.number)
            claims.mark(study, trial, FIXED_KEY, fixed)
            claims.annotate(study, trial, handed_on(dead.user_attrs))
            role: Role = "donated" if DONOR_KEY in dead.user_attrs else "enqueued"
            blank = replace(blank, source=dead.number, role=role)
            begun = self.history.claims.get(dead.number)
            if begun is not None and begun.generation == self.history.generation:
                return replace(_taken_over(begun, blank), source=dead.number)
        # A trial that was copied with its claim, by Optuna's own retrying, goes on in its slot.
        retried = trial.system_attrs.get(CLAIM_KEY)
        if retried is not None and trial.params and self.history.is_free(Claim.from_json(retried)):
            return _taken_over(Claim.from_json(retried), blank)
        if fixed is not None or trial.params:
            return self._claim_enqueued(config, blank, {**(fixed or {}), **trial.params})
        return self._claim_slot(config, blank)

    def _claim_enqueued(self, config: Config, blank: Claim, given: Mapping[str, Any]) -> Claim:
        """Return the claim of a trial that came with parameters: it fills no slot.

        Parameters that it lacks are bred for it.
        """
        history = self.history
        blank = replace(blank, index=-1 - history.n_enqueued.get(history.generation, 0))
        if all(name in given for name in self._domain.names):
            known = {name: given[name] for name in self._domain.names}
            repeat = history.n_evaluations(known) if known else 0
            return replace(blank, repeat=repeat, params=known)
        generation = self._generation(config)
        assert config.seed is not None
        bred = strategy.propose(config.settings, self._domain, generation, blank.index, config.seed)
        params = codec.to_params(self.space, bred.genes)
        params.update((name, value) for name, value in given.items() if name in params)
        return replace(blank, repeat=history.n_evaluations(params), params=params)

    def _claim_slot(self, config: Config, blank: Claim) -> Claim:
        """Return the claim of a free slot; open the next generation where this one is finished."""
        history, settings = self.history, config.settings
        planned = len(strategy.plan(settings, history.generation, len(config.initial)))
        generation = self._generation(config)
        if history.n_finished >= planned:
            newcomers = tuple(one for one in generation.newcomers if one.number < blank.number)
            before = replace(generation, newcomers=newcomers)
            numbers = strategy.survivors(settings, self._domain, before)
            generation = Generation(
                generation.number + 1,
                population=self._individuals_of(numbers),
                offset=generation.offset,
                archive=generation.archive,
            )
            unfinished = ranges(history.unfinished_below(blank.number))
            opening = Opening(numbers, tuple(unfinished))
            blank = replace(blank, generation=generation.number, opening=opening)
            index, earlier = 0, None
        else:
            index = history.free_slot(planned)
            earlier = history.earlier_claim(index)
        if earlier is not None:
            return _taken_over(earlier, blank)
        assert config.seed is not None
        bred = strategy.propose(settings, self._domain, generation, index, config.seed)
        params = codec.to_params(self.space, bred.genes)
        if bred.role == "re-evaluation" and bred.parents:  # to the last bit, however genes round
            original = history.records[bred.parents[0]].params
            params = {name: original[name] for name in self._domain.names}
        steps = zip(self._domain.names, bred.move.tolist(), strict=True)
        return replace(
            blank,
            index=index,
            role=bred.role,
            parents=bred.parents,
            repeat=history.n_evaluations(params) if params else 0,
            params=params,
            move={name: step for name, step in steps if step},
        )

    def _generation(self, config: Config) -> Generation:
        """Return the open generation as the strategy sees it."""
        history = self.history
        opening = history.opening
        finished = {
            index: one
            for index, slot in history.slots.items()
            if slot.result is not None and (one := self._individual(slot.result)) is not None
        }
        initial = config.initial if history.generation == 0 else ()
        return Generation(
            history.generation,
            population=self._individuals_of(opening.population if opening else ()),
            finished=finished,
            newcomers=self._individuals_of(history.newcomers),
            initial=tuple(self._initial(params) for params in initial),
            offset=history.offset,
            archive=self._archive() if config.settings.uses_archive else None,
        )

    def _archive(self) -> Archive:
        """Return all genomes with finite values, and those that are being evaluated."""
        history = self.history
        self._archive_builder.add(history.finite, history.dismissed, self._individual)
        claims_of_running = [
            history.claims[number]
            for number in sorted(history.pending.intersection(history.claims))
            if self._trials[number].state == TrialState.RUNNING
        ]
        genes = [codec.to_unit(self.space, claim.params) for claim in claims_of_running]
        running = [one for one in genes if one is not None]
        return self._archive_builder.build(running, _MOST_ARCHIVED)

    def _initial(self, params: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return an initial genome; what its parameters do not say is the middle of the range."""
        genes = [
            codec.encode(dist, params[name]) if name in params else 0.5
            for name, dist in self.space.items()
        ]
        return np.array(genes)

    def _individuals_of(self, numbers: Sequence[int]) -> tuple[Individual, ...]:
        people = (self._individual(number) for number in numbers)
        return tuple(one for one in people if one is not None)

    def _individual(self, number: int) -> Individual | None:
        """Return a trial as an individual of the current space; None if it lacks a parameter."""
        if number not in self._individuals:
            if len(self._individuals) >= _MOST_CACHED:
                self._individuals.clear()
            record = self.history.records.get(number)
            self._individuals[number] = None if record is None else self._make(record)
        return self._individuals[number]

    def _make(self, record: Record) -> Individual | None:
        genes = codec.to_unit(self.space, record.params)
        if genes is None or not self._domain.is_valid(genes):
            return None
        number, claim = record.trial.number, record.claim
        if claim is None:
            return Individual(number, genes, np.zeros(len(genes)), record.rank, record.cost)
        move = np.array([claim.move.get(name, 0.0) for name in self._domain.names])
        role, parents = claim.role, claim.parents
        return Individual(number, genes, move, record.rank, record.cost, role, parents)


def _taken_over(earlier: Claim, blank: Claim) -> Claim:
    """Return the claim of a trial that takes the place of a failed one."""
    return replace(
        earlier,
        number=blank.number,
        home=blank.home,
        holder=blank.holder,
        opening=None,
        source=None,
    )


def _are_of_another_study(known: Sequence[FrozenTrial], found: Sequence[FrozenTrial]) -> bool:
    """Whether a study was deleted and another has its id, and perhaps those of its trials."""
    if not known:
        return False
    if len(found) < len(known):
        return True
    before, now = known[0].datetime_start, found[0].datetime_start
    return before is not None and before != now


def _is_foreign(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether a running trial without a claim is another sampler's: it has begun long ago.

    Optuna's storages may read a trial's attributes before its parameters and miss a claim published
    in between, so where there are parameters the attributes are read once more.
    """
    if not trial.params or CLAIM_KEY in trial.system_attrs:
        return False
    return CLAIM_KEY not in study._storage.get_trial_system_attrs(trial._trial_id)
