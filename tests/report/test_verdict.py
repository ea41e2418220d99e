"""What the report says came out where the test cannot decide it."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from biotune_optuna.report.html import page
from biotune_optuna.report.status import format_status, study_status
from biotune_optuna.report.view import as_view
from biotune_optuna.report.words import Verdict, verdict


def untested(biotune: float, full: float, plateau: list[str], **more: Any) -> optuna.Study:
    """A study confirmed without a test part, BioTune's recipe chosen."""
    study = optuna.create_study(direction="maximize")
    record = {
        "metric": "accuracy",
        "winner": "trial 3",
        "candidates": [{"name": "trial 3", "method": "biotune", "scores": [biotune]}],
        "rivals": [{"name": "full", "method": "full", "scores": [full]}],
        "plateau": plateau,
        "tests": [],
        "paired": [],
        "n_test": 0,
        **more,
    }
    study.set_user_attr("confirm", record)
    return study


def found(study: optuna.Study) -> Verdict:
    return verdict(as_view(study))


@pytest.mark.parametrize(
    ("full", "plateau"),
    [(0.92, ["full", "trial 3"]), (0.90, ["full", "trial 3"]), (0.92, []), (0.91, [])],
)
def test_without_a_test_an_equal_rival_is_named(full: float, plateau: list[str]) -> None:
    said = found(untested(0.91, full, plateau))
    assert said.tone == "level"
    assert said.headline == (
        "BioTune's recipe was chosen, but validation cannot tell it from full fine-tuning."
    )


def test_without_a_test_a_win_is_one_on_validation() -> None:
    said = found(untested(0.91, 0.80, ["trial 3"]))
    assert said.tone == "won"
    assert said.headline == "BioTune's recipe won on validation; no test has been made."


def test_a_missing_test_part_is_said() -> None:
    study = untested(0.91, 0.80, ["trial 3"])
    study.set_user_attr("biotune", {"spec": {"model": "m", "data": "d"}})
    first = found(study).sentences[0]
    assert first == "It was confirmed on fresh seeds; no images were held out for a test."
    html = page(as_view(study))
    assert "No images were held out for a test." in html
    assert "has not been looked at yet" not in html


def test_a_search_that_went_on_is_not_said_to_be_confirmed() -> None:
    before = "BioTune's recipe won on validation; no test has been made."
    study = untested(0.91, 0.80, ["trial 3"], basis={"trials": 1})
    study.tell(study.ask(), 0.9)
    assert found(study).headline == before
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    assert found(study).headline == before
    study.tell(study.ask(), 0.95)
    said = (
        "Confirmed on 1 of 2 trials; run the same tune or demo command again to confirm the rest."
        f" {before}"
    )
    assert found(study).headline == said
    assert said in format_status(study_status(study))
    assert "Confirmed on 1 of 2 trials" in page(as_view(study))
    assert "confirmed in part ·" in page(as_view(study))
