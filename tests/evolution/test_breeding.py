"""What the default preset adds to breeding: candidates, no duplicates, re-evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from biotune_optuna.evolution import breeding
from biotune_optuna.evolution.generation import Proposal
from biotune_optuna.evolution.settings import SearchSettings
from tests.kit.evolution import bowl, make_archive, make_domain


def child(genes):
    return Proposal(genes, np.zeros(len(genes)), "offspring")


def test_duplicates_are_replaced_until_the_space_is_exhausted():
    domain = make_domain()
    pruned, fresh = np.random.default_rng(5).random((2, domain.size))
    archive = make_archive(domain, running=1, dismissed=[pruned])
    landscape = breeding.Landscape.of(domain, archive, smooth=False)
    known, flying = archive.genes[0], archive.running[0]
    offered = iter([known, flying, pruned, fresh])

    def breed(draw, unique=True):
        settings = SearchSettings(unique=unique)
        made = breeding.best_candidate(settings, domain, archive, landscape, lambda: child(draw()))
        return made.genes

    np.testing.assert_array_equal(breed(lambda: next(offered)), fresh)
    np.testing.assert_array_equal(breed(lambda: known), known)
    np.testing.assert_array_equal(breed(lambda: known, unique=False), known)


def test_the_model_chooses_among_candidates():
    domain = make_domain()
    archive = make_archive(domain, 60)
    landscape = breeding.Landscape.of(domain, archive, smooth=True)
    rng = np.random.default_rng(0)

    def value(candidates):
        settings = SearchSettings(candidates=candidates, unique=True)
        drawn = [
            breeding.best_candidate(
                settings, domain, archive, landscape, lambda: child(rng.random(domain.size))
            )
            for _ in range(30)
        ]
        return bowl(domain, np.array([one.genes for one in drawn])).mean()

    assert value(20) < value(1)


def choose(domain, archive, offered, candidates, kappa=0.0):
    """Which of the genes offered is taken, by a model of the archive."""
    offers = iter(offered)
    landscape = breeding.Landscape.of(domain, archive, smooth=True)
    settings = SearchSettings(candidates=candidates, kappa=kappa)
    taken = breeding.best_candidate(
        settings, domain, archive, landscape, lambda: child(next(offers))
    )
    return next(i for i, one in enumerate(offered) if one is taken.genes)


def test_an_evaluation_gains_what_it_betters_the_choice_by():
    """By a simulation of the evaluation: the posterior's draws, noise, and the choice after it."""
    domain = make_domain()
    archive = make_archive(domain, 30, noise=0.02)
    landscape = breeding.Landscape.of(domain, archive, smooth=True)
    model = landscape.model
    asked = np.random.default_rng(1).random((5, domain.size))
    everyone = np.vstack([archive.genes, asked])
    means, _ = model.predict(everyone)
    together = model.covariance(everyone, asked)
    rng = np.random.default_rng(2)
    for i, gain in enumerate(landscape.gains(asked)):
        deviation = np.sqrt(together[30 + i, i] + model.noise**2)
        surprise = deviation * rng.standard_normal(20_000)
        moved = means[:, None] + np.outer(together[:, i] / deviation**2, surprise)
        contenders = [*range(30), *range(30, 35)]
        simulated = means.min() - moved[contenders].min(axis=0).mean()
        assert gain == pytest.approx(simulated, rel=0.2, abs=1e-4)


def test_what_is_known_for_sure_gains_nothing():
    domain = make_domain()
    archive = make_archive(domain, 40, noise=0.05)
    archive.counts[0] = 1e9
    landscape = breeding.Landscape.of(domain, archive, smooth=True)
    gains = landscape.gains(archive.genes)
    assert gains[0] == pytest.approx(0.0, abs=1e-6)
    assert gains.max() > 100 * max(gains[0], 1e-12)
    assert np.all(gains > -1e-12)


def test_kappa_takes_the_candidate_that_is_less_certain():
    domain = make_domain()
    archive = make_archive(domain, 60)
    model = breeding.Landscape.of(domain, archive, smooth=True).model
    offered = np.random.default_rng(1).random((40, domain.size))
    means, spreads = model.predict(offered)
    known, unknown = offered[np.argmin(means)], offered[np.argmax(spreads)]
    assert choose(domain, archive, [known, unknown], candidates=2) == 0
    assert choose(domain, archive, [known, unknown], candidates=2, kappa=100.0) == 1


def test_candidates_differ_in_what_they_mean():
    domain = make_domain()
    archive = make_archive(domain, 60)
    model = breeding.Landscape.of(domain, archive, smooth=True).model
    offered = np.random.default_rng(1).random((40, domain.size))
    worst, *_, fair, best = offered[np.argsort(-model.predict(offered)[0])]
    assert choose(domain, archive, [fair, worst, best], candidates=2) == 0
    assert choose(domain, archive, [fair, fair.copy(), best], candidates=2) == 2


def test_a_child_differs_from_its_parents_and_names_them():
    """A quarter comes from nowhere, and of the others 35 % have two parents."""
    domain = make_domain()
    archive = replace(make_archive(domain, 40), numbers=np.arange(100, 140))
    best = np.argsort(archive.costs)[:5]
    bred = [
        breeding.structured_child(domain, archive, best, np.random.default_rng(seed))
        for seed in range(400)
    ]
    shares = np.bincount([len(one.parents) for one in bred]) / len(bred)
    assert shares == pytest.approx([0.25, 0.75 * 0.65, 0.75 * 0.35], abs=0.05)
    assert all((one.role == "immigrant") == (not one.parents) for one in bred)
    assert {number for one in bred for number in one.parents} == set(archive.numbers[best])
    alone = [
        (one.genes, archive.genes[one.parents[0] - 100]) for one in bred if len(one.parents) == 1
    ]
    unmoved = [domain.key(genes) == domain.key(parent) for genes, parent in alone]
    assert np.mean(unmoved) < 0.1  # such as a rate at the end of its range


def test_without_two_parents_all_come_from_nowhere():
    domain = make_domain()
    for n in (0, 1):
        archive = make_archive(domain, n)
        bred = breeding.structured_child(domain, archive, np.arange(n), np.random.default_rng(0))
        assert (bred.role, bred.parents) == ("immigrant", ())
        assert domain.is_valid(bred.genes)


def test_crossed_parents_that_share_no_block_have_valid_children():
    """What the lower blocks of one and the upper ones of the other leave may all be frozen."""
    domain = make_domain(2, head_trains=False)
    genes = np.array([[0.1, 0.6, 0.3, 0.5], [0.6, 0.1, 0.3, 0.5]])
    archive = replace(make_archive(domain, 2), genes=genes)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        bred = breeding.structured_child(domain, archive, np.arange(2), rng)
        assert domain.is_valid(bred.genes)


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
    assert breeding.choose_reevaluation(archive, landscape, 3) == best[1]
    assert breeding.choose_reevaluation(archive, landscape, 1) == best[0]
