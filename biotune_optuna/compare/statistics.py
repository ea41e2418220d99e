"""The statistics of a comparison: paired effects with intervals, corrected for many looks.

Everything here is a pure function of numbers. Which test belongs where, and why, is said in
docs/compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
_FEWEST_RANKED = 6  # repeats from which a signed-rank interval of 95 % exists


class Effect(NamedTuple):
    """A value or a paired difference with its 95 % interval.

    Attributes:
        value: The mean, or what the test estimates.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end.
        p: Two-sided p-value of the hypothesis that the value is 0; NaN where it was not asked.
        n: Number of repeats.
    """

    value: float
    low: float
    high: float
    p: float
    n: int


def mean_interval(values: Sequence[float], *, ratio: float = 0.0) -> Effect:
    """Return a mean over repeats and its t interval.

    Args:
        values: One value a repeat.
        ratio: Test images over training images where repeats are resampled splits, see
            `corrected_t`; 0 where repeats are independent.
    """
    return corrected_t(values, ratio=ratio)._replace(p=math.nan)


def corrected_t(differences: Sequence[float], *, ratio: float) -> Effect:
    """Test pairs by t with the correction of Nadeau and Bengio (2003) for resampled splits.

    Splits of one data set overlap, so their results are correlated and the usual variance of the
    mean, s²/k, is far too small. The corrected one is (1/k + n_test/n_train)·s²: it takes for the
    correlation the share of the data that a test part holds, which two test parts have in common
    on average. Where only some of the other images are trained on, n_train still counts all.

    Args:
        differences: One difference a split, k of them.
        ratio: n_test / n_train; 0 gives Student's t test.

    Returns:
        The mean difference, its interval and p-value. Where all differences are equal there is no
        spread to judge by: no interval, and no p-value except 1 where they are all 0.
    """
    d = np.asarray(differences, dtype=np.float64)
    k = len(d)
    if k < 2:
        return Effect(float(d.mean()) if k else math.nan, math.nan, math.nan, math.nan, k)
    from scipy.stats import t as student

    mean, spread = float(d.mean()), float(d.std(ddof=1))
    error = spread * math.sqrt(1.0 / k + ratio)
    if error < 1e-12:  # all differences are equal: nothing tells how they would spread
        return Effect(mean, math.nan, math.nan, 1.0 if abs(mean) < 1e-12 else math.nan, k)
    half = float(student.ppf(0.5 + LEVEL / 2, k - 1)) * error
    p = 2.0 * float(student.sf(abs(mean) / error, k - 1))
    return Effect(mean, mean - half, mean + half, p, k)


def signed_rank(differences: Sequence[float]) -> Effect:
    """Wilcoxon's signed-rank test, with the estimate and the interval that belong to it.

    The estimate is the median of all pairwise means (Hodges and Lehmann, 1963), the interval the
    exact one of the same rank statistic. With fewer than six repeats no interval of 95 % exists:
    its ends are NaN.

    Args:
        differences: One difference a repeat.
    """
    d = np.asarray(differences, dtype=np.float64)
    k = len(d)
    if k < 2:
        return Effect(float(d.mean()) if k else math.nan, math.nan, math.nan, math.nan, k)
    i, j = np.triu_indices(k)
    walsh = np.sort((d[i] + d[j]) / 2.0)
    value = float(np.median(walsh))
    low = high = math.nan
    if k >= _FEWEST_RANKED:
        drop = _critical_rank(k)  # so many of the extreme pairwise means lie outside on each side
        low, high = float(walsh[drop]), float(walsh[-1 - drop])
    return Effect(value, low, high, _signed_rank_p(d), k)


def _signed_rank_p(d: NDArray[np.float64]) -> float:
    """Exact two-sided p by all sign patterns of the ranks; zeros are left out, ties averaged."""
    from scipy.stats import rankdata

    d = d[np.abs(d) > 1e-12]
    if not len(d):
        return 1.0
    doubled = np.rint(2 * rankdata(np.abs(np.round(d, 12)))).astype(np.int64)
    total = int(doubled.sum())
    counts = _sign_patterns(doubled.tolist())
    positive = int(doubled[d > 0].sum())
    tail = counts[: min(positive, total - positive) + 1].sum() / counts.sum()
    return float(min(1.0, 2.0 * tail))


def _critical_rank(k: int) -> int:
    """Return the largest rank sum that the exact two-sided test of 6 or more rejects at 5 %."""
    counts = _sign_patterns(range(1, k + 1))
    below = np.cumsum(counts) / counts.sum()
    return int(np.searchsorted(below, (1.0 - LEVEL) / 2, side="right")) - 1


def _sign_patterns(ranks: Sequence[int]) -> NDArray[np.float64]:
    """Return how many sign patterns of the ranks have each sum of positive ranks, 0 to all."""
    counts = np.zeros(sum(ranks) + 1)
    counts[0] = 1.0
    for rank in ranks:
        counts[rank:] += counts[: len(counts) - rank].copy()
    return counts


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a family of p-values.

    Args:
        p_values: The family; NaN (a test that could not be made) counts as 1.

    Returns:
        Adjusted p-values in the same order.
    """
    p = np.nan_to_num(np.array(p_values, dtype=np.float64), nan=1.0)
    order = np.argsort(p, kind="stable")
    steps = np.arange(len(p), 0, -1) * p[order]
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, steps))
    return list(adjusted.tolist())


def mean_ranks(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean rank of each method over tasks, 1 the best; ties share the average of their ranks.

    Only methods that every task has are ranked.

    Args:
        scores: For each task, each method's mean score.
    """
    from scipy.stats import rankdata

    names = [name for name in scores[0] if all(name in task for task in scores)] if scores else []
    if not names:
        return {}
    ranks = np.array([rankdata([-round(task[name], 12) for name in names]) for task in scores])
    return dict(zip(names, ranks.mean(axis=0).tolist(), strict=True))
