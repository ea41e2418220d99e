"""What the default preset adds to breeding: candidates, no duplicates, re-evaluation."""

from __future__ import annotations

import numpy as np

from biotune_optuna.evolution import breeding
from biotune_optuna.evolution.strategy import (
    Generation,
    Individual,
    Settings,
    plan,
    propose,
    survivors,
)
from tests.evolution.kit import bowl, make_archive, make_domain


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
