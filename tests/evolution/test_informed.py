"""The recipes that generation 0 begins with."""

from __future__ import annotations

import numpy as np
import pytest

from biotune_optuna.evolution import experience, informed
from biotune_optuna.evolution.experience import Start
from tests.kit.evolution import SPACES, make_domain


@pytest.mark.parametrize("options", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("blocks", [1, 2, 9, 30])
def test_informed_genomes_are_valid_and_different(options, blocks):
    space = make_domain(blocks, **options).space
    genomes = informed.informed_genomes(space)
    assert all(space.is_valid(one.values) for one in genomes)
    keys = [one.decode().key() for one in genomes]
    assert len(set(keys)) == len(keys)
    assert len(genomes) >= {1: 1, 2: 2}.get(blocks, 5)


@pytest.mark.parametrize("blocks", [3, 9, 16])
def test_full_fine_tuning_a_probe_and_single_blocks_are_among_them(blocks):
    recipes = [one.decode() for one in informed.informed_genomes(make_domain(blocks).space)]
    assert any(not one.frozen for one in recipes)
    trained = [len(one.trainable) - 1 for one in recipes]  # of the body
    assert 0 in trained
    assert 1 in trained


@pytest.mark.parametrize("options", [{}, {"lr": (1e-4, 3e-3)}, {"lr": 1e-3}], ids=str)
def test_rates_are_told_from_the_middle_of_the_range(options):
    domain = make_domain(9, **options)
    logs = np.array([-np.inf] * 5 + [0.3, 0.1, -np.inf, 0.5])
    genome = informed.encode(domain.space, logs)
    rest = [0.5] * (domain.size - len(genome.values))
    if domain.lr_index is not None:
        low, high = np.log10(domain.space.extra_bounds["lr"])
        rest = [(np.log10(genome.extras["lr"]) - low) / (high - low)]
    genes = np.array([*genome.values, *rest])
    np.testing.assert_allclose(domain.relative_rates(genes[None])[0], logs)


@pytest.mark.parametrize(
    ("start", "wanted"),
    [
        (Start(0.0, 1.0, 0.2, 0.0, 0.1), [0.2, 0.2, 0.2, 0.2, 0.2, 0.1]),
        (Start(0.0, 1.0, 0.2, 1.0, 0.1), [-0.8, -0.55, -0.3, -0.05, 0.2, 0.1]),
        (Start(0.5, 0.5, 0.7, 0.0, 0.1), [None, None, 0.7, None, None, 0.1]),
        (Start(0.5, 1.0, 0.7, 0.5, 0.1), [None, None, 0.2, 0.45, 0.7, 0.1]),
        (Start(1.0, 0.0, 0.7, 0.5, 0.1), [None] * 5 + [0.1]),
    ],
    ids=["full", "layer decay", "single", "upper", "probe"],
)
def test_a_start_fits_any_depth(start, wanted):
    logs = start.log_rates(6)
    assert logs.tolist() == pytest.approx([-np.inf if x is None else x for x in wanted])
    assert start.log_rates(1).tolist() == [start.head]
    many = start.log_rates(101)[:-1]
    trains, few = np.isfinite(many), np.isfinite(logs[:-1])
    assert abs(trains.mean() - few.mean()) < 0.2


def test_what_is_learned_says_the_same_of_a_network_that_is_divided_more_finely():
    coarse = np.array([[-np.inf, -np.inf, 0.2, 0.4, 0.1]])
    fine = np.array([[*[-np.inf] * 4, 0.2, 0.2, 0.4, 0.4, 0.1]])
    known = experience.learned()
    described = [known.standardised(experience.features(one)) for one in (coarse, fine)]
    assert known.cost(described[0]) == pytest.approx(known.cost(described[1]), abs=0.35)


def test_features_are_finite_for_every_genome_and_depth():
    for blocks in (1, 2, 3, 16):
        rng = np.random.default_rng(blocks)
        logs = rng.uniform(-1.7, 1.7, (200, blocks))
        logs[rng.random(logs.shape) < 0.5] = -np.inf
        described = experience.features(logs)
        assert np.isfinite(described).all()
        assert described.shape == (200, len(experience.learned().weights))


def test_norm_tuning_and_low_rank_are_starts_where_modes_are_searched():
    plain, wide = (make_domain(6, modes=modes).space for modes in (False, True))
    recipes = [genome.decode() for genome in informed.informed_genomes(wide)]
    extra = recipes[len(informed.informed_genomes(plain)) :]
    assert [set(recipe.modes.values()) for recipe in extra] == [{"norms"}, {"low-rank"}]
    assert all(len(recipe.modes) == 5 for recipe in extra), "all but the head"
    assert all(not recipe.modes for recipe in recipes[: -len(extra)])
