"""What the strategy knows of its space."""

from __future__ import annotations

import numpy as np

from biotune_optuna.recipe import Recipe
from biotune_optuna.sampler import codec
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


def test_drop_path_means_nothing_where_only_the_head_trains():
    domain = make_domain(3, training={"drop_path": (0.0, 0.1), "ema": (0.0, 0.9)})
    space = domain.space

    def both(multipliers, **training):
        recipe = Recipe.from_multipliers(
            space.blocks, multipliers, lr=1e-3, training={"drop_path": 0.0, "ema": 0.0} | training
        )
        genes = codec.to_unit(space.distributions(), space.encode(recipe).params)
        return domain.key(genes), recipe.key()

    probe, body = [0, 0, 1], [0, 1, 1]
    assert both(probe, drop_path=0.1) == both(probe)
    different = [
        (both(body, drop_path=0.1), both(body)),
        (both(probe, ema=0.9), both(probe)),
        (both(probe), both(body)),
    ]
    for one, other in different:
        assert all(a != b for a, b in zip(one, other, strict=True))
