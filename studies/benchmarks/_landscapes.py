"""Closed-form landscapes over genomes, modelled on what short fine-tunings look like.

In all of them the overall rate dominates, one end of it diverges, early blocks are best frozen or
slow, the top is a plateau, and a value carries noise of 0.02. They differ in where the optimum is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from biotune_optuna import GenomeSpace, Recipe
from biotune_optuna.recipe import BlockRecipe

NOISE = 0.02
N_BLOCKS = 10


def make_space() -> GenomeSpace:
    """Ten blocks; base rate 1e-3 … 3e-2; the head always trains."""
    return GenomeSpace([BlockRecipe(f"b{i}", 1.0) for i in range(N_BLOCKS)])


@dataclass(frozen=True)
class Landscape:
    """A noise-free value for every recipe.

    Attributes:
        name: What it stands for.
        best_rate: log10 of the overall rate that is best.
        width: Decades over which the overall rate hardly matters.
        frozen: Share of each block's value that freezing adds (negative: that it costs).
        tilt: Best slope of the log rate with depth, decades from first to last block.
        top: Value at the optimum.
    """

    name: str
    best_rate: float
    width: float
    frozen: tuple[float, ...]
    tilt: float
    top: float = 0.7

    def value(self, recipe: Recipe) -> float:
        """The noise-free value of a recipe."""
        rates = np.array([b.multiplier * recipe.lr for b in recipe.blocks])
        active = rates > 0
        logs = np.log10(rates[active])
        depth = np.linspace(-0.5, 0.5, len(rates))[active]
        weights = 0.3 + np.linspace(0.0, 1.0, len(rates))[active]
        overall = float(np.average(logs, weights=weights))
        off = max(0.0, abs(overall - self.best_rate) - self.width)
        steep = 0.22 if overall > self.best_rate else 0.09
        loss = steep * off**2 + 0.02 * off
        wanted = overall + self.tilt * (depth - np.average(depth, weights=weights))
        loss += 0.03 * float(np.average((logs - wanted) ** 2, weights=weights))
        bonus = np.array(self.frozen)
        best = float(bonus[bonus > 0].sum())
        loss += best - float(bonus[~active].sum())
        if logs.max() > -0.8:  # the fastest block diverges
            loss += 0.8 * (logs.max() + 0.8)
        return max(0.1, self.top - 0.55 * (1 - np.exp(-loss / 0.55)))

    def observe(self, recipe: Recipe, rng: np.random.Generator) -> float:
        """One noisy evaluation."""
        return self.value(recipe) + NOISE * float(rng.standard_normal())


def _prefix(count: int, gain: float, cost: float) -> tuple[float, ...]:
    rising = np.linspace(0.5, 1.5, N_BLOCKS - count)
    return (*[gain / max(count, 1)] * count, *(-cost * rising / rising.sum()).tolist())


# The first group is what the default preset was tuned on, the second was looked at once.
TUNED_ON = (
    Landscape("four frozen", -2.15, 0.10, _prefix(4, 0.03, 0.10), 0.4),
    Landscape("full, slow below", -2.45, 0.10, _prefix(0, 0.0, 0.08), 1.6),
    Landscape("three frozen, plateau", -2.0, 0.30, _prefix(3, 0.03, 0.06), -0.4),
)
HELD_OUT = (
    Landscape("only the top", -1.7, 0.15, _prefix(7, 0.05, 0.05), 0.5),
    Landscape(
        "a gap in the middle",
        -2.4,
        0.20,
        (-0.01, -0.01, -0.01, 0.012, 0.012, 0.012, -0.02, -0.02, -0.02, -0.03),
        0.4,
    ),
    Landscape("full, fast", -1.75, 0.10, _prefix(0, 0.0, 0.05), 0.6),
)
