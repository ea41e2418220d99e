"""The records of the search: individuals, proposals, a generation, and the archive."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Role = Literal[
    "immigrant",
    "initial",
    "exploit",
    "offspring",
    "re-evaluation",
    "extra",
    "enqueued",
    "donated",
    "added",
]


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
        role: What the slot is for; a "re-evaluation" has the very genome of its parent.
        parents: Trial numbers of its parents.
    """

    genes: Vector
    move: Vector
    role: Role
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Archive:
    """All different genomes that have finite values, oldest first.

    Attributes:
        numbers: The first trial of each, shape (N,).
        genes: Shape (N, n).
        costs: Mean cost of each, shape (N,).
        counts: How many evaluations each mean is of, shape (N,).
        evaluated: `Domain.key` of every genome that has been evaluated, listed here or not.
        dismissed: `Domain.key` of genomes that finished without a finite value, pruned ones too.
        running: Genomes that are being evaluated, shape (R, n).
        running_keys: `Domain.key` of each of them.
    """

    numbers: NDArray[np.int64]
    genes: Vector
    costs: Vector
    counts: Vector
    evaluated: Container[bytes]
    dismissed: Container[bytes]
    running: Vector
    running_keys: frozenset[bytes]

    def __contains__(self, key: bytes) -> bool:
        """Whether a genome with this key has been evaluated or is being so."""
        return key in self.evaluated or key in self.dismissed or key in self.running_keys


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
        offset: See `paper.extinction`.
        archive: All genomes that have been evaluated; the paper's strategy looks at none.
    """

    number: int
    population: tuple[Individual, ...] = ()
    finished: Mapping[int, Individual] = field(default_factory=dict)
    newcomers: tuple[Individual, ...] = ()
    initial: tuple[Vector, ...] = ()
    offset: float = 0.0
    archive: Archive | None = None
