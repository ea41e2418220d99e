"""What the default preset adds: informed starts, structured moves, a model, re-evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from biotune_optuna.evolution import breeding, informed, moves, surrogate
from biotune_optuna.evolution.domain import Domain
from biotune_optuna.evolution.strategy import (
    Generation,
    Individual,
    Settings,
    plan,
    propose,
    survivors,
)
from biotune_optuna.genome import GenomeSpace
from biotune_optuna.recipe import BlockRecipe


def make_domain(blocks=6, **options):
    space = GenomeSpace([BlockRecipe(f"b{i}", 1.0) for i in range(blocks)], **options)
    return Domain(space.names, np.zeros(len(space.names), dtype=np.int64), space)


SPACES = {
    "default": {},
    "paper": {"head_trains": False, "lr": 1e-3},
    "fixed threshold": {"threshold": 0.3},
    "no threshold": {"threshold": None},
    "weight decay": {"weight_decay": (1e-5, 1e-1)},
}


@pytest.fixture(params=SPACES.values(), ids=SPACES)
def domain(request):
    return make_domain(**request.param)


# -- informed starts ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("blocks", [1, 2, 9])
def test_informed_genomes_are_valid_and_different(options, blocks):
    space = make_domain(blocks, **options).space
    genomes = informed.informed_genomes(space)
    assert all(space.is_valid(one.values) for one in genomes)
    keys = [one.decode().key() for one in genomes]
    assert len(set(keys)) == len(keys)
    assert len(genomes) >= (3 if blocks == 1 else 5)


def test_informed_genomes_are_what_a_practitioner_tries():
    space = make_domain(9).space
    recipes = [one.decode() for one in informed.informed_genomes(space)]
    assert [r.frozen_prefix for r in recipes] == [4, 0, 0, 1, 0, 4, 0, 8, 0]
    full = [r for r in recipes if set(r.multipliers.values()) == {1.0}]
    assert len(full) == 3
    assert len({r.lr for r in full}) == 3
    layered = [r for r in recipes if r.frozen_prefix == 0 and len(set(r.multipliers.values())) > 1]
    for recipe in layered:
        assert list(recipe.multipliers.values()) == sorted(recipe.multipliers.values())


# -- structured moves --------------------------------------------------------------------------


def test_reading_and_writing_a_meaning_keeps_it(domain):
    rng = np.random.default_rng(0)
    for _ in range(200):
        genes = domain.repair(rng.random(domain.size))
        written = moves.write(domain, moves.read(domain, genes))
        np.testing.assert_array_equal(
            domain.space.mask(written[: domain.space.n_genes]),
            domain.space.mask(genes[: domain.space.n_genes]),
        )
        before, after = domain.log_rates(np.stack([genes, written]))
        slow = before < domain.log_base(genes[None])[0] - 0.95  # the slowest genes are clipped
        np.testing.assert_allclose(after[~slow], before[~slow], atol=0.05)
        assert domain.key(moves.write(domain, moves.read(domain, written))) == domain.key(written)


def test_every_move_leads_to_a_genome(domain):
    rng = np.random.default_rng(1)
    genes = domain.repair(rng.random(domain.size))
    seen = set()
    for _ in range(500):
        meaning = moves.read(domain, genes)
        moves.mutate(domain, meaning, rng)
        genes = moves.write(domain, meaning)
        assert np.all((genes >= 0) & (genes <= 1))
        assert domain.is_valid(genes)
        seen.add(domain.key(genes))
    assert len(seen) > 300


def test_genes_of_frozen_blocks_do_not_drift():
    domain = make_domain()
    rng = np.random.default_rng(2)
    genes = rng.random(domain.size)
    for _ in range(100):
        meaning = moves.read(domain, genes)
        moves.mutate(domain, meaning, rng)
        genes = moves.write(domain, meaning)
        frozen = ~domain.space.mask(genes[: domain.space.n_genes])
        assert len(set(genes[:6][frozen])) <= 1


def test_shift_moves_all_rates_alike():
    domain = make_domain(threshold=0.0)
    genes = np.array([0.5] * 6 + [0.5])
    meaning = moves.read(domain, genes)
    moves._shift(domain, meaning, np.random.default_rng(0))
    before, after = domain.log_rates(np.stack([genes, moves.write(domain, meaning)]))
    steps = after - before
    assert np.ptp(steps) < 1e-12
    assert abs(steps[0]) > 1e-3


def test_tilt_turns_the_rates_about_the_middle():
    domain = make_domain(5, threshold=0.0)
    genes = np.array([0.5] * 5 + [0.5])
    meaning = moves.read(domain, genes)
    moves._tilt(domain, meaning, np.random.default_rng(0))
    steps = np.diff(meaning.logs)
    assert np.allclose(steps, steps[0])
    assert meaning.logs[2] == pytest.approx(0)
    assert abs(steps[0]) > 1e-3


def test_boundary_moves_the_frozen_prefix():
    domain = make_domain()
    prefixes = set()
    for seed in range(40):
        mask = np.array([False, False, True, True, True, True])
        meaning = moves.Meaning(mask, np.array([-1, -1, 0.3, 0, 0, 0]), np.zeros(1))
        moves._boundary(domain, meaning, np.random.default_rng(seed))
        prefix = int(np.argmax(meaning.mask))
        prefixes.add(prefix)
        assert meaning.mask[prefix:].all()
        if prefix < 2:  # what thaws trains as its neighbour does
            assert (meaning.logs[prefix:2] == 0.3).all()
    assert prefixes == {0, 1, 3, 4}


def test_swap_exchanges_neighbours():
    domain = make_domain(3)
    meaning = moves.Meaning(np.array([False, True, True]), np.array([-1, 0.4, 0]), np.zeros(1))
    moves._swap(domain, meaning, np.random.default_rng(0))
    assert meaning.mask.tolist() == [True, False, True]
    assert meaning.logs.tolist() == [0.4, -1, 0]


# -- the model ---------------------------------------------------------------------------------


def bowl(domain, genes):
    rates = domain.log_rates(genes)
    active = np.isfinite(rates)
    overall = np.where(active, rates, 0).sum(1) / active.sum(1)
    return 0.05 * (overall + 2.2) ** 2 + 0.02 * active[:, :3].mean(1)


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
    assert min(gains) > 0.1


def test_normal_scores_rise_with_cost_and_share_ties():
    scores = surrogate.normal_scores(np.array([3.0, 1.0, 1.0, 1e9]))
    assert scores == pytest.approx([0.319, -0.674, -0.674, 1.150], abs=1e-3)
    assert len(surrogate.normal_scores(np.zeros(0))) == 0
    many = np.random.default_rng(0).standard_cauchy(101)
    assert surrogate.normal_scores(many).mean() == pytest.approx(0.0, abs=1e-12)
    assert np.array_equal(np.argsort(surrogate.normal_scores(many)), np.argsort(many))


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
    domain = make_domain(3)
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


# -- breeding ----------------------------------------------------------------------------------


def make_archive(domain, n=20, seed=0, running=0, dismissed=()):
    rng = np.random.default_rng(seed)
    genes = rng.random((n, domain.size))
    costs = bowl(domain, genes)
    keys = {domain.key(one): i for i, one in enumerate(genes)}
    others = rng.random((running, domain.size))
    return breeding.Archive(
        np.arange(n), genes, costs, np.ones(n), keys,
        frozenset(domain.key(one) for one in dismissed), others,
        frozenset(domain.key(one) for one in others),
    )  # fmt: skip


def test_duplicates_are_replaced_until_the_space_is_exhausted():
    domain = make_domain()
    pruned, fresh = np.random.default_rng(5).random((2, domain.size))
    archive = make_archive(domain, running=1, dismissed=[pruned])
    landscape = breeding.Landscape.of(domain, archive, smooth=False)
    known, flying = archive.genes[0], archive.running[0]
    offered = iter([known, flying, pruned, fresh])

    def breed(draw, unique=True):
        genes, _ = breeding.breed(
            domain, archive, landscape, draw,
            candidates=1, caution=0, unique=unique, rng=np.random.default_rng(0),
        )  # fmt: skip
        return genes

    np.testing.assert_array_equal(breed(lambda _: (next(offered), ())), fresh)
    np.testing.assert_array_equal(breed(lambda _: (known, ())), known)
    np.testing.assert_array_equal(breed(lambda _: (known, ()), unique=False), known)


def test_the_model_chooses_among_candidates():
    domain = make_domain()
    archive = make_archive(domain, 60)
    landscape = breeding.Landscape.of(domain, archive, smooth=True)
    rng = np.random.default_rng(0)

    def value(candidates):
        drawn = [
            breeding.breed(
                domain, archive, landscape, lambda r: (r.random(domain.size), ()),
                candidates=candidates, caution=0.0, unique=True, rng=rng,
            )[0]
            for _ in range(30)
        ]  # fmt: skip
        return bowl(domain, np.array(drawn)).mean()

    assert value(20) < value(1)


def test_workers_spread_out():
    """What another worker is evaluating is believed, so its surroundings are less uncertain."""
    domain = make_domain()
    alone, together = make_archive(domain, 30), make_archive(domain, 30, running=3)
    spread = [
        breeding.Landscape.of(domain, one, smooth=True).model.predict(together.running)[1]
        for one in (alone, together)
    ]
    assert np.all(spread[1] < spread[0])


def test_the_best_genome_with_the_fewest_evaluations_is_evaluated_again():
    domain = make_domain()
    archive = make_archive(domain)
    landscape = breeding.Landscape.of(domain, archive, smooth=False)
    best = np.argsort(archive.costs)[:3]
    archive.counts[best[0]] = 2
    assert breeding.choose_again(archive, landscape, 3) == best[1]
    assert breeding.choose_again(archive, landscape, 1) == best[0]


def test_switches_are_independent():
    domain = make_domain()
    rng = np.random.default_rng(0)
    people = tuple(
        Individual(i, rng.random(domain.size), np.zeros(domain.size), (0.0, i / 50), i / 50)
        for i in range(10)
    )
    archive = make_archive(domain)
    switches = {"structured": True, "smoothing": True, "unique": True, "candidates": 5}
    for name, value in switches.items():
        alone = Settings(**{name: value, "reevaluations": 1})
        others = {k: v for k, v in switches.items() if k != name}
        without = Settings(**others, reevaluations=1)
        for chosen in (alone, without):
            finished = dict(enumerate(people))
            generation = Generation(1, population=people, archive=archive, finished=finished)
            roles = plan(chosen, 1)
            assert roles.count("re-evaluation") == 1
            for index, role in enumerate(roles):
                proposal = propose(chosen, domain, generation, index, seed=1)
                assert domain.is_valid(proposal.genes)
                assert proposal.copied == (role == "re-evaluation")
                if proposal.copied:
                    assert domain.key(proposal.genes) in archive
            left = survivors(chosen, domain, generation)
            assert len(left) == len(set(left)) == 10
