"""Which finished genomes are the best, luck taken out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import TrialState

from biotune_optuna.evolution import surrogate
from biotune_optuna.evolution.domain import Domain
from biotune_optuna.sampler import codec

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from biotune_optuna.genome import GenomeSpace


def rank_finished(study: optuna.Study, space: GenomeSpace, *, smooth: bool = True) -> list[int]:
    """Rank the genomes of a study by what their values and their neighbours' values say.

    A value is a mean over few noisy trainings, so the best one of many is mostly lucky. Repeats of
    a genome are pooled, and a model of the landscape (`biotune_optuna.evolution.surrogate`) pools
    neighbours; its posterior mean at the evaluated genomes is what they are ranked by. With fewer
    than four different genomes the pooled means decide.

    Args:
        study: A study whose trials carry the space's parameters, whatever its sampler.
        space: The genome space.
        smooth: Whether neighbours are pooled; False ranks by each genome's own pooled mean. The
            model is better where noise rules, the means where the landscape is rougher than the
            model believes: to confirm on fresh seeds, take some of both.

    Returns:
        Numbers of completed trials, best first, one for each different genome (its earliest).
    """
    distributions = space.distributions()
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    groups: dict[tuple[object, ...], list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if trial.value is None or not math.isfinite(trial.value):
            continue
        if all(name in trial.params for name in space.names):
            groups.setdefault(space.genome(trial.params).decode().key(), []).append(trial)
    if not groups:
        return []
    firsts = [trials[0] for trials in groups.values()]
    counts = np.array([len(trials) for trials in groups.values()], dtype=np.float64)
    costs = np.array([np.mean([sign * t.values[0] for t in one]) for one in groups.values()])
    genes = np.array(
        [[codec.encode(d, t.params[n]) for n, d in distributions.items()] for t in firsts]
    )
    domain = Domain(space.names, np.zeros(len(space.names), dtype=np.int64), space)
    model = surrogate.fit(domain, genes, costs, counts) if smooth else None
    scores = costs if model is None else model.predict(genes)[0]
    order = np.lexsort((costs, scores))
    return [firsts[i].number for i in order]
