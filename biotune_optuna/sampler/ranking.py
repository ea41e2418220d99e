"""Which genomes are the best, and what a model of the landscape says of any: luck taken out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import TrialState

from biotune_optuna.evolution import surrogate
from biotune_optuna.evolution.domain import Domain
from biotune_optuna.sampler import codec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import optuna
    from optuna.trial import FrozenTrial

    from biotune_optuna.genome import Genome, GenomeSpace


class _Evaluated(NamedTuple):
    """Different genomes of a study: the first trial of each, mean cost and number of values."""

    numbers: list[int]
    genes: NDArray[np.float64]
    costs: NDArray[np.float64]
    counts: NDArray[np.float64]


class Belief:
    """What a model of the landscape says of genomes, from a study's finished trials.

    Args:
        study: A study whose trials carry the space's parameters, whatever its sampler.
        space: The genome space.
    """

    def __init__(self, study: optuna.Study, space: GenomeSpace) -> None:
        self._space = space
        self._sign = _sign(study)
        known = _evaluated(study, space)
        self._model = _fit(space, known)

    def values(self, genomes: Sequence[Genome]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the value expected of each genome without luck, and its standard deviation.

        Args:
            genomes: Genomes of the space, evaluated or not.

        Returns:
            In the units of the study's value, shape (N,) each.
        """
        genes = np.array([_unit(self._space, one.params) for one in genomes])
        means, spreads = self._model.predict(genes)
        return self._sign * means, spreads


def rank_finished(study: optuna.Study, space: GenomeSpace, *, smooth: bool = True) -> list[int]:
    """Rank the genomes of a study by what their values and their neighbours' values say.

    A value is a mean over few noisy trainings, so the best one of many is mostly lucky. Repeats of
    a genome are pooled, and a model of the landscape (`biotune_optuna.evolution.surrogate`) pools
    neighbours; its posterior mean at the evaluated genomes is what they are ranked by.

    Args:
        study: A study whose trials carry the space's parameters, whatever its sampler.
        space: The genome space.
        smooth: Whether neighbours are pooled; False ranks by each genome's own pooled mean. The
            model is better where noise rules, the means where the landscape is rougher than the
            model believes: to confirm on fresh seeds, take some of both.

    Returns:
        Numbers of completed trials, best first, one for each different genome (its earliest).
    """
    known = _evaluated(study, space)
    if not known.numbers:
        return []
    scores = _fit(space, known).predict(known.genes)[0] if smooth else known.costs
    order = np.lexsort((known.costs, scores))
    return [known.numbers[i] for i in order]


def _evaluated(study: optuna.Study, space: GenomeSpace) -> _Evaluated:
    sign = _sign(study)
    groups: dict[tuple[object, ...], list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if trial.value is None or not math.isfinite(trial.value):
            continue
        if all(name in trial.params for name in space.names):
            groups.setdefault(space.genome(trial.params).decode().key(), []).append(trial)
    genes = [_unit(space, trials[0].params) for trials in groups.values()]
    costs = [np.mean([sign * t.values[0] for t in trials]) for trials in groups.values()]
    return _Evaluated(
        numbers=[trials[0].number for trials in groups.values()],
        genes=np.array(genes).reshape(len(genes), len(space.names)),
        costs=np.array(costs, dtype=np.float64),
        counts=np.array([len(trials) for trials in groups.values()], dtype=np.float64),
    )


def _sign(study: optuna.Study) -> float:
    """Return what turns a value into a cost, and back."""
    return -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0


def _unit(space: GenomeSpace, params: Mapping[str, float]) -> list[float]:
    """Return the space's parameters, each in [0, 1]."""
    return [codec.encode(d, params[name]) for name, d in space.distributions().items()]


def _fit(space: GenomeSpace, known: _Evaluated) -> surrogate.Model:
    domain = Domain(space.names, np.zeros(len(space.names), dtype=np.int64), space)
    model = surrogate.fit(domain, known.genes, known.costs, known.counts)
    assert model is not None, "with a genome space there is a prior mean"
    return model
