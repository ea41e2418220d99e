"""Images and a fitted classifier for the tests of the estimator."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from biotune_optuna import BioTuneClassifier
from tests.kit.estimator import PLAN, tiny


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """90 real digit images (8, 8) of three classes, uint8, and their names."""
    data = load_digits(n_class=3)
    names = np.array(["nought", "one", "two"])
    return np.rint(data.images[:90] * 255 / 16).astype(np.uint8), names[data.target[:90]]


@pytest.fixture(scope="session")
def fitted(digits: tuple[np.ndarray, np.ndarray]) -> BioTuneClassifier:
    return tiny(confirm=PLAN).fit(*digits)
