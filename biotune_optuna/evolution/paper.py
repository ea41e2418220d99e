"""The operators of the paper's strategy, one small pure function each, in the order of its steps.

The steps are those of docs/method.md, "One generation of the paper's strategy", after Sec. III of
the BioTune paper (Davila, Colan, Hasegawa, IEEE Access 2025). What is called "ours" was decided
here because the papers do not say. The default preset breeds by `moves` instead and shares
`draw_parents` and `immigrant` only.

Genes are float64 vectors in [0, 1]. Every function draws from the generator it is given, in the
order its docstring states, so that a slot's genome can be re-derived by hand from its seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from biotune_optuna.evolution.generation import Vector


def immigrant(size: int, rng: np.random.Generator) -> Vector:
    """Return a uniformly random genome (generation 0, step 2g). Draws: one vector."""
    return rng.random(size)


def exploit(genes: Vector, gene: int, rng: np.random.Generator) -> tuple[Vector, Vector]:
    """Move one gene of an elite both ways (step 1): clip(ν_b ± δ), δ = 0.25 · U(−1, 1).

    Draws: one number.

    Args:
        genes: The elite, shape (n,).
        gene: Index b of the gene to move.
        rng: The pair's generator.

    Returns:
        The genome moved by +δ and the one moved by −δ, as they are to be evaluated and stored.
    """
    delta = 0.25 * rng.uniform(-1.0, 1.0)  # step 1; the radius is the paper's
    plus, minus = genes.copy(), genes.copy()
    plus[gene] = min(max(genes[gene] + delta, 0.0), 1.0)
    minus[gene] = min(max(genes[gene] - delta, 0.0), 1.0)
    return plus, minus


def draw_parents(size: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw two different parents and a prototype from a sorted pool by rank (step 2a).

    The chance of a member is proportional to (size − rank), ours; rank 0 is the best. Draws: first
    parent, second parent (again until it differs), prototype, which may be one of the parents.

    Args:
        size: Members of the pool, at least 2.
        rng: The slot's generator.

    Returns:
        Ranks (p1, p2, q).
    """
    weights = np.arange(size, 0, -1, dtype=np.float64)  # step 2a
    # Searching the running sum is what Generator.choice does, at a tenth of its cost.
    ladder = np.cumsum(weights / weights.sum())
    ladder[-1] = 1.0

    def draw() -> int:
        return int(np.searchsorted(ladder, rng.random(), side="right"))

    first = second = draw()
    while second == first:
        second = draw()
    return first, second, draw()


def cross(
    parents: tuple[Vector, Vector],
    moves: tuple[Vector, Vector],
    momentum: float,
    rng: np.random.Generator,
) -> tuple[Vector, Vector]:
    """Mix two parents gene by gene, with momentum (step 2b).

    c = r·p1 + (1 − r)·p2 + κ·(ρ1·∇p1 + ρ2·∇p2). Draws: the vectors r, ρ1, ρ2.

    Args:
        parents: Genes of p1 and p2, shape (n,) each.
        moves: Their remembered displacements ∇p1 and ∇p2, shape (n,) each.
        momentum: κ; 0 switches momentum off.
        rng: The slot's generator.

    Returns:
        The child, and the pull ρ1·∇p1 + ρ2·∇p2 that its own displacement inherits.
    """
    r, rho1, rho2 = rng.random((3, len(parents[0])))
    pull = rho1 * moves[0] + rho2 * moves[1]  # step 2b, what κ multiplies
    return r * parents[0] + (1.0 - r) * parents[1] + momentum * pull, pull  # step 2b


def mutate(child: Vector, factor: float, rng: np.random.Generator) -> Vector:
    """Move each gene by x·U(−1, 1) with probability (x·(n − 1) + 1) / n (step 2c).

    Draws: a vector that decides which genes move, a vector of moves.

    Args:
        child: Genes, shape (n,).
        factor: x, the mean extinction factor of the two parents, in [0, 1].
        rng: The slot's generator.

    Returns:
        The mutated genes, not yet clipped.
    """
    n = len(child)
    chosen = rng.random(n) < (factor * (n - 1) + 1) / n  # step 2c, the probability
    return child + np.where(chosen, factor * rng.uniform(-1.0, 1.0, n), 0.0)  # step 2c, the move


def adopt(
    child: Vector, parents: tuple[Vector, Vector], prototype: Vector, rng: np.random.Generator
) -> Vector:
    """Pull the child towards its parents' mean and towards the prototype (step 2d).

    c += w·u1·(mean(p1, p2) − c) + (1 − w)·u2·(q − c). Draws: the numbers u1, u2, w.

    Args:
        child: Genes, shape (n,).
        parents: Genes of p1 and p2.
        prototype: Genes of q.
        rng: The slot's generator.

    Returns:
        The adopted genes, not yet clipped.
    """
    u1, u2, w = rng.random(3)
    to_mean = u1 * (0.5 * (parents[0] + parents[1]) - child)  # step 2d, first term
    to_prototype = u2 * (prototype - child)  # step 2d, second term
    adopted: Vector = child + w * to_mean + (1.0 - w) * to_prototype
    return adopted


def switch_choices(
    child: Vector,
    choices: NDArray[np.int64],
    donors: tuple[Vector, Vector, Vector],
    factor: float,
    rng: np.random.Generator,
) -> Vector:
    """Give the unordered genes of a child a choice instead of a mixture.

    Ours, for the papers have no such genes (docs/method.md, "Parameters that are no genes"). Each
    takes the choice of p1, p2 or q with probability 2/5, 2/5, 1/5, chosen by hand. As a numeric
    gene would, it mutates with probability (x·(n − 1) + 1) / n: then it is redrawn with probability
    x. Draws: nothing where all genes are numeric, else two vectors and one vector of redraws.

    Args:
        child: Genes, shape (n,); the numeric ones are left as they are.
        choices: Number of choices of each gene, 0 where it is numeric.
        donors: Genes of p1, p2 and q.
        factor: x, the mean extinction factor of the two parents.
        rng: The slot's generator.
    """
    unordered = np.flatnonzero(choices)
    if not len(unordered):
        return child
    n = len(child)
    source = np.searchsorted([0.4, 0.8], rng.random(len(unordered)), side="right")  # p1, p2 or q
    redraw = rng.random(len(unordered)) < factor * (factor * (n - 1) + 1) / n  # step 2c, times x
    fresh = rng.random(len(unordered))
    child = child.copy()
    inherited = np.stack(donors)[source, unordered]
    child[unordered] = np.where(redraw, fresh, inherited)
    return child


def displacement(final: Vector, before: Vector, pull: Vector, rng: np.random.Generator) -> Vector:
    """Return what the child remembers (step 2f): ∇c = r'·pull + (c − c before mutation).

    Draws: one vector r' ~ U(0, 1)^n; that it is one number a gene is ours.

    Args:
        final: The child as it will be evaluated.
        before: The child before mutation.
        pull: What `cross` returned.
        rng: The slot's generator.
    """
    return rng.random(len(final)) * pull + (final - before)  # step 2f


def extinction(costs: Vector, offset: float) -> Vector:
    """Return the extinction factor of each member of a sorted population (step 3), 0 for the best.

    With Φ in [0, 1] the paper's x_i = (Φ_i + Φ_min·(i/(P − 1) − 1)) / Φ_max; for any other
    objective, ours: x_i = (Φ_i − Φ_min) / (Φ_max − Φ_min), 0 where all are equal. Non-finite values
    take the worst finite one.

    Args:
        costs: Values to be minimised, best first, shape (P,).
        offset: What makes a cost the paper's Φ: 1 where the objective is maximised (the cost is
            its negative), 0 where it is minimised.

    Returns:
        Factors in [0, 1], shape (P,).
    """
    finite = np.isfinite(costs)
    if not finite.any():
        return np.zeros(len(costs))
    fitness = np.where(finite, costs, costs[finite].max()) + offset  # Φ
    low, high = float(fitness.min()), float(fitness.max())
    if low >= 0.0 and high <= 1.0:
        if high == 0.0:
            return np.zeros(len(costs))
        share = np.arange(len(costs)) / max(len(costs) - 1, 1)  # i / (P − 1)
        return np.clip((fitness + low * (share - 1.0)) / high, 0.0, 1.0)  # step 3, the paper's
    if high == low:
        return np.zeros(len(costs))
    return (fitness - low) / (high - low)  # step 3, any other objective
