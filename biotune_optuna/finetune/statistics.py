"""Intervals and paired tests on one test set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.finetune.metrics import score

RESAMPLES = 1000

_LEVEL = 0.05
_MANY = 2000  # images: four more would change nothing


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """A difference with its 95 % bootstrap interval and McNemar's exact p-value."""

    difference: float
    low: float
    high: float
    p: float


def bootstrap_interval(
    metric: str, labels: NDArray[np.int64], probs: NDArray[np.floating], *, seed: int = 0
) -> Interval:
    """Return a metric and its 95 % percentile interval over resampled test images.

    Images are resampled with replacement within each class, 1,000 times, so that every class stays
    present. The interval says how much the value owes to these test images; it does not cover the
    spread between trainings.

    Images that are all right, or all wrong, would be so in every resample, and five of them would
    give an interval without width. So the images are resampled once more beside two further ones
    that are right and two that are wrong, of the rarest classes (as Agresti and Coull do for a
    share), and the interval reaches over both.

    Args:
        metric: Name of the metric.
        labels: True classes, shape (n,).
        probs: Predicted probabilities, shape (n, n_classes).
        seed: Seed of the resampling.
    """
    n_classes = probs.shape[1]
    return resampled_interval(lambda y, p: score(metric, y, p, n_classes), labels, probs, seed=seed)


def resampled_interval(
    value: Callable[[NDArray[np.int64], NDArray[np.floating]], float],
    labels: NDArray[np.int64],
    probs: NDArray[np.floating],
    *,
    times: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """As `bootstrap_interval`, for any value that follows from labels and probabilities.

    Args:
        value: Maps labels, shape (n,), and probabilities, shape (n, n_classes), to a number.
        labels: True classes, shape (n,).
        probs: Predicted probabilities, shape (n, n_classes).
        times: How often images are drawn.
        seed: Seed of the resampling.
    """
    low, high = _quantiles(value(labels[i], probs[i]) for i in _resamples(labels, seed, times))
    if len(labels) <= _MANY or low == high:
        right, wrong = _right_and_wrong(labels, probs)
        more = np.concatenate([labels, *[_rarest(labels)] * 2])
        padded = np.concatenate([probs, right, wrong])
        draws = (value(more[i], padded[i]) for i in _resamples(more, seed, times))
        low, high = _hull((low, high), _quantiles(draws))
    return Interval(value(labels, probs), low, high)


def proportion_interval(hits: int, n: int) -> Interval:
    """Return a share and Wilson's 95 % interval of it.

    Args:
        hits: How many.
        n: Of how many, at least 1.
    """
    from scipy.stats import binomtest

    low, high = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return Interval(hits / n, float(low), float(high))


def paired_test(
    metric: str,
    labels: NDArray[np.int64],
    ours: NDArray[np.floating],
    theirs: NDArray[np.floating],
    *,
    seed: int = 0,
) -> PairedTest:
    """Compare two models on the same test images.

    The interval is a paired bootstrap of the metric's difference, with four further images as in
    `bootstrap_interval`; p is McNemar's exact test of the hypothesis that both models are right
    equally often. Where p leaves it open and so does a test of the metric's own difference (whose
    prediction is whose is drawn, 1,000 times), the interval reaches to 0: beside an interval that
    leaves 0 out, such a p would contradict it.

    Args:
        metric: Name of the metric.
        labels: True classes, shape (n,).
        ours: One model's probabilities, shape (n, n_classes).
        theirs: The other's, same shape.
        seed: Seed of the resampling.
    """
    from scipy.stats import binomtest

    n_classes = ours.shape[1]

    def difference(
        y: NDArray[np.int64], one: NDArray[np.floating], other: NDArray[np.floating]
    ) -> float:
        return score(metric, y, one, n_classes) - score(metric, y, other, n_classes)

    found = difference(labels, ours, theirs)
    low, high = _quantiles(
        difference(labels[i], ours[i], theirs[i]) for i in _resamples(labels, seed)
    )
    if len(labels) <= _MANY or low == high:
        right, wrong = _right_and_wrong(labels, ours)
        more = np.concatenate([labels, *[_rarest(labels)] * 2])
        one, other = np.concatenate([ours, right, wrong]), np.concatenate([theirs, wrong, right])
        draws = (difference(more[i], one[i], other[i]) for i in _resamples(more, seed))
        low, high = _hull((low, high), _quantiles(draws))
    our_hits, their_hits = ours.argmax(1) == labels, theirs.argmax(1) == labels
    only_ours = int((our_hits & ~their_hits).sum())
    only_theirs = int((their_hits & ~our_hits).sum())
    discordant = only_ours + only_theirs
    p = float(binomtest(only_ours, discordant).pvalue) if discordant else 1.0
    if p >= _LEVEL and not low <= 0.0 <= high:
        swaps = _swapped(difference, labels, ours, theirs, seed)
        if np.mean([abs(value) >= abs(found) - 1e-12 for value in swaps]) >= _LEVEL:
            low, high = min(low, 0.0), max(high, 0.0)
    return PairedTest(found, low, high, p)


def _swapped(
    difference: Callable[..., float],
    labels: NDArray[np.int64],
    ours: NDArray[np.floating],
    theirs: NDArray[np.floating],
    seed: int,
) -> Iterator[float]:
    """Yield differences where chance decides, image by image, whose prediction is whose."""
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        swap = rng.random(len(labels))[:, None] < 0.5
        yield difference(labels, np.where(swap, theirs, ours), np.where(swap, ours, theirs))


def _quantiles(draws: Iterable[float]) -> tuple[float, float]:
    low, high = np.quantile(list(draws), [_LEVEL / 2, 1 - _LEVEL / 2])
    return float(low), float(high)


def _hull(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return min(one[0], other[0]), max(one[1], other[1])


def _rarest(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the two classes that occur least, twice the only one where there is but one."""
    classes, counts = np.unique(labels, return_counts=True)
    rarest = classes[np.argsort(counts, kind="stable")[:2]]
    return np.resize(rarest, 2)


def _right_and_wrong(
    labels: NDArray[np.int64], probs: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return two rows that are right and two that are wrong about the rarest classes.

    Their probabilities are those of a real image of the class, dealt out anew.
    """
    right, wrong = [], []
    for label in _rarest(labels):
        ranked = np.sort(probs[np.flatnonzero(labels == label)[0]])[::-1]
        others = np.delete(np.arange(probs.shape[1]), label)
        row = np.empty_like(ranked)
        row[label], row[others] = ranked[0], ranked[1:]
        right.append(row)
        row = np.empty_like(ranked)
        row[others[0]], row[label], row[others[1:]] = ranked[0], ranked[-1], ranked[1:-1]
        wrong.append(row)
    return np.array(right), np.array(wrong)


def _resamples(
    labels: NDArray[np.int64], seed: int, times: int = RESAMPLES
) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    for _ in range(times):
        yield np.concatenate([rng.choice(m, size=len(m)) for m in members])
