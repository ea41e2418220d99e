"""scikit-learn's own checks."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from tests.kit.estimator import TINY
from tests.kit.row_classifier import RowClassifier

# They make rows of numbers, so they run on a subclass that draws rows as images (rows.py).
# One does not apply: it wants the probabilities of an image to be equal within 1e-7 whatever
# images stand beside it in the batch. Kernels of float32 add in an order that depends on the size
# of the batch, and by how much that shows is a matter of the machine and the weights;
# test_classifier.py::test_batches_agree checks the same to the precision that float32 has.

BESIDE_THE_POINT = {
    "check_methods_subset_invariance": "float32 sums depend on the size of the batch, by no more "
    "than test_batches_agree allows"
}
SMALLEST = TINY | {"n_trials": 1}


@parametrize_with_checks([RowClassifier(**SMALLEST)])
def test_sklearn_check(estimator: Any, check: Any) -> None:
    if reason := BESIDE_THE_POINT.get(check.func.__name__):
        pytest.skip(reason)
    check(estimator)
