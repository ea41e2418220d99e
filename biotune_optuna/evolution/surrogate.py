"""A model of the landscape: what a genome's neighbours, and other tasks, say about its value.

A Gaussian process over what genomes *mean* (rates and frozen blocks), for values with noise. Its
posterior mean pools the noise of neighbours, so it ranks genomes better than their own values do.
With a genome space its prior mean is what `experience` has learned from other tasks, so that it has
something to say before anything was evaluated. docs/method.md has the formulas; they follow
Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), cited as GPML.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.evolution import experience
from biotune_optuna.recipe import MODES

if TYPE_CHECKING:
    from biotune_optuna.evolution.domain import Domain
    from biotune_optuna.evolution.generation import Vector


# The likelihood chooses among these, one row at a time. Rounding changes a choice from a grid only
# where two likelihoods are equal, so that other processors make the same trials. Features are of
# order 1, so the scales reach from nearly flat to another value at every step. Chosen by hand.
_NOISES = (0.1, 0.4, 1.5, 6.0, 24.0)  # noise variance over signal variance
_LENGTHS = (
    (0.15, 0.3, 0.6, 1.2, 2.4),  # inverse length scale of the mean rate
    (0.1, 0.25, 0.6, 1.5),  # of the frozen blocks
    (0.06, 0.15, 0.4, 1.0),  # of single rates
)
# With a genome space the length scales are the tables', and the noise is near theirs: so many
# factors from it, whose prior is a normal one in the logarithm with this standard deviation.
_NOISE_FACTORS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)
_NOISE_SPREAD = 0.8
# Of modes and training genes: what a value other than the usual one is believed to do to every
# genome that has it, in standard deviations of the landscape, with the deviation of that belief,
# and the inverse length scale at which it may do something else to each. Chosen by hand: an
# unusual value has to earn its place.
_EFFECT, _EFFECT_SPREAD = 0.2, 0.4
_EFFECT_LENGTH = 0.5
_ROUNDS = 2  # over all rows; scores are remembered, so a second one costs little
# The sizes are a matter of time, for a model is fitted again for each trial, in a time that rises
# with their cube: docs/benchmarks/overhead.md has what that takes.
_MOST_FOR_GRID = 90  # genomes that choose noise and scales
MOST = 160  # genomes that the model itself is of
_FEWEST = 4  # genomes that a model without a prior mean needs
_TAIL = 1.5  # worse than the median by this many times what the best is better: all the same
_JITTER = 1e-8  # on the diagonal, so that the factorisation of rounded numbers succeeds


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
    others = np.delete(np.arange(domain.size), np.r_[: space.n_genes, domain.training])
    others = others[others != (-1 if domain.lr_index is None else domain.lr_index)]
    width = math.sqrt(space.n_blocks)  # keeps distances of order 1 whatever the number of blocks
    found = [
        (overall - low) / (high - low) * 4.0,
        (~active) * (2.0 / width),
        np.hstack([filled / width, genes[:, others]]),
    ]
    unusual = effects(domain, genes)
    return [*found, unusual] if unusual.shape[1] else found


def effects(domain: Domain, genes: Vector) -> Vector:
    """Return how far genomes have what is not usual, one column for each such mode and value.

    Args:
        domain: A domain with a genome space.
        genes: Shape (N, n).

    Returns:
        Of a mode, the share of the body's blocks that train in it; of a training gene's value, 1
        where the genome has it. Shape (N, E), of no column where the space has neither.
    """
    space = domain.genomes
    columns = [np.zeros((len(genes), 0))]
    if space.modes:
        own = genes[:, : space.n_genes]
        trains = space.mask(own)[:, :-1]
        modes = space.block_modes(own)[:, :-1]
        n_trained = np.maximum(trains.sum(axis=1), 1)
        columns += [
            (((modes == mode) & trains).sum(axis=1) / n_trained)[:, None]
            for mode in range(len(MODES) - 1)
        ]
    cells = domain.training_cells(genes)
    for column, values in zip(cells.T, space.training.values(), strict=True):
        columns.append(column[:, None] == np.arange(1, len(values)))
    return np.hstack(columns)


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
    _known: _Inputs
    _weights: Vector
    _factor: Vector
    _center: float
    _deviation: float

    def predict(self, genes: Vector) -> tuple[Vector, Vector]:
        """Return the posterior of the noise-free cost (GPML, Eqs. 2.25 and 2.26).

        Args:
            genes: Shape (M, n).

        Returns:
            Mean and standard deviation, shape (M,) each.
        """
        inputs = _Inputs.of(self.domain, genes)
        cross = inputs.kernel(self._known, self.scales)
        solved = np.linalg.solve(self._factor, cross.T)
        variance = np.maximum(inputs.variance() - (solved**2).sum(axis=0), 1e-12)  # of rounding
        mean = self._center + self._deviation * (inputs.mean + cross @ self._weights)
        return mean, self._deviation * np.sqrt(variance)

    def covariance(self, genes: Vector, others: Vector) -> Vector:
        """Return the posterior covariance of noise-free costs (GPML, Eq. 2.24).

        Args:
            genes: Shape (M, n).
            others: Shape (N, n).

        Returns:
            Shape (M, N).
        """
        here, there = (_Inputs.of(self.domain, one) for one in (genes, others))
        solved, other = (
            np.linalg.solve(self._factor, one.kernel(self._known, self.scales).T)
            for one in (here, there)
        )
        prior = here.kernel(there, self.scales)
        result: Vector = self._deviation**2 * (prior - solved.T @ other)
        return result


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What the model sees of genomes.

    Attributes:
        groups: `features`.
        described: `experience.features`, standardised; of no column without a genome space.
        mean: Prior mean of each cost, in standard deviations of the landscape.
        linear: Prior variance of what is linear in ``described``.
        residual: Prior variance of the rest.
        unusual: `effects`; of no column without a genome space.
    """

    groups: list[Vector]
    described: Vector
    mean: Vector
    linear: float
    residual: float
    unusual: Vector

    @classmethod
    def of(cls, domain: Domain, genes: Vector) -> _Inputs:
        groups = features(domain, genes)
        if domain.space is None:
            nothing = np.zeros((len(genes), 0))
            return cls(groups, nothing, np.zeros(len(genes)), 0.0, 1.0, nothing)
        known = experience.learned()
        described = known.standardised(experience.features(domain.relative_rates(genes)))
        unusual = effects(domain, genes)
        mean = known.cost(described)
        if unusual.shape[1]:
            mean = mean + _EFFECT * unusual.sum(axis=1)
        return cls(groups, described, mean, known.linear, known.residual, unusual)

    def kernel(self, other: _Inputs, scales: tuple[float, ...]) -> Vector:
        """Prior covariance of noise-free costs, shape (len(self), len(other))."""
        points = _scaled(self.groups, scales)
        near = _matern(_squared(points, _scaled(other.groups, scales)))
        linear = self.described @ other.described.T / max(self.described.shape[1], 1)
        result: Vector = self.linear * linear + self.residual * near
        if self.unusual.shape[1]:
            result += _EFFECT_SPREAD**2 * self.unusual @ other.unusual.T
        return result

    def variance(self) -> Vector:
        """Prior variance of each, shape (N,)."""
        squares = (self.described**2).sum(axis=1) / max(self.described.shape[1], 1)
        result: Vector = self.linear * squares + self.residual
        if self.unusual.shape[1]:
            result += _EFFECT_SPREAD**2 * (self.unusual**2).sum(axis=1)
        return result

    def some(self, kept: NDArray[np.int64]) -> _Inputs:
        """Return those at some positions."""
        groups = [group[kept] for group in self.groups]
        return _Inputs(
            groups,
            self.described[kept],
            self.mean[kept],
            self.linear,
            self.residual,
            self.unusual[kept],
        )


def tamed(costs: Vector) -> Vector:
    """Return costs without the tail of failures, which would rule the fit (winsorised).

    What is worse than the median by more than 1.5 times what the best is better counts as just so
    bad.

    Args:
        costs: Finite, shape (N,).
    """
    if not len(costs):
        return costs
    median = float(np.median(costs))
    worst = median + _TAIL * (median - float(costs.min()))
    return np.minimum(costs, worst) if worst > median else costs


def fit(
    domain: Domain, genes: Vector, costs: Vector, counts: Vector, *, most: int = MOST
) -> Model | None:
    """Fit the model; the likelihood chooses the noise, without a genome space the scales too.

    Args:
        domain: The search space.
        genes: Different genomes, shape (N, n), oldest first.
        costs: Mean cost of each, finite, shape (N,).
        counts: How many evaluations each mean is of, shape (N,).
        most: Genomes that the model is of at most: the best and the latest ones.

    Returns:
        The model. None, where the domain has no genome space, with fewer than 4 genomes or where
        all cost the same.
    """
    if len(genes) > most:
        half = most // 2
        latest = np.arange(len(genes) - half, len(genes))
        earlier = np.argsort(costs[:-half], kind="stable")[: most - half]
        kept = np.sort(np.concatenate([earlier, latest]))
        genes, costs, counts = genes[kept], costs[kept], counts[kept]
    costs = tamed(costs)
    spread = float(costs.std()) if len(costs) else 0.0
    if domain.space is None and (len(genes) < _FEWEST or spread == 0.0):
        return None
    spread = spread or 1.0
    targets = (costs - costs.mean()) / spread if len(costs) else costs
    inputs = _Inputs.of(domain, genes)
    scales, noise = _choose(domain, inputs, targets, counts)
    fitted = _Fit.of(inputs, inputs.kernel(inputs, scales), targets, noise / counts)
    return Model(
        domain=domain,
        scales=scales,
        noise=spread * fitted.deviation * math.sqrt(noise),
        _known=inputs,
        _weights=np.asarray(np.linalg.solve(fitted.factor.T, fitted.residual) / fitted.deviation),
        _factor=fitted.factor,
        _center=(float(costs.mean()) if len(costs) else 0.0) + spread * fitted.center,
        _deviation=spread * fitted.deviation,
    )


def _choose(
    domain: Domain, inputs: _Inputs, targets: Vector, counts: Vector
) -> tuple[tuple[float, ...], float]:
    """Choose length scales and noise by coordinate ascent of the likelihood over the grid."""
    if len(targets) > _MOST_FOR_GRID:  # evenly over time; the fit itself uses all
        kept = np.linspace(0, len(targets) - 1, _MOST_FOR_GRID).astype(np.int64)
        inputs, targets, counts = inputs.some(kept), targets[kept], counts[kept]
    grid: tuple[tuple[float, ...], ...] = (*_LENGTHS, _NOISES)
    usual = None
    if domain.space is not None:
        known = experience.learned()
        usual = known.noise
        grid = tuple((length,) for length in known.lengths)
        grid += ((_EFFECT_LENGTH,),) * (len(inputs.groups) - len(grid))
        grid = (*grid, tuple(usual * factor for factor in _NOISE_FACTORS))
    scores: dict[tuple[int, ...], float] = {}

    def score(at: tuple[int, ...]) -> float:
        if at not in scores:
            *scales, noise = (row[i] for row, i in zip(grid, at, strict=True))
            kernel = inputs.kernel(inputs, tuple(scales))
            scores[at] = _Fit.of(inputs, kernel, targets, noise / counts).evidence
            if usual is not None:
                scores[at] -= 0.5 * (math.log(noise / usual) / _NOISE_SPREAD) ** 2
        return scores[at]

    best = tuple(len(row) // 2 for row in grid)
    for _ in range(_ROUNDS):
        for row in (len(grid) - 1, *range(len(grid) - 1)):  # the noise, then the scales
            options = [(*best[:row], i, *best[row + 1 :]) for i in range(len(grid[row]))]
            best = max(options, key=score)
    *scales, noise = (row[i] for row, i in zip(grid, best, strict=True))
    return tuple(scales), noise


@dataclass(frozen=True, slots=True)
class _Fit:
    """The model at given scales and noise.

    Targets are a constant plus ``deviation`` times (prior mean + process + noise).

    Attributes:
        factor: Cholesky factor of kernel and noise.
        residual: Whitened targets, less constant and prior mean.
        center: The constant, by generalised least squares (GPML, Sec. 2.7).
        deviation: The landscape's standard deviation, its most likely value.
        evidence: Log marginal likelihood (GPML, Eq. 2.30), of what the constant leaves.
    """

    factor: Vector
    residual: Vector
    center: float
    deviation: float
    evidence: float

    @classmethod
    def of(cls, inputs: _Inputs, kernel: Vector, targets: Vector, noise: Vector) -> _Fit:
        n = len(targets)
        factor: Vector = np.asarray(np.linalg.cholesky(kernel + np.diag(noise + _JITTER)))
        whitened = np.linalg.solve(factor, np.stack([targets, inputs.mean, np.ones(n)], axis=1))
        seen, prior, ones = whitened.T
        weight = float(ones @ ones) or 1.0
        level, tilt = float(ones @ seen) / weight, float(ones @ prior) / weight
        a, b = seen - level * ones, prior - tilt * ones
        # With u = 1/deviation the log likelihood is −|a|²u²/2 + (a·b)u − |b|²/2 + n log u; its
        # derivative is zero at the root of |a|²u² − (a·b)u − n. Two further values of variance 1
        # (targets are scaled to it) are for when there are few.
        square, both, count = float(a @ a) + 2.0, float(a @ b), n + 2.0
        u = (both + math.sqrt(both**2 + 4.0 * square * count)) / (2.0 * square)
        evidence = -0.5 * square * u**2 + both * u - 0.5 * float(b @ b) + count * math.log(u)
        evidence -= float(np.log(np.diag(factor)).sum())
        deviation = 1.0 / u
        center = level - deviation * tilt
        return cls(factor, a - deviation * b, center, deviation, evidence)


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
