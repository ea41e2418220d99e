"""The strategy: (settings, what has finished, slot, generator) -> next genome, a pure function.

A generation is a list of slots; this module says which roles they have (`plan`), which genome
belongs into one (`propose`) and who survives (`survivors`). It knows no Optuna, no clock and no
global random state. docs/method states the same in formulas.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from biotune_optuna.errors import StudyError
from biotune_optuna.evolution import operators

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from biotune_optuna.evolution.domain import Domain

    Vector = NDArray[np.float64]

__all__ = [
    "Generation",
    "Individual",
    "Proposal",
    "Role",
    "Settings",
    "beaten",
    "current",
    "plan",
    "propose",
    "slot_rng",
    "slot_words",
    "survivors",
]

Role = Literal[
    "immigrant", "initial", "exploit", "offspring", "re-evaluation", "extra", "enqueued", "added"
]

REDRAWS = 20


@dataclass(frozen=True, slots=True)
class Settings:
    """What defines the search besides its space and its seed.

    Attributes:
        population_size: P, individuals that survive a generation.
        n_elites: E, how many of the best are exploited each generation.
        momentum: κ of the crossover.
    """

    population_size: int = 10
    n_elites: int = 3
    momentum: float = 1.0

    @classmethod
    def of(cls, preset: str) -> Settings:  # noqa: ARG003
        """The settings of a preset, ``"paper"`` or ``"default"``."""
        return cls()

    def check(self) -> None:
        """Raises StudyError where a number is out of range."""
        if self.population_size < 3:
            raise StudyError(f"population_size {self.population_size} is too small; give 3 or more")
        if not 0 <= self.n_elites < self.population_size:
            raise StudyError(
                f"n_elites {self.n_elites} does not fit a population of {self.population_size}; "
                "give 0 or more, and fewer than the population"
            )
        if not 0 <= self.momentum < float("inf"):
            raise StudyError(f"momentum {self.momentum} must be a number >= 0; 0 switches it off")


@dataclass(frozen=True, slots=True)
class Individual:
    """One evaluated genome.

    Attributes:
        number: The trial that evaluated it.
        genes: Shape (n,), in [0, 1].
        move: Its remembered displacement ∇, shape (n,).
        rank: Sort key, smaller is better: first what kind of result it is, then the result.
        cost: Value to be minimised; NaN where there is no finite one.
        role: What its slot was for.
        parents: Trial numbers of its parents.
    """

    number: int
    genes: Vector
    move: Vector
    rank: tuple[float, ...]
    cost: float
    role: Role = "added"
    parents: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[float, ...]:
        """`rank`, ties broken by age."""
        return (*self.rank, self.number)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A genome to evaluate.

    Attributes:
        genes: Shape (n,), in [0, 1].
        move: The displacement it will remember, shape (n,).
        role: What the slot is for.
        parents: Trial numbers of its parents.
    """

    genes: Vector
    move: Vector
    role: Role
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """What is known of the generation that is open.

    Attributes:
        number: g.
        population: The survivors that opened it, best first; empty in generation 0.
        finished: Its individuals by slot index, extras included.
        newcomers: Individuals from elsewhere that finished since it opened: stragglers of earlier
            generations, enqueued and added trials.
        initial: Genomes that the user wants in generation 0.
        offset: See `operators.extinction`.
    """

    number: int
    population: tuple[Individual, ...] = ()
    finished: Mapping[int, Individual] = field(default_factory=dict)
    newcomers: tuple[Individual, ...] = ()
    initial: tuple[Vector, ...] = ()
    offset: float = 0.0


def slot_rng(seed: int, generation: int, index: int) -> np.random.Generator:
    """The generator of one slot: it depends on nothing else."""
    words = [seed, *slot_words(generation, index)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def slot_words(generation: int, index: int) -> tuple[int, int]:
    """A slot as words of a seed sequence; indices below 0 get numbers no slot has."""
    return generation, index if index >= 0 else 2**31 - index


def plan(settings: Settings, generation: int, n_initial: int = 0) -> tuple[Role, ...]:
    """Roles of a generation's slots, in their order (BioTune paper, Sec. III).

    Generation 0 has P immigrants, the first of them replaced by the initial genomes. Every later
    one has an exploitation pair for each of E elites, then P − E offspring.
    """
    size, elites = settings.population_size, settings.n_elites
    roles: list[Role] = []
    if generation == 0:
        roles += ["initial"] * n_initial
        roles += ["immigrant"] * max(size - n_initial, 0)
    else:
        roles += ["exploit"] * (2 * elites)
        roles += ["offspring"] * (size - elites)
    return tuple(roles)


def propose(
    settings: Settings, domain: Domain, generation: Generation, index: int, seed: int
) -> Proposal:
    """The genome of slot ``index``.

    Args:
        settings: The strategy's settings.
        domain: The search space.
        generation: What has finished.
        index: The slot; beyond the plan's end it is an extra offspring.
        seed: The study's seed.
    """
    roles = plan(settings, generation.number, len(generation.initial))
    role = roles[index] if 0 <= index < len(roles) else "extra"
    if domain.size == 0:
        return Proposal(np.zeros(0), np.zeros(0), role)
    if role == "initial":
        genes = generation.initial[index]
        return Proposal(genes, np.zeros(domain.size), role)
    if role == "exploit" and index // 2 < len(generation.population):
        return _exploit(domain, generation.population[index // 2], generation.number, index, seed)
    rng = slot_rng(seed, generation.number, index)
    if role == "extra":
        return replace(_offspring(settings, domain, generation, rng), role="extra")
    return _offspring(settings, domain, generation, rng)


def _exploit(domain: Domain, elite: Individual, generation: int, index: int, seed: int) -> Proposal:
    rng = slot_rng(seed, generation, index - index % 2)  # both halves share gene and step
    active = domain.active(elite.genes)
    gene = int(active[rng.integers(len(active))])
    genes = operators.exploit(elite.genes, gene, rng)[index % 2]
    if not domain.is_valid(genes):
        genes = domain.repair(genes)
    return Proposal(genes, elite.move, "exploit", (elite.number,))


def current(settings: Settings, generation: Generation) -> list[Individual]:
    """The population and newcomers good enough to be of it, best first, at most P."""
    everyone = sorted((*generation.population, *generation.newcomers), key=lambda one: one.key)
    return everyone[: settings.population_size]


def beaten(generation: Generation) -> set[int]:
    """Trial numbers of parents that are worse than one of their finished children."""
    parents = {one.number: one for one in (*generation.population, *generation.newcomers)}
    worse: set[int] = set()
    for child in generation.finished.values():
        if child.role in ("offspring", "extra"):
            worse.update(
                number
                for number in child.parents
                if number in parents and parents[number].rank > child.rank
            )
    return worse


def _offspring(
    settings: Settings, domain: Domain, generation: Generation, rng: np.random.Generator
) -> Proposal:
    members = current(settings, generation)
    factors = operators.extinction(np.array([one.cost for one in members]), generation.offset)
    gone = beaten(generation)
    pool = [rank for rank, one in enumerate(members) if one.number not in gone]
    if len(pool) <= 2:
        return Proposal(_immigrant(domain, rng), np.zeros(domain.size), "immigrant")
    p1, p2, q = (pool[rank] for rank in operators.draw_parents(len(pool), rng))
    factor = float(0.5 * (factors[p1] + factors[p2]))
    mother, father, prototype = members[p1], members[p2], members[q]
    both = (mother.genes, father.genes)
    for attempt in range(REDRAWS + 1):
        before, pull = operators.cross(both, (mother.move, father.move), settings.momentum, rng)
        child = operators.mutate(before, factor, rng)
        child = operators.adopt(child, both, prototype.genes, rng)
        child = operators.switch_choices(
            child, domain.choices, (*both, prototype.genes), factor, rng
        )
        child = np.clip(child, 0.0, 1.0)
        if domain.is_valid(child):
            break
        if attempt == REDRAWS:
            child = domain.repair(child)
    move = operators.displacement(child, before, pull, rng)
    return Proposal(child, move, "offspring", (mother.number, father.number))


def _immigrant(domain: Domain, rng: np.random.Generator) -> Vector:
    for _ in range(REDRAWS + 1):
        genes = operators.immigrant(domain.size, rng)
        if domain.is_valid(genes):
            return genes
    return domain.repair(genes)


def survivors(settings: Settings, generation: Generation) -> tuple[Individual, ...]:
    """The population that opens the next generation, best first.

    Each elite is the best of itself and what has finished of its exploitation pair; they, the
    offspring and the newcomers are sorted and the best P stay.
    """
    finished = generation.finished.values()
    elites = {one.number: one for one in generation.population[: settings.n_elites]}
    rest: list[Individual] = list(generation.newcomers)
    for one in finished:
        if one.role == "exploit" and one.parents[0] in elites:
            parent = one.parents[0]
            elites[parent] = min(elites[parent], one, key=lambda who: who.key)
        else:
            rest.append(one)
    everyone = sorted((*elites.values(), *rest), key=lambda who: who.key)
    return tuple(everyone[: settings.population_size])
