"""Intervals and paired tests on one test set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.finetune.metrics import score

RESAMPLES = 1000


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
    draws = [value(labels[i], probs[i]) for i in _resamples(labels, seed, times)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value(labels, probs), float(low), float(high))


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

    The interval is a paired bootstrap of the metric's difference; p is McNemar's exact test of
    the hypothesis that both models are right equally often.

    Args:
        metric: Name of the metric.
        labels: True classes, shape (n,).
        ours: One model's probabilities, shape (n, n_classes).
        theirs: The other's, same shape.
        seed: Seed of the resampling.
    """
    from scipy.stats import binomtest

    n_classes = ours.shape[1]

    def difference(index: NDArray[np.int64]) -> float:
        return score(metric, labels[index], ours[index], n_classes) - score(
            metric, labels[index], theirs[index], n_classes
        )

    draws = [difference(index) for index in _resamples(labels, seed)]
    low, high = np.quantile(draws, [0.025, 0.975])
    our_hits, their_hits = ours.argmax(1) == labels, theirs.argmax(1) == labels
    only_ours = int((our_hits & ~their_hits).sum())
    only_theirs = int((their_hits & ~our_hits).sum())
    discordant = only_ours + only_theirs
    p = float(binomtest(only_ours, discordant).pvalue) if discordant else 1.0
    return PairedTest(difference(np.arange(len(labels))), float(low), float(high), p)


def _resamples(
    labels: NDArray[np.int64], seed: int, times: int = RESAMPLES
) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    for _ in range(times):
        yield np.concatenate([rng.choice(m, size=len(m)) for m in members])
