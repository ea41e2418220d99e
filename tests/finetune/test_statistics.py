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


@pytest.mark.parametrize("metric", ["accuracy", "macro_accuracy", "macro_f1"])
@pytest.mark.parametrize("n", [5, 100])
def test_images_that_are_all_right_leave_room_for_doubt(metric: str, n: int) -> None:
    labels = np.arange(n) % 2
    found = bootstrap_interval(metric, labels, probabilities(labels))
    assert (found.value, found.high) == (1.0, 1.0)
    # The exact interval of a share: 0.48 for 5 of 5, 0.63 for 8 of 8, 0.964 for 100 of 100.
    exact = 0.025 ** (1 / n)
    assert exact - 0.35 < found.low < exact + 0.12
    assert found.low < 1.0


def test_images_that_all_go_to_one_class_leave_room_for_doubt() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    found = bootstrap_interval("macro_accuracy", labels, np.tile([0.9, 0.1], (5, 1)))
    assert found.value == 0.5
    assert found.low < 0.45
    assert found.high > 0.55


def test_intervals_of_few_images_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    labels, held = np.arange(12) % 2, 0
    for seed in range(20):
        predicted = np.where(rng.random(12) < 0.9, labels, 1 - labels)
        found = bootstrap_interval("accuracy", labels, probabilities(predicted), seed=seed)
        held += found.low <= 0.9 <= found.high
    assert held >= 18


def test_an_interval_and_its_p_do_not_contradict_each_other() -> None:
    rng = np.random.default_rng(1)
    for n in (5, 9):
        labels = np.arange(n) % 2
        for _ in range(3):
            ours = np.where(rng.random(n) < 0.9, labels, 1 - labels)
            theirs = np.where(rng.random(n) < 0.5, labels, 1 - labels)
            found = paired_test("accuracy", labels, probabilities(ours), probabilities(theirs))
            if found.p >= 0.05:
                assert found.low <= 0.0 <= found.high
            assert found.low < found.high


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
    assert (result.difference, result.p) == (0.0, 1.0)
    assert -0.06 < result.low < 0.0 < result.high < 0.06


def test_the_same_seed_gives_the_same_interval() -> None:
    probs = np.random.default_rng(0).dirichlet([1, 1], 100)
    one = bootstrap_interval("macro_accuracy", LABELS, probs, seed=1)
    assert one == bootstrap_interval("macro_accuracy", LABELS, probs, seed=1)
    assert one != bootstrap_interval("macro_accuracy", LABELS, probs, seed=2)
