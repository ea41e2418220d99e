"""BioTuneSampler: the evolutionary strategy behind Optuna's sampler interface."""

from __future__ import annotations

import logging
import threading
import time
import weakref
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from biotune_optuna.evolution.strategy import slot_rng
from biotune_optuna.sampler import claims, codec
from biotune_optuna.sampler.claims import Claim, SlotInfo, slot_of
from biotune_optuna.sampler.config import Config
from biotune_optuna.sampler.ranking import rank_finished
from biotune_optuna.sampler.slots import SlotAllocator
from biotune_optuna.schema import ENDED_KEY, GENERATION_KEY, PARENTS_KEY, RAISED_KEY, ROLE_KEY
from biotune_optuna.storage.lease import LostTrialError

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from biotune_optuna.evolution.settings import Preset, SearchSettings
    from biotune_optuna.genome import Genome, GenomeSpace

__all__ = ["BioTuneSampler", "SlotInfo", "rank_finished", "slot_of"]

_logger = logging.getLogger(__name__)

# Seconds between two looks at trials below that have not claimed yet. The first is short beside a
# claim, which takes milliseconds, the longest short beside an evaluation; chosen by hand.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05


class BioTuneSampler(BaseSampler):
    """Evolves genomes: what to freeze, and how fast to train the rest.

    ::

        import optuna
        from biotune_optuna import BioTuneSampler, GenomeSpace
        from biotune_optuna.recipe import BlockRecipe

        space = GenomeSpace([BlockRecipe(name, 1.0) for name in ("stem", "body", "head")])

        def objective(trial):
            recipe = space.suggest(trial).decode()
            return 1 - abs(recipe.multipliers["body"] - 2.0) / 10

        study = optuna.create_study(
            direction="maximize", sampler=BioTuneSampler(space=space, seed=0)
        )
        study.optimize(objective, n_trials=50)

    Every trial fills a slot (generation, index). A slot's genome is a function of the study's
    seed, the slot and the finished trials, and everything is kept in the study: with one worker, a
    study killed at any moment and resumed in a new process runs the very trials it would have run
    uninterrupted. With several, nobody waits at the end of a generation. docs/method has both the
    strategy and the protocol.

    With ``study.ask`` and ``study.tell``, tell a trial in the process that asked for it: when that
    process has ended, the trial counts as lost and its slot goes to another.

    Each trial carries the user attributes ``generation``, ``role`` and ``parents``; an objective
    asks `slot_of` for them and for how often its genome has been evaluated before.

    Args:
        space: The genome space. None takes the one kept in the study, and where there is none,
            searches whatever parameters the objective asks for with generic operators. Parameters
            that the objective suggests beside the space's evolve along from the second trial on.
        initial: Genomes for the first slots of generation 0, or their parameters; needs a space.
        preset: ``"paper"`` is the published strategy to the letter; ``"default"`` is what measures
            best in this project's benchmark. None takes the one kept in the study, and where there
            is none, ``"default"``.
        population_size: P >= 3, survivors of a generation; None takes the strategy's.
        seed: Seed of the study. None draws one. The first trial keeps it in the study, and from
            then on the study's own seed and settings rule.
        strategy: All settings of the search, instead of a preset's, for who wants to know what one
            of them is worth: ``SearchSettings.of("paper", momentum=0)``. None takes the preset's.
        grace_period: Seconds that a new trial of a plain Optuna storage may go without saying which
            slot it takes before it counts as lost. With `open_storage` a dead worker is known at
            once.

    Raises:
        StudyError: If a number is out of range, or the study was begun with another space.
    """

    def __init__(
        self,
        *,
        space: GenomeSpace | None = None,
        initial: Sequence[Genome | Mapping[str, Any]] = (),
        preset: Preset | None = None,
        population_size: int | None = None,
        seed: int | None = None,
        strategy: SearchSettings | None = None,
        grace_period: float = 10.0,
    ) -> None:
        self._grace_period = grace_period
        self._wanted = Config.make(
            preset=preset,
            strategy=strategy,
            population_size=population_size,
            seed=seed,
            space=space,
            initial=initial,
        )
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._allocators: weakref.WeakKeyDictionary[Any, dict[int, SlotAllocator]] = (
            weakref.WeakKeyDictionary()  # by storage, then by study id
        )
        self._asked: dict[tuple[int, int], tuple[Claim, dict[str, BaseDistribution]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_wanted": self._wanted, "_grace_period": self._grace_period}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    # -- Optuna's interface --------------------------------------------------------------------

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Claim the trial's slot, publish it and write the trial's attributes."""
        try:
            self._check_single(study)
            claim, space = self._claim(study, trial)
            self._asked[id(study._storage), trial._trial_id] = (claim, space)
            parents = ", ".join(map(str, claim.parents))
            attrs = {GENERATION_KEY: claim.generation, ROLE_KEY: claim.role, PARENTS_KEY: parents}
            claims.annotate(study, trial, attrs)
        except BaseException:
            self._hand_back(study, trial)
            raise

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that the trial's genome spells."""
        self._check_single(study)
        asked = self._asked.get((id(study._storage), trial._trial_id))
        if asked is not None:
            return dict(asked[1])
        slots = self._slots(study)
        with self._lock:
            slots.refresh(study)
            return dict(slots.space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the genome that the trial's claim holds."""
        self._check_single(study)
        claim = self._claim_of(study, trial)
        if claim is not None:
            return {name: claim.params[name] for name in search_space if name in claim.params}
        return {
            name: self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a uniformly random value that depends on the seed, the slot and the name alone."""
        self._check_single(study)
        claim = self._claim_of(study, trial)
        slot = (0, trial.number) if claim is None else (claim.generation, claim.index)
        seed = self._slots(study).seed(study)
        rng = slot_rng(seed, *slot, zlib.crc32(param_name.encode()))
        return codec.decode(param_distribution, rng.random())

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,  # noqa: ARG002
    ) -> None:
        """Note that an objective raised; its slot comes back until it has raised three times."""
        self._asked.pop((id(study._storage), trial._trial_id), None)
        if state != TrialState.FAIL or ENDED_KEY in trial.system_attrs:
            return
        try:
            claims.mark(study, trial, RAISED_KEY, True)
        except Exception:  # Optuna would lose the trial's result over it  # noqa: BLE001
            _logger.warning("trial %d failed, which could not be noted", trial.number)

    # -- beyond Optuna's interface -------------------------------------------------------------

    def release(self, trial: optuna.Trial) -> bool:
        """Hand back a trial that will not be evaluated: it fails, and its slot comes back.

        Args:
            trial: What ``study.ask()`` returned.

        Returns:
            False when the trial had already finished.
        """
        self._asked.pop((id(trial.storage), trial._trial_id), None)
        return claims.fail(trial.study, trial.storage.get_trial(trial._trial_id), "stopped")

    # -- how a slot is claimed -----------------------------------------------------------------

    def _check_single(self, study: optuna.Study) -> None:
        if study._is_multi_objective():
            raise ValueError(
                f"the study has {len(study.directions)} objectives; BioTuneSampler searches for "
                "one, so create the study with one direction"
            )

    def _slots(self, study: optuna.Study) -> SlotAllocator:
        with self._lock:
            allocators = self._allocators.setdefault(study._storage, {})
            if study._study_id not in allocators:
                allocators[study._study_id] = SlotAllocator(
                    self._wanted, grace_period=self._grace_period
                )
            return allocators[study._study_id]

    def _claim(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> tuple[Claim, dict[str, BaseDistribution]]:
        """Wait until all trials below have published, then choose and publish."""
        slots = self._slots(study)
        pause = _FIRST_PAUSE
        while True:
            began = time.perf_counter()
            with self._lock:
                slots.refresh(study)
                if not slots.is_blocked(study, trial):
                    claim = slots.choose_claim(study, trial)
                    if claims.publish(study, trial, claim):
                        return claim, slots.space_of(claim)
                    raise LostTrialError(
                        f"trial {trial.number} was given up before it started, because its worker "
                        "was silent for too long; ask for another"
                    )
            # Those who wait must not take the machine and the database from the one they wait for.
            time.sleep(max(pause, 2 * (time.perf_counter() - began)))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _claim_of(self, study: optuna.Study, trial: FrozenTrial) -> Claim | None:
        asked = self._asked.get((id(study._storage), trial._trial_id))
        if asked is not None:
            return asked[0]
        attrs = study._storage.get_trial_system_attrs(trial._trial_id)
        return Claim.among(attrs, trial.number)

    def _hand_back(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._asked.pop((id(study._storage), trial._trial_id), None)
        try:
            claims.fail(study, trial, "stopped")
        except Exception:  # the first error is the one to be seen  # noqa: BLE001
            _logger.warning("trial %d could not be handed back", trial.number)
