"""The strategy: (settings, what has finished, slot, seed) -> next genome, a pure function.

A generation is a list of slots; this module says which roles they have (`plan`), which genome
belongs into one (`propose`) and who survives (`survivors`). It knows no Optuna, no clock and no
global random state. docs/method.md states the same in formulas, in the steps that are cited here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from biotune_optuna.evolution import breeding, paper
from biotune_optuna.evolution.generation import Proposal

if TYPE_CHECKING:
    from biotune_optuna.evolution.domain import Domain
    from biotune_optuna.evolution.generation import Generation, Individual, Role
    from biotune_optuna.evolution.settings import SearchSettings


# Step 2e: how often an invalid child is made anew before it is repaired. The papers do not say.
_REDRAWS = 20
# Of how many of the best genomes one is evaluated again; chosen by hand, not tuned.
_N_CONTENDERS = 3


def slot_rng(seed: int, generation: int, index: int, *more: int) -> np.random.Generator:
    """Return the generator of one slot: it depends on nothing else.

    Args:
        seed: The study's seed.
        generation: g.
        index: The slot; below 0 it belongs to an enqueued trial and gets a number no slot has.
        *more: Numbers that tell further generators of the same slot apart.
    """
    words = [seed, generation, index if index >= 0 else 2**31 - index, *more]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def plan(settings: SearchSettings, generation: int, n_initial: int = 0) -> tuple[Role, ...]:
    """Roles of a generation's slots, in their order (BioTune paper, Sec. III).

    Generation 0 has P immigrants, the first of them replaced by the initial genomes. Every later
    one has an exploitation pair for each of E elites, then P − E offspring, the last of which the
    default preset gives to re-evaluations.
    """
    size, elites = settings.population_size, settings.n_elites
    roles: list[Role] = []
    if generation == 0:
        roles += ["initial"] * n_initial
        roles += ["immigrant"] * max(size - n_initial, 0)
    else:
        roles += ["exploit"] * (2 * elites)
        roles += ["offspring"] * (size - elites - settings.reevaluations)
        roles += ["re-evaluation"] * settings.reevaluations
    return tuple(roles)


def propose(
    settings: SearchSettings, domain: Domain, generation: Generation, index: int, seed: int
) -> Proposal:
    """Return the genome of slot ``index``.

    Args:
        settings: The strategy's settings.
        domain: The search space.
        generation: What has finished.
        index: The slot; beyond the plan's end it is an extra offspring.
        seed: The study's seed.
    """
    roles = plan(settings, generation.number, len(generation.initial))
    role = roles[index] if 0 <= index < len(roles) else "extra"
    still = np.zeros(domain.size)
    if domain.size == 0:
        return Proposal(still, still, role)
    if role == "initial":
        return Proposal(generation.initial[index], still, role)
    archive = generation.archive
    if role == "exploit" and index // 2 < len(generation.population):
        step = _exploit(domain, generation.population[index // 2], generation.number, index, seed)
        # A step that is clipped may lead where an earlier one did.
        if not (settings.unique and archive is not None and domain.key(step.genes) in archive):
            return step
    rng = slot_rng(seed, generation.number, index)
    guided = settings.structured and settings.candidates > 1 and domain.allows_moves
    if role == "immigrant" and not guided:  # whatever has been added by hand
        return _immigrant(domain, rng)
    if settings.uses_archive and archive is not None and (generation.number > 0 or guided):
        bred = _default_offspring(settings, domain, generation, role, rng)
    else:
        bred = _paper_offspring(settings, domain, generation, rng)
    return replace(bred, role="extra") if role == "extra" else bred


def survivors(settings: SearchSettings, domain: Domain, generation: Generation) -> tuple[int, ...]:
    """Trials of the population that opens the next generation, best first (step 3).

    In the paper's strategy each elite is the best of itself and what has finished of its
    exploitation pair; they, the offspring and the newcomers are sorted and the best P stay. With
    ``smoothing`` the best P of the archive, by the model's posterior mean, come first.
    """
    size = settings.population_size
    elites = {one.number: one for one in generation.population[: settings.n_elites]}
    rest: list[Individual] = list(generation.newcomers)
    for one in generation.finished.values():
        # Without a space, because nothing had finished, an exploitation had nothing to begin with.
        parent = one.parents[0] if one.role == "exploit" and one.parents else None
        if parent in elites:
            elites[parent] = min(elites[parent], one, key=lambda who: who.key)
        else:
            rest.append(one)
    everyone = sorted((*elites.values(), *rest), key=lambda who: who.key)
    numbers = [one.number for one in everyone]
    if settings.smoothing and generation.archive is not None:
        archive = generation.archive
        landscape = breeding.Landscape.of(domain, archive, smooth=True)
        numbers = [*archive.numbers[landscape.best(size)].tolist(), *numbers]
    return tuple(dict.fromkeys(numbers))[:size]


# -- the default preset's way ------------------------------------------------------------------


def _default_offspring(
    settings: SearchSettings,
    domain: Domain,
    generation: Generation,
    role: Role,
    rng: np.random.Generator,
) -> Proposal:
    """Return an offspring, or a re-evaluation, by what the default preset adds.

    Where ``structured`` is off, or the genes are no log multipliers, the paper's operators make the
    candidates.
    """
    archive = generation.archive
    assert archive is not None
    landscape = breeding.Landscape.of(domain, archive, smooth=settings.smoothing)
    if role == "re-evaluation":
        again = breeding.choose_reevaluation(archive, landscape, _N_CONTENDERS)
        if again is not None:
            parent = int(archive.numbers[again])
            return Proposal(archive.genes[again], np.zeros(domain.size), role, (parent,))
    best = landscape.best(0 if role == "immigrant" else settings.population_size)

    def draw() -> Proposal:
        if settings.structured and domain.allows_moves:
            return breeding.structured_child(domain, archive, best, rng)
        return _paper_offspring(settings, domain, generation, rng)

    bred = breeding.best_candidate(settings, domain, archive, landscape, draw)
    if settings.unique and domain.key(bred.genes) in archive:  # nothing new near the parents
        for _ in range(_REDRAWS):
            stranger = _immigrant(domain, rng)
            if domain.key(stranger.genes) not in archive:
                return stranger
    return bred


# -- the paper's way ---------------------------------------------------------------------------


def _exploit(domain: Domain, elite: Individual, generation: int, index: int, seed: int) -> Proposal:
    """Return one half of an elite's exploitation pair (step 1); it keeps the elite's ∇, ours."""
    rng = slot_rng(seed, generation, index - index % 2)  # both halves share gene and step
    active = domain.active(elite.genes)
    gene = int(active[rng.integers(len(active))])
    genes = domain.repair(paper.exploit(elite.genes, gene, rng)[index % 2])
    return Proposal(genes, elite.move, "exploit", (elite.number,))


def _paper_offspring(
    settings: SearchSettings, domain: Domain, generation: Generation, rng: np.random.Generator
) -> Proposal:
    """Return a child by the paper's operators (step 2)."""
    members = current(settings, generation)
    factors = paper.extinction(np.array([one.cost for one in members]), generation.offset)
    gone = beaten(generation)
    pool = [rank for rank, one in enumerate(members) if one.number not in gone]
    if len(pool) <= 2:  # step 2g
        return _immigrant(domain, rng)
    p1, p2, q = (pool[rank] for rank in paper.draw_parents(len(pool), rng))  # step 2a
    # An ablation's constant strength is a half, the middle of what extinction factors can be.
    factor = float(0.5 * (factors[p1] + factors[p2])) if settings.extinction else 0.5
    mother, father, prototype = members[p1], members[p2], members[q]
    both = (mother.genes, father.genes)
    for attempt in range(_REDRAWS + 1):
        mixed = both if settings.crossover else (mother.genes, mother.genes)
        before, pull = paper.cross(mixed, (mother.move, father.move), settings.momentum, rng)  # 2b
        child = paper.mutate(before, factor, rng) if settings.mutation else before  # 2c
        if settings.adoption:
            child = paper.adopt(child, both, prototype.genes, rng)  # 2d
        donors = (*both, prototype.genes)
        child = paper.switch_choices(child, domain.choices, donors, factor, rng)
        child = np.clip(child, 0.0, 1.0)  # 2e
        if domain.is_valid(child):
            break
        if attempt == _REDRAWS:
            child = domain.repair(child)
    move = paper.displacement(child, before, pull, rng)  # 2f
    return Proposal(child, move, "offspring", (mother.number, father.number))


def _immigrant(domain: Domain, rng: np.random.Generator) -> Proposal:
    """Return a random valid genome."""
    for _ in range(_REDRAWS + 1):
        genes = paper.immigrant(domain.size, rng)
        if domain.is_valid(genes):
            break
    return Proposal(domain.repair(genes), np.zeros(domain.size), "immigrant")


def current(settings: SearchSettings, generation: Generation) -> list[Individual]:
    """Return the population and newcomers good enough to be of it, best first, at most P."""
    everyone = sorted((*generation.population, *generation.newcomers), key=lambda one: one.key)
    return everyone[: settings.population_size]


def beaten(generation: Generation) -> set[int]:
    """Trial numbers of parents that are worse than one of their finished children (step 2g)."""
    parents = {one.number: one for one in (*generation.population, *generation.newcomers)}
    worse: set[int] = set()
    for child in generation.finished.values():
        if child.role in ("offspring", "extra"):
            known = [parents[number] for number in child.parents if number in parents]
            worse.update(parent.number for parent in known if parent.rank > child.rank)
    return worse
