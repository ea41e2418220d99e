"""Moves in the space of what a genome means."""

from __future__ import annotations

import numpy as np
import pytest

from biotune_optuna.evolution import informed, moves
from biotune_optuna.recipe import MODES
from tests.kit.evolution import SPACES, make_domain


@pytest.fixture(params=SPACES.values(), ids=SPACES)
def domain(request):
    return make_domain(**request.param)


def trains_in_full(mask, logs, rest):
    return moves.Meaning(mask, logs, rest, np.full(len(mask), len(MODES) - 1))


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


@pytest.mark.parametrize("space", [name for name in SPACES if name != "no threshold"])
def test_known_recipes_are_encoded_as_moves_write_them(space):
    """The genes of frozen blocks too."""
    domain = make_domain(**SPACES[space])
    for genome in informed.informed_genomes(domain.space):
        genes = np.array([*genome.values, *[0.5] * (domain.size - len(genome.values))])
        assert moves.write(domain, moves.read(domain, genes)) == pytest.approx(genes)


def test_every_move_leads_to_a_genome(domain):
    rng = np.random.default_rng(1)
    genes = domain.repair(rng.random(domain.size))
    seen = set()
    for _ in range(500):
        meaning = moves.read(domain, genes)
        moves.random_move(domain, meaning, rng)
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
        moves.random_move(domain, meaning, rng)
        genes = moves.write(domain, meaning)
        frozen = ~domain.space.mask(genes[: domain.space.n_genes])
        assert len(set(genes[:6][frozen])) <= 1


@pytest.mark.parametrize("base", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 3, 4, 5])
def test_shift_moves_all_rates_alike(base, seed):
    """By 0.3 · N(0, 1) decades, also where the base rate is at an end of its range."""
    domain = make_domain(threshold=0.0)
    genes = np.array([0.5] * 6 + [base])
    meaning = moves.read(domain, genes)
    moves._shift(domain, meaning, np.random.default_rng(seed))
    before, after = domain.log_rates(np.stack([genes, moves.write(domain, meaning)]))
    step = 0.3 * np.random.default_rng(seed).standard_normal()
    assert after - before == pytest.approx(np.full(6, step), abs=1e-9)


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
        meaning = trains_in_full(mask, np.array([-1, -1, 0.3, 0, 0, 0]), np.zeros(1))
        moves._boundary(domain, meaning, np.random.default_rng(seed))
        prefix = int(np.argmax(meaning.mask))
        prefixes.add(prefix)
        assert meaning.mask[prefix:].all()
        if prefix < 2:  # what thaws trains as its neighbour does
            assert (meaning.logs[prefix:2] == 0.3).all()
    assert prefixes == {0, 1, 3, 4}


def test_an_added_block_trains_at_its_nearest_neighbours_rate_or_any():
    domain = make_domain(5)
    added = {}
    for seed in range(200):
        mask = np.array([False, True, False, False, True])
        meaning = trains_in_full(mask, np.array([-1, 0.2, -1, -1, 0.9]), np.zeros(1))
        moves._add(domain, meaning, np.random.default_rng(seed))
        (b,) = [b for b in (0, 2, 3) if meaning.mask[b]]
        added.setdefault(b, []).append(meaning.logs[b])
    for b, near in {0: 0.2, 2: 0.2, 3: 0.9}.items():
        assert np.mean(np.array(added[b]) == near) == pytest.approx(0.5, abs=0.2)
        assert len(set(added[b])) > 10


def test_a_dropped_block_is_one_that_trains_but_not_the_last():
    domain = make_domain(4, head_trains=False)
    left = set()
    for seed in range(40):
        meaning = trains_in_full(np.array([True, False, True, False]), np.zeros(4), np.zeros(1))
        moves._drop(domain, meaning, np.random.default_rng(seed))
        left.add(tuple(meaning.mask.tolist()))
        moves._drop(domain, meaning, np.random.default_rng(seed))
        assert meaning.mask.sum() == 1
    assert left == {(True, False, False, False), (False, False, True, False)}


def test_swap_lets_any_frozen_block_train_in_place_of_another_and_leaves_the_head_alone():
    domain = make_domain(5)
    reached = set()
    for seed in range(60):
        mask = np.array([False, True, False, False, True])
        meaning = trains_in_full(mask, np.array([-1, 0.4, -1, -1, 0]), np.zeros(1))
        moves._swap(domain, meaning, np.random.default_rng(seed))
        assert meaning.mask.sum() == 2
        assert meaning.mask[-1]
        (new,) = np.flatnonzero(meaning.mask[:-1])
        assert meaning.logs[new] == 0.4
        reached.add(int(new))
    assert reached == {0, 2, 3}


def test_redraw_changes_one_rate_alone_over_the_whole_range():
    domain = make_domain(4)
    drawn = []
    for seed in range(200):
        before = np.array([0.1, 0.2, 0.3, 0.4])
        meaning = trains_in_full(np.array([True, False, True, True]), before.copy(), np.zeros(1))
        moves._redraw(domain, meaning, np.random.default_rng(seed))
        (b,) = np.flatnonzero(meaning.logs != before)
        assert b != 1
        drawn.append(meaning.logs[b])
    assert np.histogram(drawn, bins=4, range=(-1, 1))[0].min() > 30


def test_strangers_are_of_every_kind(domain):
    space = domain.space
    counts, suffixes = set(), 0
    for seed in range(400):
        meaning = moves.stranger(domain, np.random.default_rng(seed))
        genes = moves.write(domain, meaning)
        assert np.all((genes >= 0) & (genes <= 1))
        assert domain.is_valid(genes)
        counts.add(int(meaning.mask[: space.n_freezable].sum()))
        suffixes += bool(np.all(np.diff(meaning.mask.astype(int)) >= 0))
        assert meaning.mask[space.n_freezable :].all()
    assert counts == set(range(0 if space.head_trains else 1, space.n_freezable + 1))
    assert suffixes > 130  # a third and those of the others that happen to be


def test_crossover_takes_the_lower_blocks_of_one_and_the_upper_of_the_other():
    one = trains_in_full(np.array([False] * 4), np.full(4, -0.5), np.zeros(2))
    other = trains_in_full(np.array([True] * 4), np.full(4, 0.5), np.ones(2))
    cuts = set()
    for seed in range(20):
        child = moves.crossover(
            make_domain(4, weight_decay=(1e-5, 1e-1)), one, other, np.random.default_rng(seed)
        )
        cut = 4 - int(child.mask.sum())
        assert child.mask.tolist() == [False] * cut + [True] * (4 - cut)
        assert child.logs.tolist() == [-0.5] * cut + [0.5] * (4 - cut)
        assert ((child.rest > 0) & (child.rest < 1)).all()
        cuts.add(cut)
    assert cuts == {1, 2, 3}


@pytest.mark.parametrize("width", ["one", "all"])
def test_modes_change_of_one_block_or_of_all_that_train(width):
    domain = make_domain(5, modes=True)
    seen = set()
    for seed in range(100):
        meaning = trains_in_full(
            np.array([True, False, True, True, True]), np.zeros(5), np.zeros(1)
        )
        moves._remode(domain, meaning, np.random.default_rng(seed))
        assert meaning.modes[1] == meaning.modes[4] == len(MODES) - 1
        changed = meaning.modes[[0, 2, 3]]
        assert len(set(changed)) == 1 or (changed != len(MODES) - 1).sum() == 1
        if (len(set(changed)) == 1) == (width == "all"):
            seen.add(int(changed.min()))
    assert seen >= {0, 1}


def test_training_genes_flip_between_the_usual_value_and_others():
    domain = make_domain(3, training={"augment": ("none", "crop", "trivial")})
    at, usual = domain.training.start - domain.space.n_genes, 0.5 / 3
    reached = set()
    for seed in range(300):
        meaning = trains_in_full(np.ones(3, dtype=bool), np.zeros(3), np.array([0.5, usual]))
        moves.random_move(domain, meaning, np.random.default_rng(seed))
        reached.add(round(float(meaning.rest[at]), 6))
        if meaning.rest[at] != usual:
            again = moves._other_value(domain, meaning.rest[at], at, np.random.default_rng(seed))
            assert again == usual
    assert reached == {round(v, 6) for v in (0.5 / 3, 1.5 / 3, 2.5 / 3)}


def test_a_child_has_each_training_gene_of_one_of_its_parents():
    domain = make_domain(3, training={"augment": ("none", "crop", "trivial"), "ema": (0.0, 0.9)})
    mask, logs = np.ones(3, dtype=bool), np.zeros(3)
    one = trains_in_full(mask, logs, np.array([0.2, 0.5 / 3, 0.25]))
    other = trains_in_full(mask, logs, np.array([0.8, 2.5 / 3, 0.75]))
    rng = np.random.default_rng(0)
    children = [moves.crossover(domain, one, other, rng).rest for _ in range(50)]
    assert {float(child[1]) for child in children} == {0.5 / 3, 2.5 / 3}
    assert {float(child[2]) for child in children} == {0.25, 0.75}
    assert all(0.2 < child[0] < 0.8 for child in children)


def test_strangers_have_the_usual_values_half_of_the_time():
    domain = make_domain(5, modes=True, training={"ema": (0.0, 0.9), "mix": ("none", "mixup")})
    rng = np.random.default_rng(0)
    genes = np.array([moves.write(domain, moves.stranger(domain, rng)) for _ in range(300)])
    usual = (domain.training_cells(genes) == 0).mean(0)
    assert ((usual > 0.65) & (usual < 0.85)).all()  # a half, and half of the rest
    modes = domain.space.block_modes(genes[:, : domain.space.n_genes])
    trains = domain.space.mask(genes[:, : domain.space.n_genes])[:, :-1]
    assert set(modes[:, :-1][trains]) == {0, 1, 2}
    assert (modes[:, -1] == 2).all()


def test_a_block_that_begins_to_train_does_so_as_its_neighbour_does():
    """Not as the gene that it had while it was frozen happens to say."""
    domain = make_domain(8, modes=True)
    full = len(MODES) - 1
    mask = np.arange(8) >= 4
    written = moves.write(domain, trains_in_full(mask, np.zeros(8), np.zeros(1)))
    for move in (moves._add, moves._boundary, moves._swap):
        began = 0
        for seed in range(60):
            meaning = moves.read(domain, written)
            before = meaning.mask.copy()
            move(domain, meaning, np.random.default_rng(seed))
            new = meaning.mask & ~before
            began += new.sum()
            assert (meaning.modes[new] == full).all()
        assert began, move
