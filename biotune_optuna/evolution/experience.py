"""What earlier tasks teach: which kinds of genome do well, before a new task has said anything.

Everything is told relative to the network's depth and to the searched range of rates, so that it
fits any network. ``experience.json`` was learned by ``studies/benchmarks/experience.py`` from the
tables of real trainings in ``studies/benchmarks/landscapes``; docs/benchmarks/search.md measures
it with the task left out that is searched on. Where a search begins: docs/benchmarks/starts.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from biotune_optuna.evolution.generation import Vector

DEPTHS = 4
"""Places along the depth at which blocks count on their own: 0, 1/3, 2/3 and 1."""

# In relative learning rates, a rate over the middle one of the range. All keep logarithms of small
# numbers finite and were chosen by hand.
_NO_RATE = 0.0025
_NO_RATE_AT_ALL = 1.5  # decades by which a body of middling rates is above it, about


class Start(NamedTuple):
    """A recipe for a network of any depth. Rates are decades from the middle of the range.

    Attributes:
        first: Relative depth of the first block of the body that trains, 0 the stem, 1 the last
            block below the head.
        last: That of the last one; below ``first`` where only the head trains.
        rate: Rate of the last block that trains.
        slope: How much faster it trains than the first one.
        head: Rate of the head.
    """

    first: float
    last: float
    rate: float
    slope: float
    head: float

    def log_rates(self, n_blocks: int) -> Vector:
        """Decades from the middle rate for each block, −inf where it is frozen, shape (B,)."""
        body = n_blocks - 1
        logs = np.full(n_blocks, -np.inf)
        logs[-1] = self.head
        first, last = (round(place * (body - 1)) for place in (self.first, self.last))
        if body and self.first <= self.last:
            trained = np.arange(first, last + 1)
            below = (last - trained) / max(last - first, 1)
            logs[trained] = self.rate - self.slope * below
        return logs


@dataclass(frozen=True)
class Experience:
    """What was learned.

    Attributes:
        means: Mean of each feature over the tables, shape (d,).
        scales: Standard deviation of each, shape (d,).
        weights: What a standard deviation of each is worth, in those of the values of a table.
        linear: Variance, over tasks, of the part that is linear in the features.
        residual: Variance of what the features do not say.
        noise: Variance of one value, in the same units.
        lengths: Inverse length scales of the residual (`surrogate.features`).
        starts: Recipes to begin with, the most promising first.
        tables: The tables it was learned from.
    """

    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    linear: float
    residual: float
    noise: float
    lengths: tuple[float, ...]
    starts: tuple[Start, ...]
    tables: tuple[str, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Experience:
        """Rebuild it from `to_dict`'s data."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**values | {"starts": tuple(Start(*one) for one in data["starts"])})

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return asdict(self) | {"starts": [list(one) for one in self.starts]}

    def standardised(self, features: Vector) -> Vector:
        """Return features as they compare to the tables', shape (N, d)."""
        result: Vector = (features - np.array(self.means)) / np.array(self.scales)
        return result

    def cost(self, standardised: Vector) -> Vector:
        """Return the expected cost, in standard deviations of a table's values, shape (N,)."""
        result: Vector = -standardised @ np.array(self.weights)
        return result


def features(log_rates: Vector) -> Vector:
    """Describe genomes of a network of any depth.

    With s_b = 1 where block b of the body (all but the head) trains, at ℓ_b decades from the middle
    rate, and hat functions h_k along the depth that sum to one over the blocks:

    - Σ_b h_k s_b and Σ_b h_k s_b ℓ_b for each k: where it trains, and how fast there;
    - ℓ of the head and its square;
    - log10 of the mean rate of the body, and its square: how much changes at all;
    - the share of the body that trains, and its square; whether any of it does;
    - the fastest rate of the body, its square, and its excess over the middle times that share;
    - ℓ of the head and its square where any of the body trains, and ℓ times that share: a probe's
      head wants another rate than one above blocks that change.

    Args:
        log_rates: Decades from the middle rate, −inf where frozen, shape (N, B).

    Returns:
        Shape (N, d).
    """
    trains = np.isfinite(log_rates)
    logs = np.where(trains, log_rates, 0.0)
    body, head = trains[:, :-1], logs[:, -1:]
    share = body.mean(axis=1, keepdims=True) if body.shape[1] else np.zeros_like(head)
    rates = np.where(body, 10.0 ** logs[:, :-1], 0.0)
    mean_rate = rates.mean(axis=1, keepdims=True) if body.shape[1] else np.zeros_like(head)
    amount = np.log10(mean_rate + _NO_RATE) + _NO_RATE_AT_ALL
    some = body.any(axis=1, keepdims=True).astype(np.float64)
    fastest = np.where(body, logs[:, :-1], -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    fastest = np.where(some > 0, fastest, 0.0)
    hats = _hats(body.shape[1])
    columns = [body @ hats, (logs[:, :-1] * body) @ hats, head, head**2, amount, amount**2]
    columns += [share, share**2, some, fastest, fastest**2, np.maximum(fastest, 0.0) * share]
    columns += [head * some, head**2 * some, head * share]
    return np.hstack(columns)


@cache
def _hats(n: int) -> Vector:
    """Return hat functions over n blocks, shape (n, DEPTHS); each sums to 1."""
    depth = np.linspace(0.0, 1.0, n) if n > 1 else np.full(n, 0.5)
    places = np.linspace(0.0, 1.0, DEPTHS)
    hats = np.maximum(1.0 - np.abs(depth[:, None] - places) * (DEPTHS - 1), 0.0)
    # Of a body of few blocks none may be near a place: the nearest one speaks for it then.
    for k in np.flatnonzero(hats.sum(axis=0) == 0) if n else ():
        hats[np.argmin(np.abs(depth - places[k])), k] = 1.0
    result: Vector = hats / np.maximum(hats.sum(axis=0), 1e-12)
    return result


@cache
def learned() -> Experience:
    """Return what the package knows."""
    text = (resources.files(__package__) / "experience.json").read_text(encoding="utf-8")
    return Experience.from_dict(json.loads(text))
