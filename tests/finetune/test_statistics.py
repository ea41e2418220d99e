"""Intervals and paired tests against values worked out by hand."""

import numpy as np
import pytest

from biotune_optuna.finetune.statistics import bootstrap_interval, paired_test


def probabilities(predicted: np.ndarray, n_classes: int = 2) -> np.ndarray:
    return np.eye(n_classes)[predicted]


LABELS = np.repeat([0, 1], 50)


def test_interval_holds_the_value_and_narrows_with_images() -> None:
    wrong = np.where(np.arange(100) % 5 == 0, 1 - LABELS, LABELS)
    small = bootstrap_interval("accuracy", LABELS, probabilities(wrong))
    many = bootstrap_interval("accuracy", np.tile(LABELS, 9), probabilities(np.tile(wrong, 9)))
    assert small.value == pytest.approx(0.8)
    assert small.low < 0.8 < small.high
    # 1.96 * sqrt(.8 * .2 / 100) = .078
    assert small.high - small.low == pytest.approx(2 * 0.078, rel=0.2)
    assert (many.high - many.low) == pytest.approx((small.high - small.low) / 3, rel=0.2)


def test_a_perfect_model_has_no_spread() -> None:
    assert bootstrap_interval("accuracy", LABELS, probabilities(LABELS)) == (1.0, 1.0, 1.0)


def test_paired_difference_and_exact_p() -> None:
    ours = LABELS.copy()
    ours[:2] = 1  # we miss 2 that they hit
    theirs = LABELS.copy()
    theirs[50:62] = 0  # they miss 12 that we hit
    result = paired_test("accuracy", LABELS, probabilities(ours), probabilities(theirs))
    assert result.difference == pytest.approx(0.10)
    assert result.low < 0.10 < result.high
    # two-sided binomial: 2 of 14 at one half
    assert result.p == pytest.approx(2 * (1 + 14 + 91) / 2**14)


def test_equal_models_cannot_be_told_apart() -> None:
    result = paired_test("accuracy", LABELS, probabilities(LABELS), probabilities(LABELS))
    assert result == (0.0, 0.0, 0.0, 1.0)


def test_the_same_seed_gives_the_same_interval() -> None:
    probs = np.random.default_rng(0).dirichlet([1, 1], 100)
    one = bootstrap_interval("macro_accuracy", LABELS, probs, seed=1)
    assert one == bootstrap_interval("macro_accuracy", LABELS, probs, seed=1)
    assert one != bootstrap_interval("macro_accuracy", LABELS, probs, seed=2)
