"""Which genome a slot gets, and who survives, by the settings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from biotune_optuna.evolution import breeding, moves
from biotune_optuna.evolution.generation import Archive, Generation, Individual
from biotune_optuna.evolution.settings import SearchSettings
from biotune_optuna.evolution.strategy import current, plan, propose, survivors
from tests.kit.evolution import make_archive, make_domain

SWITCHES = {"structured": True, "smoothing": True, "unique": True, "candidates": 5}


def individual(number, genes, cost):
    return Individual(number, genes, np.zeros(len(genes)), (0.0, cost), cost)


def people_of(archive):
    people = zip(archive.numbers.tolist(), archive.genes, archive.costs.tolist(), strict=True)
    return tuple(individual(*one) for one in people)


def by_value(archive, size):
    return archive.numbers[np.argsort(archive.costs)[:size]].tolist()


def by_belief(domain, archive, size):
    landscape = breeding.Landscape.of(domain, archive, smooth=True)
    return archive.numbers[landscape.best(size)].tolist()


@pytest.fixture
def domain():
    return make_domain()


@pytest.fixture
def archive(domain):
    """So noisy that the best values are not the best genomes."""
    archive = make_archive(domain, 40, noise=0.1)
    assert by_value(archive, 5) != by_belief(domain, archive, 5)
    return archive


@pytest.mark.parametrize("smoothing", [False, True])
def test_only_the_best_are_parents(domain, archive, smoothing):
    settings = SearchSettings(population_size=4, n_elites=0, structured=True, smoothing=smoothing)
    generation = Generation(1, people_of(archive)[:4], archive=archive)
    best = by_belief(domain, archive, 4) if smoothing else by_value(archive, 4)
    bred = [propose(settings, domain, generation, index, seed=0) for index in range(60)]
    firsts = [one.parents[0] for one in bred if one.parents]
    assert {number for one in bred for number in one.parents} == set(best)
    assert firsts.count(best[0]) > firsts.count(best[3])


@pytest.mark.parametrize("smoothing", [False, True])
def test_who_survives_is_a_matter_of_value_or_of_belief(domain, archive, smoothing):
    settings = SearchSettings(population_size=5, n_elites=0, smoothing=smoothing)
    generation = Generation(1, finished=dict(enumerate(people_of(archive))), archive=archive)
    best = by_belief(domain, archive, 5) if smoothing else by_value(archive, 5)
    assert survivors(settings, domain, generation) == tuple(best)


def test_stragglers_are_parents_where_they_are_good_enough(domain):
    rng = np.random.default_rng(0)
    population = tuple(individual(i, rng.random(domain.size), 0.1 * i) for i in range(1, 4))
    straggler = individual(9, rng.random(domain.size), 0.15)
    late = individual(10, rng.random(domain.size), 0.9)
    settings = SearchSettings(population_size=3, n_elites=0)
    generation = Generation(1, population, newcomers=(straggler, late))
    assert [one.number for one in current(settings, generation)] == [1, 9, 2]
    bred = [propose(settings, domain, generation, index, seed=0) for index in range(20)]
    assert {number for one in bred for number in one.parents} == {1, 9, 2}


def test_one_of_the_three_best_is_evaluated_again(domain, archive):
    settings = SearchSettings(population_size=10, n_elites=0, reevaluations=1)
    generation = Generation(1, people_of(archive), archive=archive)
    best = by_value(archive, 10)
    again = []
    for _ in range(5):
        bred = propose(settings, domain, generation, 9, seed=0)
        assert bred.role == "re-evaluation"
        again += bred.parents
        archive.counts[again[-1]] += 1
    assert again == [*best[:3], *best[:2]]


def test_random_genomes_of_the_first_generation_are_chosen_by_what_other_tasks_say(domain):
    nobody = make_archive(domain, 0)
    generation = Generation(0, archive=nobody)
    model = breeding.Landscape.of(domain, nobody, smooth=True).model

    def expected(candidates):
        settings = SearchSettings(**SWITCHES | {"candidates": candidates})
        bred = [propose(settings, domain, generation, index, seed=0) for index in range(10)]
        assert {one.role for one in bred} == {"immigrant"}
        return model.predict(np.array([one.genes for one in bred]))[0].mean()

    assert expected(64) < expected(1) - 0.5


@pytest.mark.parametrize("seed", range(4))
def test_a_clipped_step_is_replaced_where_genomes_are_unique(seed):
    domain = make_domain(3, threshold=None, lr=1e-3)
    elite = individual(0, np.ones(3), 0.0)  # no gene can rise
    others = tuple(individual(i, np.full(3, 0.1 * i), 1.0) for i in range(1, 5))
    people = (elite, *others)
    archive = Archive(
        np.arange(5), np.array([one.genes for one in people]), np.array([0.0, 1, 1, 1, 1]),
        np.ones(5), {domain.key(one.genes) for one in people}, frozenset(),
        np.empty((0, 3)), frozenset(),
    )  # fmt: skip
    generation = Generation(1, people, archive=archive)

    def pair(unique):
        settings = SearchSettings(population_size=5, n_elites=1, unique=unique)
        return [propose(settings, domain, generation, index, seed) for index in (0, 1)]

    clipped, step = sorted(pair(unique=False), key=lambda one: -one.genes.sum())
    assert clipped.genes.tolist() == [1.0, 1.0, 1.0]
    assert clipped.role == step.role == "exploit"
    replaced, kept = sorted(pair(unique=True), key=lambda one: one.role == "exploit")
    assert replaced.role == "offspring"
    assert domain.key(replaced.genes) not in archive
    assert kept.genes.tolist() == step.genes.tolist()


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "left out"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_does_its_own_whatever_the_others(domain, archive, switch, alone):
    chosen = {name: value for name, value in SWITCHES.items() if (name == switch) == alone}
    settings = SearchSettings(**chosen, n_elites=3, reevaluations=1)
    best = by_belief(domain, archive, 10) if settings.smoothing else by_value(archive, 10)
    people = {one.number: one for one in people_of(archive)}
    population = tuple(people[number] for number in best)
    generation = Generation(1, population, archive=archive, finished=people)
    roles = plan(settings, 1)
    assert roles.count("re-evaluation") == 1
    uneven = []
    for index, role in enumerate([*roles, *["extra"] * 30]):
        bred = propose(settings, domain, generation, index, seed=1)
        assert domain.is_valid(bred.genes)
        assert (bred.role == "re-evaluation") == (role == "re-evaluation")
        if bred.role == "re-evaluation":
            assert bred.parents[0] in (best[:3] if settings.smoothing else best[:1])
            assert domain.key(bred.genes) in archive
        elif settings.unique:
            assert domain.key(bred.genes) not in archive
        if bred.parents and role in ("offspring", "extra"):
            frozen = ~domain.space.mask(bred.genes[: domain.space.n_genes])
            uneven.append(len(set(bred.genes[:6][frozen])) > 1)
    assert any(uneven) != settings.structured, "moves give all frozen genes one value"
    assert survivors(settings, domain, generation) == tuple(best)


@pytest.mark.parametrize(
    "on",
    [on for n in range(5) for on in itertools.combinations(SWITCHES, n)],
    ids=lambda on: "+".join(on) or "none",
)
def test_copies_of_parents_are_replaced_where_genomes_are_unique(domain, archive, on, monkeypatch):
    monkeypatch.setattr(moves, "random_move", lambda *_: None)
    as_parents = {"crossover": False, "mutation": False, "adoption": False}
    settings = SearchSettings(n_elites=0, **as_parents, **{name: SWITCHES[name] for name in on})
    generation = Generation(1, people_of(archive)[:10], archive=archive)
    bred = [propose(settings, domain, generation, index, seed=1) for index in range(10)]
    known = [domain.key(one.genes) in archive for one in bred]
    assert any(known) == ("unique" not in on)
