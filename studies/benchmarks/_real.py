"""Landscapes of real evaluations: tables of trainings, and a model of each to search on.

The model is an average of extremely randomised trees and a Gaussian process (both scikit-learn's)
over the blocks' log rates. It is fitted to the table alone and says how well it predicts genomes it
was not fitted to; the process, though, is of the kind that the default preset fits too, so that
`real_search.py` has the last word. Noise is drawn as repeated trainings show
it at that level of value.
"""

from __future__ import annotations

import csv
import json
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import norm, rankdata, spearmanr
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import KFold

from biotune_optuna import GenomeSpace, Recipe
from biotune_optuna.recipe import BlockRecipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

HERE = Path(__file__).parent / "landscapes"
N_TREES = 200
N_LIKE = 12  # repeated recipes whose residuals are drawn as noise


@dataclass(frozen=True)
class Table:
    """Real trainings of one task.

    Attributes:
        name: The task.
        made: How they were made.
        rates: Different recipes' learning rate of each block, 0 where frozen; shape (N, B).
        means: Mean score of each, shape (N,).
        counts: How many trainings each mean is of, shape (N,).
        scores: Single scores of each.
    """

    name: str
    made: dict[str, Any]
    rates: Vector
    means: Vector
    counts: Vector
    scores: tuple[tuple[float, ...], ...]

    @classmethod
    def read(cls, path: Path) -> Table:
        """Reads a table written by ``landscapes.py``."""
        with path.open() as file:
            made = json.loads(file.readline().removeprefix("# "))
            rows = list(csv.DictReader(file))
        by_seed: dict[tuple[float, ...], dict[str, float]] = {}
        for row in rows:  # different genomes may be one recipe: the same training, kept once
            multipliers = [float(row[f"m{i}"]) for i in range(len(made["blocks"]))]
            rates = tuple(float(row["lr"]) * m for m in multipliers)
            by_seed.setdefault(rates, {})[row["seed"]] = float(row["score"])
        scores = tuple(tuple(seeds.values()) for seeds in by_seed.values())
        return cls(
            name=path.stem,
            made=made,
            rates=np.array(list(by_seed)),
            means=np.array([np.mean(one) for one in scores]),
            counts=np.array([float(len(one)) for one in scores]),
            scores=scores,
        )

    @property
    def n_trainings(self) -> int:
        """Number of trainings."""
        return int(self.counts.sum())

    def residuals(self) -> tuple[Vector, list[Vector]]:
        """Repeated recipes' means, ascending, and how far each training fell from its mean.

        Residuals are scaled so that their mean square is the variance of one training.
        """
        repeated = sorted((s for s in self.scores if len(s) > 1), key=lambda s: float(np.mean(s)))
        scaled = [(np.array(s) - np.mean(s)) * math.sqrt(len(s) / (len(s) - 1)) for s in repeated]
        return np.array([np.mean(s) for s in repeated]), scaled

    @property
    def top(self) -> float:
        """The best score that any training had."""
        return max(max(scores) for scores in self.scores)

    def luck(self) -> tuple[Vector, list[Vector]]:
        """Repeated recipes' means, and `residuals` with good luck as a share of the room above.

        Bad luck stays in units of the score. Good luck does not carry over like that: a recipe
        that half its trainings fail gains much from a success, a good one cannot.
        """
        means, residuals = self.residuals()
        rooms = np.maximum(self.top - means, 1e-9)
        shares = [
            np.where(r > 0, np.minimum(r / room, 1.0), r)
            for r, room in zip(residuals, rooms, strict=True)
        ]
        return means, shares


def features(rates: Vector) -> Vector:
    """Log rate of every block, which blocks train, their mean log rate, and the frozen prefix."""
    active = rates > 0
    logs = np.log10(np.where(active, rates, 1e-5))
    overall = np.where(active, logs, 0.0).sum(axis=1) / np.maximum(active.sum(axis=1), 1)
    prefix = np.argmax(active, axis=1)
    return np.column_stack([logs, active, overall, prefix])


class Surrogate:
    """Trees and a Gaussian process, averaged; fast for one recipe at a time."""

    def __init__(self, rates: Vector, means: Vector, counts: Vector) -> None:
        inputs = features(rates)
        # The process sees normal scores of ranks, mapped back: fitted to the values themselves it
        # swings beyond both ends wherever a plateau breaks off, and predicts held-out ones worse.
        scores = np.asarray(norm.ppf((rankdata(means) - 0.5) / len(means)))
        order = np.argsort(scores)
        self._scale_back = (scores[order], means[order])
        self._forest = ExtraTreesRegressor(
            N_TREES, min_samples_leaf=2, max_features=0.6, random_state=0
        ).fit(inputs, means, sample_weight=counts)
        self._center, self._scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-9
        kernel = ConstantKernel(1.0) * Matern(
            np.full(inputs.shape[1], 3.0), (0.3, 100.0), nu=2.5
        ) + WhiteKernel(0.05, (1e-4, 2.0))
        self._process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        with warnings.catch_warnings():  # features that do not matter get endless length scales
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._process.fit(self._scaled(inputs), scores)
        self._trees = _Flat(self._forest)
        self._fast = _Posterior(self._process)

    def _scaled(self, inputs: Vector) -> Vector:
        scaled: Vector = (inputs - self._center) / self._scale
        return scaled

    def predict(self, rates: Vector) -> Vector:
        """Value of each recipe; rates of shape (M, B)."""
        inputs = features(rates)
        scores = np.array([self._fast(one) for one in self._scaled(inputs)])
        process = np.interp(scores, *self._scale_back)
        return np.asarray(0.5 * (self.by_trees(rates) + process))

    def by_trees(self, rates: Vector) -> Vector:
        """Value by the trees alone, which are unlike any searcher's model."""
        return np.array([self._trees(one) for one in features(rates)])


class _Flat:
    """A forest as arrays: scikit-learn's own call takes 20 ms for a single row."""

    def __init__(self, forest: ExtraTreesRegressor) -> None:
        trees = [one.tree_ for one in forest.estimators_]
        starts = np.cumsum([0] + [tree.node_count for tree in trees])[:-1]
        self._roots = starts
        self._left = np.concatenate(
            [t.children_left + s for t, s in zip(trees, starts, strict=True)]
        )
        self._right = np.concatenate(
            [t.children_right + s for t, s in zip(trees, starts, strict=True)]
        )
        self._feature = np.concatenate([tree.feature for tree in trees])
        self._threshold = np.concatenate([tree.threshold for tree in trees])
        self._value = np.concatenate([tree.value[:, 0, 0] for tree in trees])
        leaf = self._feature < 0
        here = np.arange(len(leaf))
        self._left[leaf], self._right[leaf] = here[leaf], here[leaf]
        self._depth = max(tree.max_depth for tree in trees)

    def __call__(self, row: Vector) -> float:
        row = row.astype(np.float32)
        nodes = self._roots
        for _ in range(self._depth):
            left = row[self._feature[nodes]] <= self._threshold[nodes]
            nodes = np.where(left, self._left[nodes], self._right[nodes])
        return float(self._value[nodes].mean())


class _Posterior:
    """The posterior mean of a fitted process, for a single row."""

    def __init__(self, process: GaussianProcessRegressor) -> None:
        product = process.kernel_.k1
        self._amplitude = product.k1.constant_value
        self._lengths = product.k2.length_scale
        self._points = process.X_train_ / self._lengths
        self._weights = process.alpha_
        self._mean, self._deviation = process._y_train_mean, process._y_train_std

    def __call__(self, row: Vector) -> float:
        d = math.sqrt(5.0) * np.linalg.norm(self._points - row / self._lengths, axis=1)
        kernel = self._amplitude * (1.0 + d + d * d / 3.0) * np.exp(-d)
        return float(self._mean + self._deviation * (kernel @ self._weights))


class RealLandscape:
    """A task to search on, modelled on its real trainings."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.name = table.name
        blocks = [BlockRecipe(name, 1.0) for name in table.made["blocks"]]
        self.space = GenomeSpace(blocks, lr=tuple(table.made["spec"]["lr"]))
        self._levels, self._luck = table.luck()
        self._top = table.top

    @cached_property
    def surrogate(self) -> Surrogate:
        """Fitted when first asked."""
        return Surrogate(self.table.rates, self.table.means, self.table.counts)

    def value(self, recipe: Recipe) -> float:
        """The noise-free value."""
        return float(self.surrogate.predict(rates_of(recipe))[0])

    def by_trees(self, recipe: Recipe) -> float:
        """The noise-free value by the trees alone."""
        return float(self.surrogate.by_trees(rates_of(recipe))[0])

    def observe(self, recipe: Recipe, rng: np.random.Generator) -> float:
        """What one training would give: as lucky or unlucky as one of a like recipe was."""
        value = self.value(recipe)
        start = int(np.searchsorted(self._levels, value)) - N_LIKE // 2
        start = min(max(start, 0), max(len(self._levels) - N_LIKE, 0))
        like = np.concatenate(self._luck[start : start + N_LIKE])
        luck = np.where(like > 0, like * max(self._top - value, 0.0), like)
        return value + float(luck[rng.integers(len(luck))] - luck.mean())

    def noise(self) -> float:
        """Standard deviation of one training of a recipe like the best ones."""
        return float(np.sqrt(np.mean(np.concatenate(self.table.residuals()[1][-N_LIKE:]) ** 2)))

    def quality(self, folds: int = 10) -> dict[str, float]:
        """How well the model predicts recipes it was not fitted to.

        Returns:
            ``rmse`` and Spearman's ``rank`` over all, both of those among the best tenth, and the
            ``noise`` of a single training there.
        """
        table = self.table
        predicted = np.empty_like(table.means)
        for fit, held_out in KFold(folds, shuffle=True, random_state=0).split(table.rates):
            model = Surrogate(table.rates[fit], table.means[fit], table.counts[fit])
            predicted[held_out] = model.predict(table.rates[held_out])
        best = table.means >= np.quantile(table.means, 0.9)
        errors = predicted - table.means
        return {
            "rmse": float(np.sqrt(np.mean(errors**2))),
            "rank": float(spearmanr(predicted, table.means).statistic),
            "rmse_best": float(np.sqrt(np.mean(errors[best] ** 2))),
            "rank_best": float(spearmanr(predicted[best], table.means[best]).statistic),
            "noise": self.noise(),
        }


def rates_of(recipe: Recipe) -> Vector:
    """Learning rate of every block, shape (1, B)."""
    return np.array([[block.multiplier * recipe.lr for block in recipe.blocks]])


def landscapes(names: list[str] | None = None) -> list[RealLandscape]:
    """All whose tables repeat some trainings, from which noise can be drawn, or those named."""
    paths = sorted(HERE.glob("*-*.csv"))
    tables = [Table.read(p) for p in paths if names is None or p.stem in names]
    repeats = [any(len(scores) > 1 for scores in table.scores) for table in tables]
    chosen = [t for t, is_noisy in zip(tables, repeats, strict=True) if names or is_noisy]
    return [RealLandscape(table) for table in chosen]
