"""Optuna's distributions as numbers in [0, 1], so that one strategy serves all parameter kinds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def n_choices(distribution: BaseDistribution) -> int:
    """Return the number of choices that have no order; 0 for a numeric distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    return 0


def n_cells(distribution: BaseDistribution) -> int:
    """Return the number of values with equal shares of [0, 1]; 0 where many or unequal."""
    return n_choices(distribution) or _bounds(distribution)[2]


def encode(distribution: BaseDistribution, value: Any) -> float:
    """Return a parameter's value as a number in [0, 1].

    Values on a grid and choices map to the middle of their share. A plain float in [0, 1] maps to
    itself, bit for bit.
    """
    internal = float(distribution.to_internal_repr(value))
    if isinstance(distribution, CategoricalDistribution):
        return (internal + 0.5) / len(distribution.choices)
    low, high, size = _bounds(distribution)
    if size:
        step = float(getattr(distribution, "step", None) or 1.0)
        return _clip((round((internal - low) / step) + 0.5) / size)
    if getattr(distribution, "log", False):
        low, high, internal = math.log(low), math.log(high), math.log(internal)
    return _clip((internal - low) / (high - low)) if high > low else 0.5


def decode(distribution: BaseDistribution, unit: float) -> Any:
    """Return the value that a number in [0, 1] stands for; always one the distribution contains."""
    if isinstance(distribution, CategoricalDistribution):
        size = len(distribution.choices)
        return distribution.choices[min(int(unit * size), size - 1)]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, size = _bounds(distribution)
    is_int = isinstance(distribution, IntDistribution)
    if size:
        step = float(distribution.step or 1.0)
        value = low + min(int(unit * size), size - 1) * step
    elif distribution.log:
        value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
    else:
        value = low + unit * (high - low)
    value = min(max(value, float(distribution.low)), float(distribution.high))
    return round(value) if is_int else value


def to_unit(
    space: Mapping[str, BaseDistribution], params: Mapping[str, Any]
) -> NDArray[np.float64] | None:
    """Return the genes that parameters spell; None where one is missing or out of range."""
    genes = np.empty(len(space))
    for i, (name, distribution) in enumerate(space.items()):
        if name not in params:
            return None
        try:
            genes[i] = encode(distribution, params[name])
        except ValueError:  # a choice the distribution does not have, a log of nothing
            return None
    return genes


def to_params(space: Mapping[str, BaseDistribution], genes: NDArray[np.float64]) -> dict[str, Any]:
    """Return the parameters that genes stand for."""
    values = genes.tolist()
    return {name: decode(dist, u) for (name, dist), u in zip(space.items(), values, strict=True)}


def _bounds(distribution: BaseDistribution) -> tuple[float, float, int]:
    """Bounds of a numeric distribution, and the number of its grid points (0: continuous)."""
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution) and distribution.log:
        return low - 0.5, high + 0.5, 0
    if distribution.step is None:
        return low, high, 0
    return low, high, round((high - low) / distribution.step) + 1


def _clip(unit: float) -> float:
    return min(max(unit, 0.0), 1.0)
