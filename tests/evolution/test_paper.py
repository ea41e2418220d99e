"""Each operator, derived again from its formula with plain Python numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from biotune_optuna.evolution import paper


def twin(seed):
    """Two generators in the same state: one for the operator, one for the formula."""
    return np.random.default_rng(seed), np.random.default_rng(seed)


def draw(rng, n):
    return [float(rng.random()) for _ in range(n)]


@pytest.mark.parametrize("seed", range(5))
def test_crossover_mixes_per_gene_and_adds_momentum(seed):
    ours, theirs = twin(seed)
    p1, p2, d1, d2 = np.random.default_rng(100 + seed).random((4, 6))
    child, pull = paper.cross((p1, p2), (d1, d2), 0.7, ours)
    r, rho1, rho2 = draw(theirs, 6), draw(theirs, 6), draw(theirs, 6)
    for i in range(6):
        expected = rho1[i] * d1[i] + rho2[i] * d2[i]
        assert pull[i] == pytest.approx(expected, abs=1e-15)
        mixed = r[i] * p1[i] + (1 - r[i]) * p2[i] + 0.7 * expected
        assert child[i] == pytest.approx(mixed, abs=1e-15)


def test_momentum_zero_stays_between_the_parents():
    rng = np.random.default_rng(0)
    p1, p2 = rng.random((2, 50))
    child, _ = paper.cross((p1, p2), (np.ones(50), np.ones(50)), 0.0, rng)
    assert np.all(child >= np.minimum(p1, p2))
    assert np.all(child <= np.maximum(p1, p2))


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0])
def test_mutation(factor):
    ours, theirs = twin(3)
    genes = np.linspace(0, 1, 7)
    mutated = paper.mutate(genes, factor, ours)
    chances, moves = draw(theirs, 7), [2 * u - 1 for u in draw(theirs, 7)]
    for i in range(7):
        moved = chances[i] < (factor * 6 + 1) / 7
        expected = genes[i] + (factor * moves[i] if moved else 0)
        assert mutated[i] == pytest.approx(expected, abs=1e-15)


def test_mutation_rate_is_that_of_the_formula():
    rng = np.random.default_rng(1)
    genes = np.full(20, 0.5)
    moved = np.mean([paper.mutate(genes, 0.4, rng) != genes for _ in range(2000)])
    assert moved == pytest.approx((0.4 * 19 + 1) / 20, abs=0.01)


def test_adoption():
    ours, theirs = twin(4)
    child, p1, p2, q = np.random.default_rng(9).random((4, 5))
    adopted = paper.adopt(child, (p1, p2), q, ours)
    u1, u2, w = draw(theirs, 3)
    for i in range(5):
        to_mean = u1 * ((p1[i] + p2[i]) / 2 - child[i])
        to_prototype = u2 * (q[i] - child[i])
        expected = child[i] + w * to_mean + (1 - w) * to_prototype
        assert adopted[i] == pytest.approx(expected, abs=1e-15)


def test_displacement():
    ours, theirs = twin(5)
    final, before, pull = np.random.default_rng(2).random((3, 4))
    r = draw(theirs, 4)
    remembered = paper.displacement(final, before, pull, ours)
    expected = [r[i] * pull[i] + (final[i] - before[i]) for i in range(4)]
    assert remembered == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("start", "seed"), [*itertools.product([0.0, 0.1, 0.5, 1.0], range(4))])
def test_exploitation_stores_what_is_evaluated(start, seed):
    ours, theirs = twin(seed)
    genes = np.array([0.2, start, 0.9])
    plus, minus = paper.exploit(genes, 1, ours)
    delta = 0.25 * (2 * float(theirs.random()) - 1)
    assert plus[1] == pytest.approx(min(max(start + delta, 0), 1), abs=1e-15)
    assert minus[1] == pytest.approx(min(max(start - delta, 0), 1), abs=1e-15)
    for moved in (plus, minus):
        assert moved[[0, 2]].tolist() == [0.2, 0.9]
    assert genes[1] == start


def test_parents_are_drawn_by_rank_and_differ():
    rng = np.random.default_rng(0)
    drawn = [paper.draw_parents(4, rng) for _ in range(20000)]
    first = np.bincount([p1 for p1, _, _ in drawn], minlength=4) / len(drawn)
    prototype = np.bincount([q for _, _, q in drawn], minlength=4) / len(drawn)
    assert first == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.015)
    assert prototype == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.015)
    assert all(p1 != p2 for p1, p2, _ in drawn)
    # Given p1 = 0, p2 follows the weights of the rest.
    second = np.bincount([p2 for p1, p2, _ in drawn if p1 == 0], minlength=4)
    assert second / second.sum() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 6], abs=0.02)


def test_extinction_of_fitness_in_the_unit_interval():
    values = [0.1, 0.2, 0.4, 0.5]
    expected = [(phi + 0.1 * (i / 3 - 1)) / 0.5 for i, phi in enumerate(values)]
    assert paper.extinction(np.array(values), 0.0) == pytest.approx(expected)
    assert expected[0] == 0
    assert expected[-1] == 1
    # A maximised accuracy a has the cost −a and the fitness 1 − a.
    accuracy = [0.9, 0.8, 0.6, 0.5]
    costs = np.array([-a for a in accuracy])
    assert paper.extinction(costs, 1.0) == pytest.approx(expected)


def test_extinction_of_any_other_objective():
    costs = np.array([-3.0, 1.0, 5.0, math.nan, math.inf])
    assert paper.extinction(costs, 0.0) == pytest.approx([0, 0.5, 1, 1, 1])
    assert paper.extinction(np.full(3, 7.0), 0.0).tolist() == [0, 0, 0]
    assert paper.extinction(np.full(3, math.nan), 0.0).tolist() == [0, 0, 0]
    assert paper.extinction(np.zeros(3), 0.0).tolist() == [0, 0, 0]


def test_unordered_genes_are_inherited_not_mixed():
    rng = np.random.default_rng(0)
    choices = np.array([0, 3])
    donors = (np.array([0.1, 1 / 6]), np.array([0.2, 0.5]), np.array([0.3, 5 / 6]))
    children = [
        paper.switch_choices(np.array([0.15, 0.33]), choices, donors, 0.0, rng) for _ in range(5000)
    ]
    assert {child[0] for child in children} == {0.15}
    picked = [round(child[1] * 6) for child in children]
    shares = [picked.count(k) / len(picked) for k in (1, 3, 5)]
    assert shares == pytest.approx([0.4, 0.4, 0.2], abs=0.02)
    state = rng.bit_generator.state
    paper.switch_choices(np.zeros(2), np.array([0, 0]), donors, 1.0, rng)
    assert rng.bit_generator.state == state, "numeric genes draw nothing"
