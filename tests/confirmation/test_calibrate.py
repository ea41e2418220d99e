"""What is kept of predictions for validation images."""

from __future__ import annotations

import numpy as np
import pytest

from biotune_optuna.confirmation.calibrate import pack, rows_kept, unpack


@pytest.mark.parametrize(
    ("images", "classes", "kept"),
    [(100, 10, 100), (10_000, 10, 1600), (300, 200, 80), (29, 2, 0), (10_000, 1000, 0)],
)
def test_as_many_predictions_are_kept_as_a_row_of_a_database_has_room_for(
    images: int, classes: int, kept: int
) -> None:
    rows = rows_kept(images, classes)
    assert len(rows) == len(set(rows.tolist())) == kept
    assert all(rows[1:] > rows[:-1])
    probs = np.random.default_rng(0).dirichlet(np.ones(classes), images).astype(np.float32)
    text = pack(probs)
    assert len(text) < 45_000
    assert (text == "") == (kept == 0)
    if kept:
        found = unpack(text, classes)
        np.testing.assert_allclose(found, probs[rows], atol=2e-3)
        np.testing.assert_allclose(found.sum(axis=1), 1)
