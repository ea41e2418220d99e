"""Which finished genomes are the best, luck taken out."""

from __future__ import annotations

import numpy as np
import optuna
from optuna.trial import create_trial

from biotune_optuna.sampler.sampler import rank_finished
from tests.kit.sampler import make_space


def add(study, space, genes, value):
    params = dict(zip(space.names, [*genes, 2e-3], strict=True))
    distributions = space.distributions()
    study.add_trial(create_trial(params=params, distributions=distributions, value=value))


def test_repeats_of_a_genome_are_pooled():
    space = make_space()
    study = optuna.create_study(direction="maximize")
    for gene, value in ((0.4, 0.9), (0.6, 0.8), (0.4, 0.1)):
        add(study, space, [gene, 0.5, 0.1], value)
    assert rank_finished(study, space, smooth=False) == [1, 0]


def test_a_value_that_repeats_confirm_is_believed_more_than_one_alone():
    """Values rise with the gene but for one, which is better than all others."""
    space = make_space(threshold=None)
    genes = np.linspace(0.1, 0.9, 30)
    values = genes + 0.03 * np.cos(7 * np.arange(30))
    odd = 5
    values[odd] = 1.2
    places = []
    for repeats in (1, 50):
        study = optuna.create_study(direction="maximize")
        for gene, value in zip(genes, values, strict=True):
            add(study, space, [gene, 0.5], value)
        for _ in range(repeats - 1):
            add(study, space, [genes[odd], 0.5], values[odd])
        ranked = rank_finished(study, space)
        assert sorted(ranked) == list(range(30))
        assert rank_finished(study, space, smooth=False)[0] == odd
        places.append(ranked.index(odd))
    assert places[0] > 20
    assert places[1] < 8
