"""The linear probe's arithmetic: convergence, its strength, skewed and missing classes."""

import numpy as np
import pytest

from biotune_optuna.finetune.logistic import SKEWED, STRENGTHS, Logistic, fit_logistic
from biotune_optuna.finetune.metrics import score


def clouds(counts: list[int], *, d: int = 30, apart: float = 1.0, seed: int = 0):
    """Points around a centre for each class, on scales and at places that differ by feature."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, apart, (len(counts), d))
    labels = np.repeat(np.arange(len(counts)), counts)
    points = centres[labels] + rng.normal(0, 1, (len(labels), d))
    return points * 10.0 ** rng.uniform(-2, 2, d) + rng.normal(0, 5, d), labels


def likely(found: Logistic, points) -> np.ndarray:
    scores = points @ found.weight.T + found.bias
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("n", "d"), [(60, 12), (30, 100)])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_at_the_solution_the_gradient_is_zero(n: int, d: int, n_classes: int) -> None:
    points, labels = clouds([n // n_classes] * n_classes, d=d)
    found = fit_logistic(points, labels, n_classes=n_classes)
    spread = points.std(axis=0) * d**0.5
    scaled = (points - points.mean(axis=0)) / spread
    left = likely(found, points) - np.eye(n_classes)[labels]
    gradient = left.T @ scaled / n + found.strength * found.weight * spread
    assert abs(gradient).max() < 2e-3 * max(1.0, abs(found.weight * spread).max() * found.strength)
    assert abs(left.mean(axis=0)).max() < 2e-3, "the bias has no penalty"


def test_noise_wants_a_stronger_penalty_than_a_clear_difference() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 4
    noise = fit_logistic(rng.normal(size=(80, 40)), labels, n_classes=4)
    points, labels = clouds([20] * 4, apart=3.0)
    clear = fit_logistic(points, labels, n_classes=4)
    assert noise.strength == STRENGTHS[0]
    assert clear.strength < noise.strength
    assert score("accuracy", labels, clear.held_out, 4) > 0.95


def test_what_folds_say_comes_from_models_that_had_not_seen_the_image() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(100) % 2
    found = fit_logistic(rng.normal(size=(100, 300)), labels, n_classes=2)
    assert np.array_equal(found.judged, np.arange(100))
    assert score("accuracy", labels, found.held_out, 2) < 0.65, "there is nothing to learn"
    np.testing.assert_allclose(found.held_out.sum(axis=1), 1)


def test_balanced_weights_are_taken_where_classes_are_skewed_and_that_helps() -> None:
    points, labels = clouds([120, 12, 12], d=6, apart=0.8, seed=3)
    found = fit_logistic(points, labels, n_classes=3)
    assert found.class_weights == "balanced"
    plain = fit_logistic(points, labels, n_classes=3, metric="accuracy")
    assert plain.class_weights == "none", "each image counts the same there"
    even = fit_logistic(*clouds([10, int(10 * SKEWED) - 1, 10]), n_classes=3)
    assert even.class_weights == "none"


def test_a_class_without_images_is_never_predicted() -> None:
    points, labels = clouds([15, 15])
    found = fit_logistic(points, labels * 2, n_classes=4)
    assert found.weight.shape == (4, 30)
    assert likely(found, points)[:, [1, 3]].max() < 1e-6
    assert score("accuracy", labels * 2, likely(found, points), 4) == 1.0


@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 9, 9], [6], [2, 1]])
def test_few_images_are_enough(counts: list[int]) -> None:
    points, labels = clouds(counts, apart=4.0)
    found = fit_logistic(points, labels, n_classes=3)
    assert np.isfinite(found.weight).all()
    assert score("accuracy", labels, likely(found, points), 3) == 1.0


def test_images_of_one_group_stay_together() -> None:
    rng = np.random.default_rng(2)
    labels = np.arange(60) % 2
    copied = rng.normal(size=(60, 80)).repeat(
        3, axis=0
    )  # of each image three, and nothing to learn
    groups, labels = np.arange(60).repeat(3), labels.repeat(3)
    apart = fit_logistic(copied, labels, n_classes=2, groups=groups)
    mixed = fit_logistic(copied, labels, n_classes=2)
    assert score("accuracy", labels, apart.held_out, 2) < 0.7
    assert score("accuracy", labels, mixed.held_out, 2) > 0.9


def test_constant_features_count_for_nothing() -> None:
    points, labels = clouds([20, 20])
    wider = np.hstack([points, np.full((40, 3), 7.0)])
    found = fit_logistic(wider, labels, n_classes=2)
    assert np.array_equal(found.weight[:, 30:], np.zeros((2, 3)))
    plain = fit_logistic(points, labels, n_classes=2)
    np.testing.assert_allclose(likely(found, wider), likely(plain, points), atol=1e-3)
