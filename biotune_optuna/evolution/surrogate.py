"""A model of the landscape: what a genome's neighbours say about its value.

A Gaussian process over what genomes *mean* (rates and frozen blocks), for values with noise. Its
posterior mean pools the noise of neighbours, so it ranks genomes better than their own values do:
docs/benchmarks/search.md, "default, no model" and "All choose by the model". The formulas are those
of Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), cited as GPML.

Every number below was chosen by hand, not tuned. The sizes are a matter of time, for a model is
fitted again for each trial: docs/benchmarks/overhead.md has what that takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from biotune_optuna.evolution.domain import Domain
    from biotune_optuna.evolution.generation import Vector


# The likelihood chooses among these, one row at a time. Rounding changes a choice from a grid only
# where two likelihoods are equal, so that other processors make the same trials. Features are of
# order 1, so the scales reach from nearly flat to another value at every step.
_GRID = (
    (0.15, 0.3, 0.6, 1.2, 2.4),  # inverse length scale of the mean rate
    (0.1, 0.25, 0.6, 1.5),  # of the frozen blocks
    (0.06, 0.15, 0.4, 1.0),  # of single rates
    (0.1, 0.4, 1.5, 6.0, 24.0),  # noise variance over signal variance
)
_START = (2, 2, 2, 2)  # the middle of each row
_ROUNDS = 2  # over all rows; scores are remembered, so a second one costs little
_MOST_FOR_GRID = 90  # genomes that choose the scales; a fit takes time with their number cubed
_MOST = 160  # genomes that the model itself is of, for the same reason
_FEWEST = 4  # genomes that a model needs
_JITTER = 1e-8  # on the diagonal, so that the factorisation of rounded numbers succeeds
_NORMAL = NormalDist()


def features(domain: Domain, genes: Vector) -> list[Vector]:
    """Group of features, each with its own length scale.

    With a genome space: the mean log rate of the blocks that train (decades); which blocks are
    frozen; the log rate of every block (decades, frozen ones half a decade below the slowest) and
    the remaining parameters. Without one: the ordered parameters and the unordered ones.

    Args:
        domain: The search space.
        genes: Shape (N, n).

    Returns:
        Arrays of shape (N, d_g); squared distances within a group are of order 1.
    """
    space = domain.space
    if space is None:
        ordered = domain.choices == 0
        unordered = _one_hot(genes[:, ~ordered], domain.choices[~ordered])
        return [2.0 * genes[:, ordered], unordered, np.zeros((len(genes), 1))]
    rates = domain.log_rates(genes)
    active = np.isfinite(rates)
    n_active = np.maximum(active.sum(axis=1, keepdims=True), 1)
    overall = np.where(active, rates, 0.0).sum(axis=1, keepdims=True) / n_active
    low, high = domain.log_rate_bounds
    filled = np.where(active, rates, low - 0.5)  # a frozen block learns less than the slowest
    others = genes[:, space.n_genes :]
    is_rate = np.arange(space.n_genes, domain.size) == domain.lr_index
    width = math.sqrt(space.n_blocks)  # keeps distances of order 1 whatever the number of blocks
    return [
        (overall - low) / (high - low) * 4.0,
        (~active) * (2.0 / width),
        np.hstack([filled / width, others[:, ~is_rate]]),
    ]


def _one_hot(genes: Vector, choices: NDArray[np.int64]) -> Vector:
    columns = [np.zeros((len(genes), 1))]
    for gene, size in zip(genes.T, choices, strict=True):
        picked = np.minimum((gene * size).astype(np.int64), size - 1)
        columns.append(np.eye(size)[picked])
    return np.hstack(columns)


@dataclass(frozen=True, slots=True)
class Model:
    """A fitted landscape.

    Attributes:
        domain: The search space.
        scales: Inverse length scale of each feature group.
        noise: Standard deviation of one evaluation, in units of the cost.
    """

    domain: Domain
    scales: tuple[float, ...]
    noise: float
    _points: Vector
    _weights: Vector
    _factor: Vector
    _mean: float
    _deviation: float

    def predict(self, genes: Vector) -> tuple[Vector, Vector]:
        """Return the posterior of the noise-free cost (GPML, Eqs. 2.25 and 2.26).

        Args:
            genes: Shape (M, n).

        Returns:
            Mean and standard deviation, shape (M,) each.
        """
        points = _scaled(features(self.domain, genes), self.scales)
        cross = _matern(_squared(points, self._points))
        solved = np.linalg.solve(self._factor, cross.T)
        variance = np.maximum(1.0 - (solved**2).sum(axis=0), 1e-12)  # rounding may go below 0
        return self._mean + cross @ self._weights, self._deviation * np.sqrt(variance)


def normal_scores(costs: Vector) -> Vector:
    """Replace costs by what their ranks would be worth in a normal sample.

    Values of trainings have a long tail of failures, and their noise grows towards it. Ranks pull
    the tail in and spread the plateau out, where the choice is.

    Args:
        costs: Finite, shape (N,); equal ones get equal scores.

    Returns:
        Shape (N,), rising with the cost.
    """
    _, inverse, counts = np.unique(costs, return_inverse=True, return_counts=True)
    middles = (np.cumsum(counts) - 0.5 * counts) / max(len(costs), 1)
    scores = np.array([_NORMAL.inv_cdf(float(middle)) for middle in middles])
    return scores[inverse]


def fit(domain: Domain, genes: Vector, costs: Vector, counts: Vector) -> Model | None:
    """Fit the model; the likelihood chooses length scales and noise.

    Args:
        domain: The search space.
        genes: Different genomes, shape (N, n), oldest first.
        costs: Mean cost of each, finite, shape (N,).
        counts: How many evaluations each mean is of, shape (N,).

    Returns:
        The model, or None where there are fewer than 4 genomes or all cost the same.
    """
    if len(genes) > _MOST:  # the best ones and the latest ones matter
        half = _MOST // 2
        latest = np.arange(len(genes) - half, len(genes))
        earlier = np.argsort(costs[:-half], kind="stable")[: _MOST - half]
        kept = np.sort(np.concatenate([earlier, latest]))
        genes, costs, counts = genes[kept], costs[kept], counts[kept]
    spread = float(costs.std()) if len(costs) else 0.0
    if len(genes) < _FEWEST or spread == 0.0:
        return None
    groups = features(domain, genes)
    targets = (costs - costs.mean()) / spread
    chosen, noise = _choose(groups, targets, counts)
    points = _scaled(groups, chosen)
    kernel = _matern(_squared(points, points))
    factor, residual, center, variance = _whiten(kernel, targets, noise / counts)
    deviation = spread * math.sqrt(variance)
    return Model(
        domain=domain,
        scales=chosen,
        noise=deviation * math.sqrt(noise),
        _points=points,
        _weights=np.asarray(spread * np.linalg.solve(factor.T, residual)),
        _factor=factor,
        _mean=float(costs.mean() + spread * center),
        _deviation=deviation,
    )


def _choose(
    groups: list[Vector], targets: Vector, counts: Vector
) -> tuple[tuple[float, ...], float]:
    """Choose length scales and noise by coordinate ascent of the likelihood over the grid."""
    if len(targets) > _MOST_FOR_GRID:  # evenly over time; the fit itself uses all
        kept = np.linspace(0, len(targets) - 1, _MOST_FOR_GRID).astype(np.int64)
        groups, targets, counts = [g[kept] for g in groups], targets[kept], counts[kept]
    squares = [_squared(group, group) for group in groups]
    scores: dict[tuple[int, ...], float] = {}

    def score(at: tuple[int, ...]) -> float:
        if at not in scores:
            scales = [_GRID[i][at[i]] for i in range(3)]
            terms = [s * s * square for s, square in zip(scales, squares, strict=True)]
            kernel = _matern(np.add.reduce(terms))
            scores[at] = _evidence(kernel, targets, _GRID[3][at[3]] / counts)
        return scores[at]

    best: tuple[int, ...] = _START
    for _ in range(_ROUNDS):
        for row in (3, 0, 1, 2):  # the noise, then the scales
            options = [(*best[:row], i, *best[row + 1 :]) for i in range(len(_GRID[row]))]
            best = max(options, key=score)
    return tuple(_GRID[i][best[i]] for i in range(3)), _GRID[3][best[3]]


def _whiten(kernel: Vector, targets: Vector, noise: Vector) -> tuple[Vector, Vector, float, float]:
    """Return Cholesky factor, whitened residual, constant mean and signal variance.

    The mean is the one of generalised least squares (GPML, Sec. 2.7), its own uncertainty left out.
    """
    n = len(targets)
    factor = np.linalg.cholesky(kernel + np.diag(noise + _JITTER))
    both = np.linalg.solve(factor, np.stack([targets, np.ones(n)], axis=1))
    center = float(both[:, 1] @ both[:, 0] / (both[:, 1] @ both[:, 1]))
    residual: Vector = both[:, 0] - center * both[:, 1]
    # A prior worth two points of variance 1 (targets are scaled to it) for when there are few.
    variance = float((residual @ residual + 2.0) / (n + 2.0))
    return np.asarray(factor), residual, center, variance


def _evidence(kernel: Vector, targets: Vector, noise: Vector) -> float:
    """Log marginal likelihood (GPML, Eq. 2.30), the signal variance profiled out."""
    factor, _, _, variance = _whiten(kernel, targets, noise)
    n = len(targets)
    return -0.5 * (n + 2.0) * math.log(variance) - float(np.log(np.diag(factor)).sum())


def _scaled(groups: list[Vector], scales: tuple[float, ...]) -> Vector:
    return np.hstack([s * group for s, group in zip(scales, groups, strict=True)])


def _squared(a: Vector, b: Vector) -> Vector:
    """Squared distances between rows, shape (len(a), len(b))."""
    squares: Vector = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2.0 * a @ b.T
    return np.maximum(squares, 0.0)


def _matern(squares: Vector) -> Vector:
    """Return the Matérn kernel with ν = 5/2 and length scale 1 (GPML, Eq. 4.17)."""
    d = np.sqrt(5.0 * squares)
    result: Vector = (1.0 + d + d * d / 3.0) * np.exp(-d)
    return result
