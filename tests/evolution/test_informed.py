"""The recipes that generation 0 begins with."""

from __future__ import annotations

import pytest

from biotune_optuna.evolution import informed
from tests.kit.evolution import SPACES, make_domain


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
    assert [len(r.frozen) for r in recipes] == [4, 0, 0, 1, 0, 4, 0, 8, 0]
    assert all(r.trainable == tuple(r.multipliers)[len(r.frozen) :] for r in recipes)
    full = [r for r in recipes if set(r.multipliers.values()) == {1.0}]
    assert len(full) == 3
    assert len({r.lr for r in full}) == 3
    layered = [r for r in recipes if not r.frozen and len(set(r.multipliers.values())) > 1]
    for recipe in layered:
        assert list(recipe.multipliers.values()) == sorted(recipe.multipliers.values())


def test_informed_rates_are_the_quarter_points_of_the_range():
    space = make_domain(9, lr=(1e-4, 1e-2)).space
    recipes = [one.decode() for one in informed.informed_genomes(space)]
    full = sorted(r.lr for r in recipes if set(r.multipliers.values()) == {1.0})
    assert full == pytest.approx([10**-3.5, 1e-3, 10**-2.5])


def test_informed_rates_are_a_third_once_and_three_times_a_fixed_one():
    space = make_domain(9, lr=1e-3).space
    recipes = [one.decode() for one in informed.informed_genomes(space)]
    assert {r.lr for r in recipes} == {1e-3}
    alike = [set(r.multipliers.values()) for r in recipes if not r.frozen]
    full = sorted(rates.pop() for rates in alike if len(rates) == 1)
    assert full == pytest.approx([1 / 3, 1.0, 3.0])


def test_layered_rates_fall_to_a_tenth_at_the_first_block():
    space = make_domain(9).space
    recipes = [one.decode() for one in informed.informed_genomes(space)]
    layered = [r for r in recipes if not r.frozen and len(set(r.multipliers.values())) > 1]
    assert len(layered) == 2
    for recipe in layered:
        first, *others = recipe.multipliers.values()
        assert others == pytest.approx([0.1 ** (1 - b / 8) for b in range(1, 9)])
        assert first == pytest.approx(0.1, rel=0.05)  # a gene's least multiplier is a little more
