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
        trials: COMPLETE trials of it to go by; None is all there are.
        seen: Further genomes and what each was worth in one evaluation outside the study.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: GenomeSpace,
        *,
        trials: Sequence[FrozenTrial] | None = None,
        seen: Sequence[tuple[Genome, float]] = (),
    ) -> None:
        self._space = space
        self._sign = _sign(study)
        self._model = _fit(space, _evaluated(study, space, trials, seen))

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


def rank_finished(
    study: optuna.Study,
    space: GenomeSpace,
    *,
    smooth: bool = True,
    trials: Sequence[FrozenTrial] | None = None,
) -> list[int]:
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
        trials: COMPLETE trials of the study to rank; None is all there are.

    Returns:
        Numbers of completed trials, best first, one for each different genome (its earliest).
    """
    known = _evaluated(study, space, trials)
    if not known.numbers:
        return []
    scores = _fit(space, known).predict(known.genes)[0] if smooth else known.costs
    order = np.lexsort((known.costs, scores))
    return [known.numbers[i] for i in order]


def _evaluated(
    study: optuna.Study,
    space: GenomeSpace,
    trials: Sequence[FrozenTrial] | None,
    seen: Sequence[tuple[Genome, float]] = (),
) -> _Evaluated:
    sign = _sign(study)
    if trials is None:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found = [
        (trial.number, space.genome(trial.params), trial.value)
        for trial in trials
        if trial.value is not None and all(name in trial.params for name in space.names)
    ]
    groups: dict[tuple[object, ...], list[tuple[int, Genome, float]]] = {}
    for number, genome, value in [*found, *((-1, *one) for one in seen)]:
        if math.isfinite(value):
            groups.setdefault(genome.decode().key(), []).append((number, genome, value))
    genes = [_unit(space, group[0][1].params) for group in groups.values()]
    costs = [np.mean([sign * value for *_, value in group]) for group in groups.values()]
    return _Evaluated(
        numbers=[group[0][0] for group in groups.values()],
        genes=np.array(genes).reshape(len(genes), len(space.names)),
        costs=np.array(costs, dtype=np.float64),
        counts=np.array([len(group) for group in groups.values()], dtype=np.float64),
    )


def _sign(study: optuna.Study) -> float:
    """Return what turns a value into a cost, and back."""
    return -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0


def _unit(space: GenomeSpace, params: Mapping[str, float]) -> list[float]:
    """Return the space's parameters, each in [0, 1]."""
    return [codec.encode(d, params[name]) for name, d in space.distributions().items()]


def _fit(space: GenomeSpace, known: _Evaluated) -> surrogate.Model:
    distributions = space.distributions().values()
    choices = np.array([codec.n_choices(one) for one in distributions], dtype=np.int64)
    cells = tuple(codec.n_cells(one) for one in distributions)
    domain = Domain(space.names, choices, space, cells)
    model = surrogate.fit(domain, known.genes, known.costs, known.counts)
    assert model is not None, "with a genome space there is a prior mean"
    return model
