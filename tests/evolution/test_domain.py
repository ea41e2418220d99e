"""What the strategy knows of its space."""

from __future__ import annotations

import numpy as np

from tests.kit.evolution import make_domain


def test_genomes_that_mean_the_same_have_one_key():
    domain = make_domain(3, weight_decay=(1e-5, 1e-1))
    assert domain.names[3:] == ("gene.threshold", "lr", "weight_decay")
    genes = np.array([0.2, 0.6, 0.7, 0.4, 0.5, 0.5])
    same = np.array([0.1, 0.6, 0.7, 0.5, 0.5, 0.5])  # the first block is frozen in both
    assert domain.key(genes) == domain.key(same)
    for position in (1, 2, 4, 5):
        other = genes.copy()
        other[position] = 0.8
        assert domain.key(genes) != domain.key(other), domain.names[position]
