"""The model of the landscape."""

from __future__ import annotations

import numpy as np
import pytest

from biotune_optuna.evolution import experience, surrogate
from biotune_optuna.evolution.domain import Domain
from biotune_optuna.recipe import Recipe
from biotune_optuna.sampler import codec
from tests.kit.evolution import bowl, make_domain


def test_the_model_sees_through_noise():
    domain = make_domain(10)
    gains = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        genes = rng.random((100, domain.size))
        true = bowl(domain, genes)
        seen = true + 0.02 * rng.standard_normal(100)
        model = surrogate.fit(domain, genes, seen, np.ones(100))
        believed, spread = model.predict(genes)
        gains.append(np.corrcoef(believed, true)[0, 1] - np.corrcoef(seen, true)[0, 1])
        assert model.noise == pytest.approx(0.02, rel=0.4)
        assert np.all(spread > 0)
    assert min(gains) > 0.07


def test_failures_do_not_rule_the_fit():
    assert surrogate.tamed(np.array([0.2, 0.3, 0.4, 0.5, 0.9])) == pytest.approx(
        [0.2, 0.3, 0.4, 0.5, 0.7]  # the median and 1.5 times what the best is better
    )
    assert surrogate.tamed(np.array([0.1, 0.9, 0.9])) == pytest.approx([0.1, 0.9, 0.9])
    assert surrogate.tamed(np.array([0.3, 0.3, 0.9])) == pytest.approx([0.3, 0.3, 0.9])
    assert len(surrogate.tamed(np.zeros(0))) == 0


def test_the_covariance_says_how_an_evaluation_moves_its_neighbours():
    """As a fit with one more value does, its noise and deviation being those of before."""
    domain = make_domain(5)
    rng = np.random.default_rng(0)
    genes = rng.random((12, domain.size))
    model = surrogate.fit(domain, genes, bowl(domain, genes), np.ones(12))
    asked = rng.random((6, domain.size))
    together = model.covariance(asked, asked)
    np.testing.assert_allclose(np.sqrt(together.diagonal()), model.predict(asked)[1])
    np.testing.assert_allclose(together, together.T)
    assert np.linalg.eigvalsh(together).min() > -1e-12
    near = asked[:1] + 1e-3
    own, across = model.covariance(near, near)[0, 0], model.covariance(near, asked)[0]
    assert across[0] == pytest.approx(own, rel=0.01)
    assert np.all(across[1:] < across[0])


def test_before_anything_is_evaluated_other_tasks_are_believed():
    domain = make_domain(9)
    model = surrogate.fit(domain, np.zeros((0, domain.size)), np.zeros(0), np.zeros(0))
    genes = np.random.default_rng(0).random((50, domain.size))
    means, spreads = model.predict(genes)
    known = experience.learned()
    described = known.standardised(experience.features(domain.relative_rates(genes)))
    np.testing.assert_allclose(means, known.cost(described))
    assert np.all(spreads > 0.2)


def test_values_overrule_what_other_tasks_say():
    """Costs that rise where other tasks make them expected to fall."""
    domain = make_domain(9)
    rng = np.random.default_rng(0)
    genes = rng.random((120, domain.size))
    known = experience.learned()

    def contrary(genes):
        described = known.standardised(experience.features(domain.relative_rates(genes)))
        return 0.5 - 0.05 * known.cost(described)

    fresh = rng.random((100, domain.size))
    agreement = []
    for n in (0, 10, 120):
        model = surrogate.fit(domain, genes[:n], contrary(genes[:n]), np.ones(n))
        agreement.append(np.corrcoef(model.predict(fresh)[0], contrary(fresh))[0, 1])
    assert agreement == sorted(agreement)
    assert agreement[0] == pytest.approx(-1)
    assert agreement[-1] > 0.5


def test_repeats_count_for_more():
    domain = make_domain(3)
    rng = np.random.default_rng(0)
    genes = rng.random((12, domain.size))
    costs = rng.standard_normal(12)
    counts = np.ones(12)
    once = surrogate.fit(domain, genes, costs, counts).predict(genes)[1][0]
    counts[0] = 50
    often = surrogate.fit(domain, genes, costs, counts).predict(genes)[1][0]
    assert often < once


def test_too_little_to_model():
    domain = Domain(("x", "y"), np.zeros(2, dtype=np.int64))
    genes = np.random.default_rng(0).random((10, domain.size))
    assert surrogate.fit(domain, genes[:3], np.arange(3.0), np.ones(3)) is None
    assert surrogate.fit(domain, genes, np.ones(10), np.ones(10)) is None


def test_generic_domain_with_choices():
    domain = Domain(("x", "kind"), np.array([0, 3]))
    rng = np.random.default_rng(0)
    genes = rng.random((60, 2))
    kind = (genes[:, 1] * 3).astype(int)
    costs = (genes[:, 0] - 0.3) ** 2 + (kind == 1)
    model = surrogate.fit(domain, genes, costs, np.ones(60))
    believed, _ = model.predict(np.array([[0.3, 0.1], [0.3, 0.5], [0.9, 0.1]]))
    assert believed[0] < believed[2] < believed[1]


def test_a_frozen_block_is_slower_than_any_that_trains():
    domain = make_domain(3, threshold=0.0)
    frozen, slowest, fastest = ([gene, 0.5, 0.5, 0.0] for gene in (0.0, 1e-12, 1.0))
    rates = surrogate.features(domain, np.array([frozen, slowest, fastest]))[2] * np.sqrt(3)
    assert rates[:, 0] == pytest.approx([-4.5, -4.0, -2.0])
    assert rates[:, 1:] == pytest.approx(-3.0)


def test_of_many_genomes_the_best_and_the_latest_are_kept():
    domain = Domain(("x", "y"), np.zeros(2, dtype=np.int64))
    rng = np.random.default_rng(0)
    centers = {"bad": (0.9, 0.1), "good": (0.1, 0.1), "latest": (0.5, 0.9)}
    genes = np.concatenate([xy + 0.05 * rng.random((80, 2)) for xy in centers.values()])
    costs = np.repeat([1.0, 0.0, 0.5], 80) + 0.01 * rng.standard_normal(240)
    model = surrogate.fit(domain, genes, costs, np.ones(240))
    believed, spread = model.predict(np.array(list(centers.values())))
    assert believed[1:] == pytest.approx([0.0, 0.5], abs=0.05)
    assert spread[0] > 5 * max(spread[1:])


def test_length_scales_are_chosen_over_the_whole_search():
    """That the choices differ shows only in the genomes that came last."""
    domain = Domain(("x", "kind"), np.array([0, 3]))
    rng = np.random.default_rng(0)
    genes = rng.random((140, 2))
    genes[:90, 1] = 0.1
    kind = (3 * genes[:, 1]).astype(int)
    costs = genes[:, 0] + np.array([0, 2, -1])[kind] + 0.1 * rng.standard_normal(140)
    model = surrogate.fit(domain, genes, costs, np.ones(140))
    assert model.scales[1] > 1
    assert model.noise == pytest.approx(0.1, rel=0.5)


TRAINING = {"augment": ("none", "crop", "trivial"), "ema": (0.0, 0.9)}


def test_what_is_unusual_has_a_column_each():
    domain = make_domain(4, modes=True, training=TRAINING)
    space = domain.space
    recipe = Recipe.from_multipliers(
        space.blocks, [0, 1, 1, 1], lr=1e-3, modes=["full", "norms", "full", "full"],
        training={"augment": "trivial"},
    )  # fmt: skip
    genome = space.encode(recipe)
    assert genome.decode().modes == {"b1": "norms"}
    assert genome.decode().training == {"augment": "trivial", "ema": 0.0}
    genes = np.array(
        [[codec.encode(d, genome.params[n]) for n, d in space.distributions().items()]]
    )
    assert surrogate.effects(domain, genes).tolist() == [[0.5, 0.0, 0.0, 1.0, 0.0]]


def test_an_unusual_value_has_to_earn_its_place():
    """By what it does to all genomes that have it, whatever their blocks."""
    domain = make_domain(5, training=TRAINING)
    rng = np.random.default_rng(0)
    genes = rng.random((60, domain.size))
    at = domain.training.start
    usual, crop, trivial = (0.5 / 3, 1.5 / 3, 2.5 / 3)
    genes[:, at] = np.resize([usual, crop, trivial], 60)
    genes[:, at + 1] = 0.25
    costs = bowl(domain, genes) - 0.1 * (genes[:, at] == trivial)
    costs += 0.01 * rng.standard_normal(60)

    def mean_of(value, known):
        model = surrogate.fit(domain, genes[known], costs[known], np.ones(known.sum()))
        new = np.random.default_rng(1).random((50, domain.size))
        new[:, at], new[:, at + 1] = value, 0.25
        return model.predict(new)[0].mean()

    nothing_unusual, everything = genes[:, at] == usual, np.ones(60, dtype=bool)
    assert mean_of(usual, nothing_unusual) < mean_of(trivial, nothing_unusual)
    assert mean_of(trivial, everything) < mean_of(usual, everything) - 0.05
    assert abs(mean_of(crop, everything) - mean_of(usual, everything)) < 0.05
