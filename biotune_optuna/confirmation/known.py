"""What a search has trained already, so that the confirmation need not train it again.

Full fine-tuning and its like are points of the space that was searched. So the model of the
landscape (`biotune_optuna.sampler.ranking.Belief`) knows about where their best rate is, and one or
two trainings settle it. And a recipe that the search evaluated again has a run on a fresh seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from biotune_optuna.clock import RATES_KNOWN
from biotune_optuna.confirmation.plan import rates_around
from biotune_optuna.confirmation.record import Training
from biotune_optuna.methods.registry import get_method
from biotune_optuna.sampler.ranking import Belief
from biotune_optuna.schema import TrialRecord
from biotune_optuna.study.losers import BEHIND

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from biotune_optuna.confirmation.plan import ConfirmPlan
    from biotune_optuna.recipe import Recipe
    from biotune_optuna.study.study import TuningStudy


class ModelledRates:
    """Chooses a rival's base rate: the model says what to train, and the trainings correct it.

    The rate of which most is expected is trained on the search's first seed, and the model learns
    of it, until that rate is one that has been trained. So every rate that is taken was tried. Of
    rates that the searched space does not hold the model knows nothing: they are tried one after
    the other where the best one is at the end of the space.

    Args:
        study: The study.
        finished: Its trials to go by.
        method: Name of a method that is no more than its recipe and is tuned by its rate.
        rates: Rates to choose from.
        most: Rates that are trained at most, at least 1.
    """

    def __init__(
        self,
        study: TuningStudy,
        finished: Sequence[FrozenTrial],
        method: str,
        rates: Sequence[float],
        *,
        most: int,
    ) -> None:
        self._study, self._finished, self._most = study, finished, most
        space = study.setup.space
        self.rates = tuple(sorted(rates))
        self._genomes = {}
        for rate in self.rates:
            setting = {"lr": rate, "weight_decay": space.base_weight_decay}
            recipe = get_method(method).recipe(study.setup.blocks, setting)
            genome = space.encode(recipe)
            if space.is_valid(genome.values) and genome.decode().key() == recipe.key():
                self._genomes[rate] = genome
        self._expected: dict[tuple[tuple[float, float], ...], dict[float, float]] = {}

    @property
    def known(self) -> tuple[float, ...]:
        """The rates that the searched space holds, ascending."""
        return tuple(self._genomes)

    def expected(self, scores: Mapping[float, float]) -> Mapping[float, float]:
        """Return the value expected at each rate that the space holds.

        Args:
            scores: What each rate trained so far scored.
        """
        key = tuple(sorted((r, score) for r, score in scores.items() if r in self._genomes))
        if key not in self._expected:  # asked for again before each training
            seen = [(self._genomes[rate], score) for rate, score in key]
            trials, study = self._finished, self._study
            belief = Belief(study.study, study.setup.space, trials=trials, seen=seen)
            values, _ = belief.values(list(self._genomes.values()))
            self._expected[key] = dict(zip(self._genomes, values.tolist(), strict=True))
        return self._expected[key]

    def further(self, scores: Mapping[float, float]) -> float | None:
        """Return the rate to train next, None when enough is known; arguments as `expected`."""
        if len(scores) >= self._most:
            return None
        found = _best(self.expected(scores))
        if found not in scores:
            return found
        at, (low, *_, high) = self.rates.index(self.best(scores)), self.known
        beyond = [*self.rates[max(0, at - 1) : at]] if self.rates[at] <= low else []
        beyond += self.rates[at + 1 : at + 2] if self.rates[at] >= high else []
        return next((rate for rate in beyond if rate not in scores), None)

    def best(self, scores: Mapping[float, float]) -> float:
        """Return the best of the rates that were trained, at least one; see `expected`."""
        expected = self.expected(scores)
        known = {rate: value for rate, value in expected.items() if rate in scores}
        others = {rate: score for rate, score in scores.items() if rate not in expected}
        if not known:
            return _best(others)
        inside = _best(known)
        return _best(others | {inside: scores[inside]})


def _best(values: Mapping[float, float]) -> float:
    """Return the rate of the highest value, among equals the lowest rate."""
    return min(values, key=lambda rate: (-values[rate], rate))


def rates_known(
    study: TuningStudy, plan: ConfirmPlan, method: str, finished: Sequence[FrozenTrial]
) -> ModelledRates | None:
    """Return what a search knows of a rival's base rate.

    Args:
        study: The study.
        plan: Says whether that is used, and the rates to choose from.
        method: The rival.
        finished: The study's trials to go by.

    Returns:
        None where a grid of rates is to be trained: too few trials, trained in folds, a space that
        does not hold two of the rates, nothing to tune.
    """
    enough = study.spec.n_folds == 1 and len(finished) >= RATES_KNOWN
    if not (plan.reuse and enough and get_method(method).is_tuned):
        return None
    rates = rates_around(plan.rates, plan.more_rates)
    found = ModelledRates(study, finished, method, rates, most=len(plan.rates))
    return found if len(found.known) > 1 else None


def counted_runs(
    study: TuningStudy, plan: ConfirmPlan, finished: Sequence[FrozenTrial]
) -> tuple[dict[tuple[Any, ...], tuple[int, Training]], list[FrozenTrial]]:
    """Set runs of the search aside that count as runs of a confirmation.

    The recipes to confirm are to be chosen by the other trials: else the luck of such a run would
    help to choose its recipe, and then speak for it.

    Args:
        study: The study.
        plan: Says whether there are any.
        finished: The study's COMPLETE trials.

    Returns:
        Seed and run by `Recipe.key`, and the trials to choose by.
    """
    if not plan.reuse or plan.n_runs < 2:
        return {}, list(finished)
    again = evaluated_again(study, finished)
    later = {trial.number for trial, *_ in again.values()}
    counted = {key: (seed, training) for key, (_, seed, training) in again.items()}
    return counted, [trial for trial in finished if trial.number not in later]


def evaluated_again(
    study: TuningStudy, finished: Sequence[FrozenTrial]
) -> dict[tuple[Any, ...], tuple[FrozenTrial, int, Training]]:
    """Return the last re-evaluation of each recipe that has one on all training images.

    Args:
        study: The study.
        finished: Its COMPLETE trials.

    Returns:
        By `Recipe.key`: the trial, the seed of its first run, and that run. The seed is none that
        an earlier trial of the recipe had.
    """
    space = study.setup.space
    seeds: dict[tuple[Any, ...], set[int]] = {}
    found: dict[tuple[Any, ...], tuple[FrozenTrial, int, Training]] = {}
    for trial in sorted(finished, key=lambda one: one.number):
        if not all(name in trial.params for name in space.names):
            continue
        recipe, record = space.genome(trial.params).decode(), TrialRecord(trial)
        earlier = seeds.setdefault(recipe.key(), set())
        run = next(iter(record.runs), None)
        whole = run is not None and run.fold is None and run.stopped != BEHIND
        if earlier and run is not None and whole and run.seed not in earlier:
            found[recipe.key()] = trial, run.seed, _training(recipe, record)
        earlier.update(one.seed for one in record.runs)
    return found


def _training(recipe: Recipe, record: TrialRecord) -> Training:
    """Return a trial's first run as a confirmation would keep it, without its predictions."""
    run = record.runs[0]
    return Training(
        key=recipe.key(),
        score=run.score,
        best_epoch=run.best_epoch,
        trainable_pct=record.trainable_pct or 0.0,
        forward=run.forward,
        backward=run.backward,
        seconds=run.seconds,
    )
