"""The paper's strategy as a whole, written a second time, and a stored golden trajectory."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import optuna
import pytest

from biotune_optuna.evolution.domain import Domain
from biotune_optuna.evolution.generation import Generation, Individual
from biotune_optuna.evolution.settings import SearchSettings
from biotune_optuna.evolution.strategy import plan, propose
from biotune_optuna.genome import GenomeSpace
from biotune_optuna.recipe import BlockRecipe
from biotune_optuna.sampler.claims import study_config
from biotune_optuna.sampler.sampler import BioTuneSampler

GOLDEN = Path(__file__).parent / "golden_paper.json"
P, E, G, SEED = 10, 3, 10, 11

optuna.logging.set_verbosity(optuna.logging.ERROR)


def make_space():
    blocks = [BlockRecipe(f"b{i}", 1.0) for i in range(4)]
    return GenomeSpace(blocks, head_trains=False, lr=1e-3)


def fitness(genes):
    """Φ of a genome: a smooth bowl over the multipliers, in [0, 1]."""
    *nu, threshold = genes
    total = 0.0
    for b, gene in enumerate(nu):
        multiplier = 10 ** (2 * (gene - 0.5)) if gene > threshold else 0.0
        total += (multiplier - b) ** 2
    return total / (total + 20)


class Reference:
    """Section by section, with plain lists and loops; shares nothing but the generators."""

    def __init__(self, seed):
        self.seed = seed
        self.evaluated = []

    def rng(self, generation, index):
        sequence = np.random.SeedSequence([self.seed, generation, index])
        return np.random.Generator(np.random.PCG64(sequence))

    def evaluate(self, genes, move):
        phi = fitness(genes)
        self.evaluated.append(list(genes))
        return {"genes": list(genes), "phi": phi, "move": list(move), "n": len(self.evaluated)}

    @staticmethod
    def valid(genes):
        return any(gene > genes[-1] for gene in genes[:-1])

    def run(self, generations):
        population = [self.first(i) for i in range(P)]
        for g in range(1, generations + 1):
            population.sort(key=lambda one: (one["phi"], one["n"]))
            population = self.generation(g, population)
        return self.evaluated

    def first(self, index):
        rng = self.rng(0, index)
        while True:
            genes = [float(rng.random()) for _ in range(5)]
            if self.valid(genes):
                return self.evaluate(genes, [0.0] * 5)

    def generation(self, g, population):
        new = [self.exploit(g, i, population[i]) for i in range(E)]
        best, worst = population[0]["phi"], population[-1]["phi"]
        for rank, one in enumerate(population):
            one["x"] = (one["phi"] + best * (rank / (P - 1) - 1)) / worst
        pool = list(population)
        for k in range(P - E):
            rng = self.rng(g, 2 * E + k)
            if len(pool) <= 2:
                genes = [float(rng.random()) for _ in range(5)]
                while not self.valid(genes):
                    genes = [float(rng.random()) for _ in range(5)]
                new.append(self.evaluate(genes, [0.0] * 5))
                continue
            child, parents = self.offspring(rng, pool)
            new.append(child)
            pool = [one for one in pool if one not in parents or one["phi"] <= child["phi"]]
        return new

    def exploit(self, g, i, elite):
        rng = self.rng(g, 2 * i)
        *nu, threshold = elite["genes"]
        active = [b for b in range(4) if nu[b] > threshold]
        b = active[int(rng.integers(len(active)))]
        delta = 0.25 * (2 * float(rng.random()) - 1)
        three = [elite]
        for step in (delta, -delta):
            genes = list(elite["genes"])
            genes[b] = min(max(genes[b] + step, 0.0), 1.0)
            if not self.valid(genes):  # no block trains: activate the largest gene
                top = max(range(4), key=lambda j: genes[j])
                genes[top] = math.nextafter(genes[-1], 2)
            three.append(self.evaluate(genes, elite["move"]))
        return min(three, key=lambda one: (one["phi"], one["n"]))

    def pick(self, rng, pool):
        total = len(pool) * (len(pool) + 1) / 2
        u, running = float(rng.random()), 0.0
        for rank in range(len(pool)):
            running += (len(pool) - rank) / total
            if u < running:
                return rank
        return len(pool) - 1

    def offspring(self, rng, pool):
        first = second = self.pick(rng, pool)
        while second == first:
            second = self.pick(rng, pool)
        p1, p2, q = pool[first], pool[second], pool[self.pick(rng, pool)]
        x = (p1["x"] + p2["x"]) / 2
        for _attempt in range(21):
            vectors = [[float(rng.random()) for _ in range(5)] for _ in range(3)]
            pull = [vectors[1][i] * p1["move"][i] + vectors[2][i] * p2["move"][i] for i in range(5)]
            before = [
                vectors[0][i] * p1["genes"][i] + (1 - vectors[0][i]) * p2["genes"][i] + pull[i]
                for i in range(5)
            ]
            chances = [float(rng.random()) for _ in range(5)]
            moves = [2 * float(rng.random()) - 1 for _ in range(5)]
            c = [
                before[i] + (x * moves[i] if chances[i] < (x * 4 + 1) / 5 else 0) for i in range(5)
            ]
            u1, u2, w = (float(rng.random()) for _ in range(3))
            for i in range(5):
                mean = (p1["genes"][i] + p2["genes"][i]) / 2
                a, b = u1 * (mean - c[i]), u2 * (q["genes"][i] - c[i])
                c[i] += w * a + (1 - w) * b
            c = [min(max(gene, 0.0), 1.0) for gene in c]
            if self.valid(c):
                break
        else:
            top = max(range(4), key=lambda j: c[j])
            c[top] = math.nextafter(c[-1], 2)
        r = [float(rng.random()) for _ in range(5)]
        move = [r[i] * pull[i] + (c[i] - before[i]) for i in range(5)]
        return self.evaluate(c, move), (p1, p2)


def run_sampler(seed, n_trials):
    space = make_space()
    study = optuna.create_study(
        direction="maximize", sampler=BioTuneSampler(space=space, preset="paper", seed=seed)
    )
    study.optimize(lambda trial: 1 - fitness(space.suggest(trial).values), n_trials=n_trials)
    return study


@pytest.mark.parametrize("seed", [SEED, 1, 2])
def test_sampler_does_what_the_definition_says(seed):
    total = P + G * (2 * E + P - E)
    assert total == 140
    study = run_sampler(seed, total)
    reference = Reference(seed).run(G)
    assert len(reference) == total
    for trial, expected in zip(study.trials, reference, strict=True):
        assert list(trial.params.values()) == pytest.approx(expected, abs=1e-9), trial.number


def test_golden_trajectory():
    """Guards against any change of the paper preset: same versions, same bits."""
    study = run_sampler(SEED, 140)
    told = [
        [
            t.user_attrs["generation"],
            t.user_attrs["role"],
            t.user_attrs["parents"],
            *t.params.values(),
        ]
        for t in study.trials
    ]
    golden = json.loads(GOLDEN.read_text())
    for ours, stored in zip(told, golden, strict=True):
        assert ours[:3] == stored[:3]
        assert ours[3:] == pytest.approx(stored[3:], abs=1e-12)


def test_budget_and_roles():
    settings = SearchSettings.of("paper")
    assert (settings.population_size, settings.n_elites, settings.momentum) == (P, E, 1.0)
    assert plan(settings, 0) == ("immigrant",) * P
    assert plan(settings, 4) == ("exploit",) * 6 + ("offspring",) * 7
    assert len(plan(settings, 0)) + G * len(plan(settings, 1)) == 140


def test_momentum_can_be_switched_off():
    space = make_space()

    def run(momentum):
        strategy = SearchSettings(momentum=momentum)
        sampler = BioTuneSampler(space=space, seed=0, strategy=strategy)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(lambda trial: 1 - fitness(space.suggest(trial).values), n_trials=60)
        return [t.params for t in study.trials]

    off, on = run(0.0), run(1.0)
    assert off[:23] == on[:23], "in generations 0 and 1 there is no displacement yet"
    assert off != on


def offspring_of(index=0, **switches):
    """A child of generation 1, four individuals known, and its parents' genes."""
    space = make_space()
    domain = Domain(space.names, np.zeros(len(space.names), dtype=np.int64), space)
    genes = [np.array([0.4, 0.45, 0.5, 0.55, x]) for x in (0.3, 0.4, 0.45, 0.5)]
    people = tuple(
        Individual(i, one, np.zeros(5), (0.05 * i**2,), 0.05 * i**2 - 1)
        for i, one in enumerate(genes)
    )
    settings = SearchSettings(n_elites=0, **switches)
    bred = propose(settings, domain, Generation(1, people, offset=1.0), index, SEED)
    return bred.genes, [genes[number] for number in bred.parents]


def test_each_operator_can_be_left_out():
    child, (mother, father) = offspring_of(mutation=False, adoption=False)
    assert child[:4] == pytest.approx(mother[:4])  # all parents agree there
    assert min(mother[4], father[4]) < child[4] < max(mother[4], father[4])
    child, (mother, _) = offspring_of(mutation=False, adoption=False, crossover=False)
    assert child == pytest.approx(mother)
    child, (mother, _) = offspring_of(mutation=False, crossover=False)
    assert child[:4] == pytest.approx(mother[:4])
    assert child[4] != pytest.approx(mother[4])

    def furthest(**switches):
        bred = [offspring_of(i, adoption=False, crossover=False, **switches) for i in range(40)]
        return max(np.abs(child - mother).max() for child, (mother, _) in bred)

    assert 0.4 < furthest(extinction=False) <= 0.5
    assert furthest() > 0.5  # the last two of the four have factors 0.44 and 1


def test_left_out_operators_are_kept_in_the_study():
    space = make_space()
    strategy = SearchSettings(mutation=False, adoption=False)
    sampler = BioTuneSampler(space=space, seed=0, strategy=strategy)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: 1 - fitness(space.suggest(trial).values), n_trials=30)
    again = optuna.create_study(
        direction="maximize", sampler=BioTuneSampler(space=space, preset="paper", seed=0)
    )
    again.optimize(lambda trial: 1 - fitness(space.suggest(trial).values), n_trials=30)
    first = [t.params for t in study.trials]
    assert first[:16] == [t.params for t in again.trials][:16], "exploitation is as before"
    assert first != [t.params for t in again.trials]
    settings = study_config(study)["settings"]
    assert not settings["mutation"]
    assert not settings["adoption"]
    assert settings["crossover"]
