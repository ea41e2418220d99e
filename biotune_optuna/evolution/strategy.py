"""The strategy: (settings, what has finished, slot, generator) -> next genome, a pure function.

A generation is a list of slots; this module says which roles they have (`plan`), which genome
belongs into one (`propose`) and who survives (`survivors`). It knows no Optuna, no clock and no
global random state. docs/method states the same in formulas.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from biotune_optuna.errors import StudyError
from biotune_optuna.evolution import breeding
from biotune_optuna.evolution import paper as operators

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from biotune_optuna.evolution.breeding import Archive
    from biotune_optuna.evolution.domain import Domain

    Vector = NDArray[np.float64]

__all__ = [
    "Generation",
    "Individual",
    "Preset",
    "Proposal",
    "Role",
    "SearchSettings",
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

Preset = Literal["default", "paper"]

REDRAWS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """What defines a search besides its space and its seed.

    ``SearchSettings()`` is the paper's strategy. `of` begins with a preset, for example
    ``SearchSettings.of("default", candidates=100)``.

    Attributes:
        preset: Name of the preset that these settings began with; it changes nothing by itself.
        population_size: P >= 3, individuals that survive a generation.
        n_elites: E, 0 <= E < P, how many of the best are exploited each generation.
        momentum: κ >= 0 of the crossover.
        crossover: False: a child begins as its first parent. This and the next three leave out an
            operator of the paper's offspring, for ablations.
        mutation: False: children do not mutate.
        extinction: False: the mutation's strength is a half for all, whatever their rank.
        adoption: False: children are not pulled towards their parents and a prototype.
        informed: Begin with well-known recipes: full fine-tuning at three rates, layer-wise decay,
            frozen stem, frozen lower half, linear probe. This and what follows is what the default
            preset adds.
        structured: Breed by moves in the space of what a genome means: shift all rates, tilt them
            with depth, move the boundary of the frozen prefix, freeze, free, swap or retune single
            blocks. Genes of frozen blocks do not drift.
        smoothing: Rank genomes by a model of the landscape, which pools the noise of neighbours,
            so that a lucky value does not rule.
        candidates: How many offspring the model compares before one is evaluated; 1: none.
        kappa: How much of the model's standard deviation counts for a candidate.
        unique: Replace an offspring that means the same as a genome already evaluated.
        reevaluations: Slots of each generation that evaluate one of the best genomes again, on new
            runs (see `biotune_optuna.slot_of`).
    """

    preset: Preset = "paper"
    population_size: int = 10
    n_elites: int = 3
    momentum: float = 1.0
    crossover: bool = True
    mutation: bool = True
    extinction: bool = True
    adoption: bool = True
    informed: bool = False
    structured: bool = False
    smoothing: bool = False
    candidates: int = 1
    kappa: float = 0.0
    unique: bool = False
    reevaluations: int = 0

    @classmethod
    def of(cls, preset: Preset, **changes: Any) -> SearchSettings:
        """Return the settings of a preset, some of them changed.

        Args:
            preset: ``"paper"`` is the published strategy to the letter; ``"default"`` is what
                measures best in this project's benchmark.
            **changes: Other values of the attributes above.

        Raises:
            StudyError: If there is no such preset.
        """
        if preset not in get_args(Preset):
            raise StudyError(f"preset {preset!r} is unknown; choose 'default' or 'paper'")
        paper = cls()
        if preset == "paper":
            return replace(paper, **changes)
        default = replace(
            paper,
            preset="default",
            n_elites=0,
            informed=True,
            structured=True,
            smoothing=True,
            candidates=2,
            unique=True,
            reevaluations=1,
        )
        return replace(default, **changes)

    @property
    def looks_back(self) -> bool:
        """Whether offspring depend on more than the population."""
        return self.structured or self.smoothing or self.unique or self.reevaluations > 0

    @property
    def n_contenders(self) -> int:
        """How many of the best genomes come into question for another evaluation."""
        return 3

    def check(self) -> None:
        """Raise StudyError where a number is out of range."""
        if self.population_size < 3:
            raise StudyError(f"population_size {self.population_size} is too small; give 3 or more")
        if not 0 <= self.n_elites < self.population_size:
            raise StudyError(
                f"n_elites {self.n_elites} does not fit a population of {self.population_size}; "
                "give 0 or more, and fewer than the population"
            )
        if not 0 <= self.momentum < float("inf"):
            raise StudyError(f"momentum {self.momentum} must be a number >= 0; 0 switches it off")
        if not 0 <= self.kappa < float("inf"):
            raise StudyError(f"kappa {self.kappa} must be a number >= 0")
        if self.candidates < 1:
            raise StudyError(f"candidates {self.candidates} must be 1 or more; 1 compares none")
        free = self.population_size - self.n_elites
        if not 0 <= self.reevaluations <= free:
            raise StudyError(
                f"reevaluations {self.reevaluations} must lie between 0 and the {free} slots of "
                "a generation that are no elite's"
            )


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
        copied: Whether it is the very genome of its parent.
    """

    genes: Vector
    move: Vector
    role: Role
    parents: tuple[int, ...] = ()
    copied: bool = False


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
        archive: All genomes that have been evaluated; the paper's strategy looks at none.
    """

    number: int
    population: tuple[Individual, ...] = ()
    finished: Mapping[int, Individual] = field(default_factory=dict)
    newcomers: tuple[Individual, ...] = ()
    initial: tuple[Vector, ...] = ()
    offset: float = 0.0
    archive: Archive | None = None


def slot_rng(seed: int, generation: int, index: int) -> np.random.Generator:
    """Return the generator of one slot: it depends on nothing else."""
    words = [seed, *slot_words(generation, index)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def slot_words(generation: int, index: int) -> tuple[int, int]:
    """Return a slot as words of a seed sequence; indices below 0 get numbers no slot has."""
    return generation, index if index >= 0 else 2**31 - index


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
    if domain.size == 0:
        return Proposal(np.zeros(0), np.zeros(0), role)
    if role == "initial":
        genes = generation.initial[index]
        return Proposal(genes, np.zeros(domain.size), role)
    archive = generation.archive
    if role == "exploit" and index // 2 < len(generation.population):
        step = _exploit(domain, generation.population[index // 2], generation.number, index, seed)
        # A step that is clipped may lead where an earlier one did.
        if not (settings.unique and archive is not None and domain.key(step.genes) in archive):
            return step
    rng = slot_rng(seed, generation.number, index)
    if role == "immigrant":  # whatever has been added by hand
        return Proposal(_immigrant(domain, rng), np.zeros(domain.size), role)
    if settings.looks_back and archive is not None and generation.number > 0:
        bred = _from_archive(settings, domain, generation, role, rng)
    else:
        bred = _offspring(settings, domain, generation, rng)
    return replace(bred, role="extra") if role == "extra" else bred


def _from_archive(
    settings: SearchSettings,
    domain: Domain,
    generation: Generation,
    role: Role,
    rng: np.random.Generator,
) -> Proposal:
    """Return an offspring, or a re-evaluation, by what the default preset adds."""
    archive = generation.archive
    assert archive is not None
    landscape = breeding.Landscape.of(domain, archive, smooth=settings.smoothing)
    still = np.zeros(domain.size)
    if role == "re-evaluation":
        chosen = breeding.choose_again(archive, landscape, settings.n_contenders)
        if chosen is not None:
            number = int(archive.numbers[chosen])
            return Proposal(archive.genes[chosen], still, role, (number,), copied=True)
    parents = landscape.best(settings.population_size)
    drawn: dict[bytes, Proposal] = {}

    def draw(rng: np.random.Generator) -> tuple[Vector, tuple[int, ...]]:
        if settings.structured and domain.has_meaning and len(parents) > 1:
            genes, numbers = breeding.structured(domain, archive, parents, rng)
            if not domain.is_valid(genes):
                genes = domain.repair(genes)
            return genes, numbers
        bred = _offspring(settings, domain, generation, rng)
        drawn[bred.genes.tobytes()] = bred
        return bred.genes, bred.parents

    genes, numbers = breeding.breed(
        domain,
        archive,
        landscape,
        draw,
        candidates=settings.candidates,
        kappa=settings.kappa,
        unique=settings.unique,
        rng=rng,
    )
    if settings.unique and domain.key(genes) in archive:  # nothing new is left near the parents
        for _ in range(REDRAWS):
            genes = _immigrant(domain, rng)
            if domain.key(genes) not in archive:
                return Proposal(genes, still, "immigrant")
    if genes.tobytes() in drawn:
        return drawn[genes.tobytes()]
    return Proposal(genes, still, "offspring" if numbers else "immigrant", numbers)


def _exploit(domain: Domain, elite: Individual, generation: int, index: int, seed: int) -> Proposal:
    rng = slot_rng(seed, generation, index - index % 2)  # both halves share gene and step
    active = domain.active(elite.genes)
    gene = int(active[rng.integers(len(active))])
    genes = operators.exploit(elite.genes, gene, rng)[index % 2]
    if not domain.is_valid(genes):
        genes = domain.repair(genes)
    return Proposal(genes, elite.move, "exploit", (elite.number,))


def current(settings: SearchSettings, generation: Generation) -> list[Individual]:
    """Return the population and newcomers good enough to be of it, best first, at most P."""
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
    settings: SearchSettings, domain: Domain, generation: Generation, rng: np.random.Generator
) -> Proposal:
    members = current(settings, generation)
    factors = operators.extinction(np.array([one.cost for one in members]), generation.offset)
    gone = beaten(generation)
    pool = [rank for rank, one in enumerate(members) if one.number not in gone]
    if len(pool) <= 2:
        return Proposal(_immigrant(domain, rng), np.zeros(domain.size), "immigrant")
    p1, p2, q = (pool[rank] for rank in operators.draw_parents(len(pool), rng))
    factor = float(0.5 * (factors[p1] + factors[p2])) if settings.extinction else 0.5
    mother, father, prototype = members[p1], members[p2], members[q]
    both = (mother.genes, father.genes)
    for attempt in range(REDRAWS + 1):
        mixed = both if settings.crossover else (mother.genes, mother.genes)
        before, pull = operators.cross(mixed, (mother.move, father.move), settings.momentum, rng)
        child = operators.mutate(before, factor, rng) if settings.mutation else before
        if settings.adoption:
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


def survivors(settings: SearchSettings, domain: Domain, generation: Generation) -> tuple[int, ...]:
    """Trials of the population that opens the next generation, best first.

    In the paper's strategy each elite is the best of itself and what has finished of its
    exploitation pair; they, the offspring and the newcomers are sorted and the best P stay. With
    ``smoothing`` the best P of the archive, as the model believes, come first.
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
