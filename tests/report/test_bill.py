"""The bill: every part once, and what tuned full fine-tuning alone would have taken."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from biotune_optuna.report.bill import ALONE, bill, bill_words
from biotune_optuna.report.status import format_status, study_status
from biotune_optuna.report.view import as_view
from biotune_optuna.schema import LEDGER_PREFIX


def training(forward: int, backward: int, seconds: float) -> dict[str, Any]:
    return {"forward": forward, "backward": backward, "seconds": seconds}


@pytest.fixture
def study() -> optuna.Study:
    """Two trials, five trainings of a confirmation, and a model of three members."""
    found = optuna.create_study(direction="maximize")
    for seconds in (10.0, 20.0):
        found.add_trial(optuna.trial.create_trial(value=0.5, user_attrs=training(100, 50, seconds)))
    full = training(400, 400, 40.0) | {"name": "full", "method": "full", "scores": [0.5, 0.6]}
    best = training(300, 100, 20.0) | {"name": "trial 0", "method": "biotune", "scores": [0.7, 0.7]}
    for number in range(5):
        found.set_user_attr(f"{LEDGER_PREFIX}{number}", training(200, 200, 20.0))
    found.set_user_attr(
        "confirm",
        {
            "winner": "trial 0",
            "candidates": [best | {"trial": 0}],
            "rivals": [full],
            "members": 3,
            "tests": [],
            "final_training": {
                "full": training(250, 250, 30.0),
                "trial 0": training(600, 300, 45.0),
            },
        },
    )
    return found


def test_every_part_is_charged_once(study: optuna.Study) -> None:
    view = as_view(study)
    lines = {line.part: (line.passes, line.seconds) for line in bill(view)}
    assert lines == {
        "search": (300, 30.0),
        "confirmation": (2000, 100.0),
        "final trainings": (1400, 75.0),
        "all": (3700, 205.0),
        ALONE: (7 * 400 + 3 * 500, 7 * 20.0 + 3 * 30.0),
    }
    assert lines["all"][0] == sum(view.passes)


def test_a_winner_s_final_trainings_are_all_its_members(study: optuna.Study) -> None:
    confirmed = study.user_attrs["confirm"] | {"winner": "full"}
    study.set_user_attr("confirm", confirmed)
    assert bill(as_view(study))[-1].passes == 7 * 400 + 500


def test_the_bill_in_words(study: optuna.Study) -> None:
    words = bill_words(bill(as_view(study)))
    assert [line.split()[0] for line in words] == [
        "search",
        "confirmation",
        "final",
        "all",
        "tuned",
    ]
    assert words[3].split() == ["all", "3,700", "image", "passes", "3", "min", "25", "s"]
    assert "about" in words[-1]
    assert max(map(len, words)) + len("cost        ") <= 80
    status = study_status(study)
    assert status["bill"][0] == {"part": "search", "passes": 300, "seconds": 30.0}
    assert words[0] in format_status(status)


def test_before_a_confirmation_there_is_one_line_at_most() -> None:
    study = optuna.create_study()
    assert bill(as_view(study)) == []
    assert bill_words([]) == []
    study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs=training(100, 50, 1.0)))
    assert [line.part for line in bill(as_view(study))] == ["search"]
