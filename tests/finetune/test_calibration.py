"""Temperatures, and what a confidence is worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import log_loss

from biotune_optuna.errors import BioTuneError, ModelError
from biotune_optuna.finetune.calibration import (
    Calibration,
    Trust,
    brier_score,
    cross_entropy,
    fit_temperature,
    reliability,
    tempered,
)


def drawn(temperature: float, n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities that are right at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 4))
    true = softmax(logits, axis=1)
    labels = np.array([rng.choice(4, p=row) for row in true])
    return labels, softmax(logits * temperature, axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_predictions_too_sure_is_found(temperature: float) -> None:
    labels, probs = drawn(temperature)
    assert fit_temperature(labels, probs) == pytest.approx(temperature, rel=0.08)
    before, after = (
        Trust.of(labels, one) for one in (probs, tempered(probs, fit_temperature(labels, probs)))
    )
    assert after.cross_entropy <= before.cross_entropy
    assert after.calibration_error < 0.03
    if temperature != 1:
        assert before.calibration_error > 2 * after.calibration_error


@given(st.floats(0.5, 2), st.integers(0, 1000))
def test_tempering_changes_no_order_and_can_be_undone(temperature: float, seed: int) -> None:
    probs = np.random.default_rng(seed).dirichlet(np.ones(5), 7)
    found = tempered(probs, temperature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert np.array_equal(found.argmax(axis=1), probs.argmax(axis=1))
    np.testing.assert_allclose(tempered(found, 1 / temperature), probs, atol=1e-3)
    np.testing.assert_allclose(tempered(probs[0], temperature), found[0], rtol=1e-5)


def test_a_model_that_is_always_right_does_not_become_certain() -> None:
    labels = np.zeros(50, dtype=np.int64)
    probs = np.tile([0.9, 0.1], (50, 1))
    assert 0.1 < fit_temperature(labels, probs) < 1


def test_the_measures_are_those_of_the_books() -> None:
    labels, probs = drawn(1.0, 200)
    assert cross_entropy(labels, probs) == pytest.approx(log_loss(labels, probs))
    assert brier_score(np.array([0, 1]), np.array([[1.0, 0.0], [0.5, 0.5]])) == 0.25
    assert math.isfinite(cross_entropy(np.array([0]), np.array([[0.0, 1.0]])))


def test_a_reliability_diagram_counts_every_image_once() -> None:
    labels, probs = drawn(2.0, 300)
    bins = reliability(labels, probs)
    assert sum(n for n, _, _ in bins) == 300
    right = sum(n * share for n, _, share in bins)
    assert right == pytest.approx((probs.argmax(1) == labels).sum())
    for _, sure, share in bins:
        assert 0 <= sure <= 1
        assert 0 <= share <= 1


# -- what a confidence is worth ---------------------------------------------------------------


KNOWN = Calibration(1.0, (0.9, 0.8, 0.8, 0.6, 0.5), (True, True, False, True, False))


@pytest.mark.parametrize(
    ("accuracy", "confidence"), [(1.0, 0.9), (0.75, 0.6), (0.7, 0.6), (0.6, 0.0), (0.1, 0.0)]
)
def test_the_least_confidence_that_an_accuracy_takes(accuracy: float, confidence: float) -> None:
    assert KNOWN.needed(accuracy) == confidence


def test_what_no_confidence_reaches_is_said() -> None:
    never = Calibration(1.0, (0.9, 0.8), (False, True))
    with pytest.raises(BioTuneError, match=r"accuracy of 0\.95 on the 2 validation images"):
        never.needed(0.95)
    for accuracy in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(BioTuneError, match="is no share"):
            KNOWN.needed(accuracy)


def test_kept_confidences_are_tempered_and_sorted() -> None:
    labels, probs = drawn(2.0, 100)
    found = Calibration.fit(labels, probs)
    sure = tempered(probs, found.temperature).max(axis=1)
    np.testing.assert_allclose(found.confidence, np.sort(sure)[::-1], atol=1e-5)
    assert np.mean(found.right) == np.mean(probs.argmax(1) == labels)
    assert Calibration.from_dict(found.to_dict(), "it") == found


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0},
        {"temperature": "hot"},
        {"confidence": [0.1]},
        {"confidence": [0.5, 0.6, 0.8, 0.8, 0.9]},
        {"right": None},
    ],
)
def test_what_is_damaged_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"calibration.json is damaged"):
        Calibration.from_dict(KNOWN.to_dict() | change, "calibration.json")
    with pytest.raises(ModelError):
        Calibration.from_dict([1], "calibration.json")
