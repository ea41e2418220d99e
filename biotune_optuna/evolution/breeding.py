"""What the default preset adds to the paper's strategy; every addition is a setting of its own.

Offspring by structured moves, several of them ranked by a model of the landscape before one is
evaluated, duplicates left out, and one of the best genomes evaluated again on new runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.evolution import moves, paper, surrogate
from biotune_optuna.evolution.generation import Proposal

if TYPE_CHECKING:
    from biotune_optuna.evolution.domain import Domain
    from biotune_optuna.evolution.generation import Archive, Vector
    from biotune_optuna.evolution.settings import SearchSettings


# All five were chosen by hand while the preset was developed; no measurement of them is kept.
_FRESH = 0.25  # chance of a random genome, so that no part of the space is given up
_CROSSED = 0.35  # chance that a child has two parents
_MORE_MOVES = 0.5  # chance of another move after each: two moves on average
_ATTEMPTS = 5  # draws for each candidate wanted, before fewer are taken
_N_RIVALS = 40  # of the best evaluated genomes, how many `Landscape.gains` looks at
# Where a standard normal variable is looked at, and its density there, for a mean over it: so far
# out that what is unlikely to become the best is still told apart.
_NORMAL = np.linspace(-5.0, 5.0, 41)
_DENSITY = np.exp(-0.5 * _NORMAL**2) / np.exp(-0.5 * _NORMAL**2).sum()


@dataclass(frozen=True, slots=True)
class Landscape:
    """What is known of the archive's genomes, their neighbours' values included.

    Attributes:
        model: The model; None while there is too little to fit one.
        genes: The archive's genomes, shape (N, n).
        means: Posterior mean cost of each; its own mean cost where there is no model.
    """

    model: surrogate.Model | None
    genes: Vector
    means: Vector

    @classmethod
    def of(cls, domain: Domain, archive: Archive, *, smooth: bool) -> Landscape:
        """Fit the model; without ``smooth`` every genome is taken at its own mean."""
        plain = cls(None, archive.genes, archive.costs)
        if not smooth:
            return plain
        model = surrogate.fit(domain, archive.genes, archive.costs, archive.counts)
        if model is None:
            return plain
        if len(archive.running):
            # Take the model's word for genomes that are being evaluated, so that workers spread
            # out: the Kriging believer of Ginsbourger, Le Riche and Carraro (2010).
            believed, _ = model.predict(archive.running)
            again = surrogate.fit(
                domain,
                np.vstack([archive.genes, archive.running]),
                np.concatenate([archive.costs, believed]),
                np.concatenate([archive.counts, np.ones(len(believed))]),
            )
            model = model if again is None else again
        return cls(model, archive.genes, model.predict(archive.genes)[0])

    def best(self, size: int) -> NDArray[np.int64]:
        """Positions of the best genomes, best first."""
        return np.argsort(self.means, kind="stable")[:size]

    def gains(self, genes: Vector) -> Vector:
        """By how much one evaluation of each genome is expected to better the choice.

        The choice is the genome with the least posterior mean, of the archive's best and of these.
        An evaluation of genome i moves all means together, by their covariance with it: with
        s_j = Cov(j, i) / sqrt(Var(i) + noise²) and Z standard normal its gain is
        min μ − E min_j (μ_j + s_j Z), the knowledge gradient of Frazier, Powell and Dayanik (2009).
        What is known already gains nothing, nor does what cannot become the best, so the same
        number tells which of two contenders is worth another evaluation.

        Args:
            genes: Shape (M, n).

        Returns:
            Shape (M,); there must be a model.
        """
        assert self.model is not None
        contenders = np.vstack([self.genes[self.best(_N_RIVALS)], genes])
        means, _ = self.model.predict(contenders)
        together = self.model.covariance(contenders, genes)
        own = together[len(contenders) - len(genes) :].diagonal()
        steps = together / np.sqrt(np.maximum(own, 0.0) + self.model.noise**2)
        least = np.array([(means[:, None] + steps * z).min(axis=0) for z in _NORMAL])
        result: Vector = means.min() - _DENSITY @ least
        return result


def best_candidate(
    settings: SearchSettings,
    domain: Domain,
    archive: Archive,
    landscape: Landscape,
    draw: Callable[[], Proposal],
) -> Proposal:
    """Return the most promising of ``settings.candidates`` different offspring.

    That is the one with the least mean − ``kappa`` · deviation, a lower confidence bound.

    Args:
        settings: The strategy's settings.
        domain: The search space.
        archive: What has been evaluated; with ``unique`` none of it is taken.
        landscape: What the model says of it. Without a model the first one drawn is taken.
        draw: Makes one offspring.

    Returns:
        The offspring; a known genome only where no other was drawn.
    """
    wanted = settings.candidates if landscape.model is not None else 1
    found: dict[bytes, Proposal] = {}
    for _ in range(_ATTEMPTS * wanted):
        last = draw()
        key = domain.key(last.genes)
        if not (settings.unique and key in archive):
            found.setdefault(key, last)
        if len(found) == wanted:
            break
    different = list(found.values()) or [last]  # the last one where the space is exhausted
    if landscape.model is None or len(different) == 1:
        return different[0]
    means, spreads = landscape.model.predict(np.array([one.genes for one in different]))
    return different[int(np.argmin(means - settings.kappa * spreads))]


def structured_child(
    domain: Domain, archive: Archive, parents: NDArray[np.int64], rng: np.random.Generator
) -> Proposal:
    """Return a child by moves in the space of meanings; now and then a random genome.

    Args:
        domain: A domain whose genes are log multipliers.
        archive: What has been evaluated.
        parents: Positions of possible parents in the archive, best first; fewer than 2 have no
            children.
        rng: The slot's generator.
    """
    still = np.zeros(domain.size)
    if len(parents) < 2 or rng.random() < _FRESH:
        genes = domain.repair(moves.write(domain, moves.stranger(domain, rng)))
        return Proposal(genes, still, "immigrant")
    first, second, _ = paper.draw_parents(len(parents), rng)
    one = parents[first]
    meaning = moves.read(domain, archive.genes[one])
    numbers: tuple[int, ...] = (int(archive.numbers[one]),)
    if rng.random() < _CROSSED:
        other = parents[second]
        meaning = moves.crossover(domain, meaning, moves.read(domain, archive.genes[other]), rng)
        numbers = (*numbers, int(archive.numbers[other]))
        if not meaning.mask.any():
            meaning.mask[-1] = True
    moves.random_move(domain, meaning, rng)
    while rng.random() < _MORE_MOVES:
        moves.random_move(domain, meaning, rng)
    genes = domain.repair(moves.write(domain, meaning))
    return Proposal(genes, still, "offspring", numbers)


def choose_reevaluation(archive: Archive, landscape: Landscape, size: int) -> int | None:
    """Which genome is worth another evaluation.

    Args:
        archive: What has been evaluated.
        landscape: What the model says of it.
        size: How many of the best come into question.

    Returns:
        Its position in the archive: of the best the one from whose evaluation the most is expected
        (`Landscape.gains`), without a model the one with the fewest evaluations, ties going to the
        better one; None while the archive is empty.
    """
    best = landscape.best(size)
    if not len(best):
        return None
    if landscape.model is None:
        return int(best[np.argmin(archive.counts[best])])
    return int(best[np.argmax(landscape.gains(archive.genes[best]))])
