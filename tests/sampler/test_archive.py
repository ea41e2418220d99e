"""The archive of evaluated genomes."""

from __future__ import annotations

import numpy as np
import pytest

from biotune_optuna.evolution.domain import Domain
from biotune_optuna.evolution.generation import Individual
from biotune_optuna.sampler.archive import ArchiveBuilder
from tests.kit.sampler import make_space


def archive_of(space, evaluated, most=100):
    domain = Domain(space.names, np.zeros(len(space.names), dtype=np.int64), space)
    people = {
        number: Individual(number, np.array(genes), np.zeros(len(genes)), (0.0, cost), cost)
        for number, (genes, cost) in enumerate(evaluated)
    }
    builder = ArchiveBuilder(domain)
    builder.add(list(people), [], people.get)
    return builder.build([], most)


def test_evaluations_of_one_genome_are_pooled():
    """Also where only the gene of a frozen block differs."""
    first, second = [0.2, 0.9, 0.3, 0.5], [0.6, 0.9, 0.3, 0.5]
    again = [0.1, 0.9, 0.3, 0.5]
    archive = archive_of(make_space(2), [(first, 0.2), (second, 0.5), (first, 0.4), (again, 0.6)])
    assert archive.costs.tolist() == pytest.approx([0.4, 0.5])
    assert archive.counts.tolist() == [3, 1]
    assert archive.numbers.tolist() == [0, 1]
    assert archive.genes.tolist() == [first, second]


def test_of_too_many_genomes_the_best_and_the_latest_are_kept():
    space = make_space(2, threshold=None, lr=1e-3)
    costs = [5.0, 1.0, 2.0, 4.0, 0.0, *[9.0] * 9]
    archive = archive_of(space, [([0.05 * i, 0.5], cost) for i, cost in enumerate(costs)], most=6)
    assert archive.numbers.tolist() == [1, 2, 4, 11, 12, 13]
    assert archive.costs.tolist() == [1, 2, 0, 9, 9, 9]
    assert len(archive.evaluated) == 14, "what is left out is still known"
