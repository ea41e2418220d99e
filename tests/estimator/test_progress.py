"""`fit` speaks where somebody looks, and keeps to a time limit."""

from __future__ import annotations

import numpy as np
import pytest

from biotune_optuna.errors import StudyError
from biotune_optuna.schema import CLOCK_KEY
from tests.kit.estimator import tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(40) % 2


def test_a_bar_tells_search_and_confirmation_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("biotune_optuna.estimator.classifier.somebody_looks", lambda: True)
    classifier = tiny(confirm=True, time_limit=600, epochs=3).fit(IMAGES, LABELS)
    said = capsys.readouterr().err
    assert "search: " in said
    assert "confirmation: " in said
    assert " left, " in said
    stored = classifier.study_.user_attrs[CLOCK_KEY]
    assert stored["limit"] == 600
    assert stored["plan"]["trials"] <= 2
    assert len(classifier.study_.trials) <= 2
    assert classifier.confirmation_ is not None


@pytest.mark.parametrize("verbose", [0, 1])
def test_nothing_is_said_where_nobody_looks_or_with_0(
    verbose: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny(verbose=verbose).fit(IMAGES, LABELS)
    told = capsys.readouterr()
    assert told.out == ""
    assert "left" not in told.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"time_limit": 0}, "time_limit 0 is too short"),
        ({"time_limit": 5, "timeout": 5}, "time_limit is for everything"),
        ({"time_limit": 0.001}, "too short on this machine"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(given: dict[str, float], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        tiny(**given).fit(IMAGES, LABELS)
