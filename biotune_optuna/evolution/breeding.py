"""What the default preset adds to the paper's strategy; every addition is a setting of its own.

Offspring by structured moves, several of them ranked by a model of the landscape before one is
spent, duplicates left out, and the most promising genome evaluated again on new runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from biotune_optuna.evolution import moves, surrogate
from biotune_optuna.evolution import paper as operators

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from numpy.typing import NDArray

    from biotune_optuna.evolution.domain import Domain

    Vector = NDArray[np.float64]

__all__ = ["Archive", "Landscape", "breed", "choose_again", "structured"]

_ATTEMPTS = 5
_CROSSED, _FRESH, _MORE_MOVES = 0.35, 0.1, 0.5


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
class Landscape:
    """What is believed of the archive's genomes.

    Attributes:
        model: The model; None while there is too little to fit one.
        means: Believed cost of each genome of the archive, as a normal score; its own mean where
            there is no model.
        spreads: Standard deviation of that belief, 0 where there is no model.
    """

    model: surrogate.Model | None
    means: Vector
    spreads: Vector

    @classmethod
    def of(cls, domain: Domain, archive: Archive, *, smooth: bool) -> Landscape:
        """Fits the model; without ``smooth`` every genome is taken at its own mean."""
        plain = cls(None, archive.costs, np.zeros(len(archive.costs)))
        if not smooth:
            return plain
        scores = surrogate.normal_scores(archive.costs)
        model = surrogate.fit(domain, archive.genes, scores, archive.counts)
        if model is None:
            return plain
        if len(archive.running):  # believe what is not known yet, so that workers spread out
            believed, _ = model.predict(archive.running)
            again = surrogate.fit(
                domain,
                np.vstack([archive.genes, archive.running]),
                np.concatenate([scores, believed]),
                np.concatenate([archive.counts, np.ones(len(believed))]),
            )
            model = model if again is None else again
        return cls(model, *model.predict(archive.genes))

    def best(self, size: int) -> NDArray[np.int64]:
        """Positions of the best genomes, best first."""
        return np.argsort(self.means, kind="stable")[:size]


def breed(
    domain: Domain,
    archive: Archive,
    landscape: Landscape,
    draw: Callable[[np.random.Generator], tuple[Vector, tuple[int, ...]]],
    *,
    candidates: int,
    kappa: float,
    unique: bool,
    rng: np.random.Generator,
) -> tuple[Vector, tuple[int, ...]]:
    """Return the most promising of several candidates.

    Args:
        domain: The search space.
        archive: What is known.
        landscape: What is believed.
        draw: Makes one candidate and names its parents.
        candidates: How many to compare; 1 takes the first.
        kappa: κ: the candidate with the least mean − κ · deviation is taken.
        unique: Whether genomes that are in the archive or running are left out.
        rng: The slot's generator.

    Returns:
        Genes and trial numbers of the parents.
    """
    wanted = candidates if landscape.model is not None else 1
    found: list[tuple[Vector, tuple[int, ...]]] = []
    seen: set[bytes] = set()
    last = None
    for _ in range(_ATTEMPTS * wanted):
        last = draw(rng)
        key = domain.key(last[0])
        if key in seen or (unique and key in archive):
            continue
        seen.add(key)
        found.append(last)
        if len(found) == wanted:
            break
    if not found:  # the space is exhausted
        assert last is not None
        return last
    if landscape.model is None or len(found) == 1:
        return found[0]
    means, spreads = landscape.model.predict(np.array([genes for genes, _ in found]))
    return found[int(np.argmin(means - kappa * spreads))]


def structured(
    domain: Domain, archive: Archive, parents: NDArray[np.int64], rng: np.random.Generator
) -> tuple[Vector, tuple[int, ...]]:
    """Return a child by moves in the space of meanings; now and then a genome from nowhere.

    Args:
        domain: A domain whose genes are log multipliers.
        archive: What is known.
        parents: Positions of possible parents in the archive, best first, at least 2.
        rng: The slot's generator.
    """
    if rng.random() < _FRESH:
        return operators.immigrant(domain.size, rng), ()
    first, second, _ = operators.draw_parents(len(parents), rng)
    one = parents[first]
    meaning = moves.read(domain, archive.genes[one])
    numbers: tuple[int, ...] = (int(archive.numbers[one]),)
    if rng.random() < _CROSSED:
        other = parents[second]
        meaning = moves.crossover(meaning, moves.read(domain, archive.genes[other]), rng)
        numbers = (*numbers, int(archive.numbers[other]))
        if not meaning.mask.any():
            meaning.mask[-1] = True
    moves.mutate(domain, meaning, rng)
    while rng.random() < _MORE_MOVES:
        moves.mutate(domain, meaning, rng)
    return moves.write(domain, meaning), numbers


def choose_again(archive: Archive, landscape: Landscape, size: int) -> int | None:
    """Which genome is worth another evaluation: the one that may well be the best.

    Args:
        archive: What is known.
        landscape: What is believed.
        size: How many of the best come into question.

    Returns:
        Its position in the archive: among the best, the one with the fewest evaluations, ties
        going to the better one; None while the archive is empty.
    """
    best = landscape.best(size)
    if not len(best):
        return None
    return int(best[np.argmin(archive.counts[best])])
