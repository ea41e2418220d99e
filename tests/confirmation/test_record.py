"""What a confirmation stores: as it was, whole, and small enough for any database."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import optuna
import pytest

from biotune_optuna.confirmation.record import (
    Confirmation,
    Contender,
    Ledger,
    Mistake,
    TestResult,
    Training,
    trainings,
)
from biotune_optuna.finetune.statistics import PairedTest
from biotune_optuna.schema import Cost, RecipeSummary

STORED: dict[str, Any] = json.loads("""{
  "basis": {"trials": 4, "top_k": 1, "n_runs": 2, "rates": [0.001, 0.01]},
  "metric": "macro_accuracy",
  "classes": ["cat", "dog"],
  "candidates": [{
    "name": "trial 3", "method": "biotune",
    "recipe": {"lr": 0.01, "weight_decay": 0.0, "multipliers": {"stem": 0.0, "head": 2.0}},
    "trial": 3, "search_value": 0.75, "search_stderr": 0.05, "grid": null,
    "scores": [0.5, 0.75], "best_epochs": [2, 3], "trainable_pct": 12.5,
    "forward": 400, "backward": 240, "seconds": 2.5,
    "describe": "stem frozen; head at 2×; base rate 0.01", "lr": 0.01,
    "mean": 0.625, "stderr": 0.125, "backward_cost": 120.0, "final_epochs": 3
  }],
  "rivals": [{
    "name": "full", "method": "full",
    "recipe": {"lr": 0.001, "weight_decay": 0.0, "multipliers": {"stem": 1.0, "head": 1.0}},
    "trial": null, "search_value": 0.5, "search_stderr": null,
    "grid": [{"lr": 0.001, "value": 0.5}, {"lr": 0.01, "value": 0.25}],
    "scores": [0.5, 0.5], "best_epochs": [4, 4], "trainable_pct": 100.0,
    "forward": 400, "backward": 240, "seconds": 3.5,
    "describe": "full fine-tuning; base rate 0.001", "lr": 0.001,
    "mean": 0.5, "stderr": 0.0, "backward_cost": 240.0, "final_epochs": 4
  }],
  "winner": "trial 3",
  "plateau": ["trial 3"],
  "why": "trial 3 has the best mean on fresh seeds, by more than one standard error",
  "time": "2026-01-05T09:10:00+00:00",
  "n_train": 60, "n_val": 40, "n_test": 4,
  "tests": [
    {"name": "full", "method": "full", "score": 0.5, "low": 0.25, "high": 0.75, "n": 4,
     "metrics": {"n": 4, "accuracy": 0.5, "recall": {"cat": 0.5, "dog": 0.5}}, "confusion": null},
    {"name": "trial 3", "method": "biotune", "score": 0.75, "low": 0.5, "high": 1.0, "n": 4,
     "metrics": {"n": 4, "accuracy": 0.75, "recall": {"cat": 1.0, "dog": 0.5}},
     "confusion": [[2, 0], [1, 1]]}
  ],
  "paired": [{"against": "full", "difference": 0.25, "low": 0.0, "high": 0.5, "p": 1.0}],
  "mistakes": [{"id": "dog/1.png", "label": "dog", "predicted": "cat", "probability": 0.9,
                "wrong": 2, "models": 2, "thumbnail": ""}],
  "final_training": {
    "full": {"forward": 400, "backward": 400, "seconds": 1.5},
    "trial 3": {"forward": 300, "backward": 300, "seconds": 1.0}
  },
  "seconds": 8.5
}""")
"""A confirmation as version 0.1 stored it."""


def test_a_stored_confirmation_is_read_and_written_as_it_was() -> None:
    found = Confirmation.from_dict(STORED)
    assert json.dumps(found.to_dict()) == json.dumps(STORED), "in the same order too"
    assert Confirmation.from_dict(found.to_dict()) == found
    assert found.winner == found.candidates[0] == found.contender("trial 3")
    assert found.winner.recipe == RecipeSummary(0.01, 0.0, {"stem": 0.0, "head": 2.0})
    assert found.rivals[0].grid == ({"lr": 0.001, "value": 0.5}, {"lr": 0.01, "value": 0.25})
    assert found.test("trial 3") == found.tests[1]
    assert found.test("linear-probe") is None
    assert found.tests[1].confusion == ((2, 0), (1, 1))
    assert found.paired == {"full": PairedTest(0.25, 0.0, 0.5, 1.0)}
    assert found.mistakes[0].predicted == "cat"
    assert found.final_training["full"] == Cost(forward=400, backward=400, seconds=1.5)


def test_without_a_test_nothing_is_said_of_final_trainings() -> None:
    untested = {**STORED, "tests": [], "paired": [], "mistakes": []}
    del untested["final_training"]
    assert Confirmation.from_dict(untested).to_dict() == untested


def test_what_is_absent_or_unknown_does_not_keep_a_record_from_opening() -> None:
    found = Confirmation.from_dict({"metric": "accuracy", "members": 4, "rivals": [{"name": "a"}]})
    assert (found.metric, found.rivals) == ("accuracy", (Contender(name="a"),))
    with pytest.raises(KeyError):
        _ = found.winner
    assert not found
    assert not Confirmation.of({})
    assert Confirmation.from_dict(STORED)


def test_a_training_reads_as_it_was_written() -> None:
    stored = {
        "key": ["0", "0.02", "0"],
        "score": 0.5,
        "best_epoch": 2,
        "trainable_pct": 12.5,
        "forward": 200,
        "backward": 120,
        "seconds": 1.25,
    }
    assert Training.from_dict(stored).to_dict() == stored
    kept = stored | {"probabilities": "AAA="}
    assert Training.from_dict(kept).to_dict() == kept


def test_a_result_too_long_for_a_row_loses_its_least_important_details() -> None:
    by_class = {f"class {i}": i / 7 for i in range(500)}
    metrics = {"accuracy": 0.5, "recall": by_class, "precision": by_class, "support": by_class}
    result = Confirmation(
        chosen="trial 1",
        tests=tuple(TestResult(name=name, metrics=metrics) for name in ("full", "trial 1")),
        mistakes=(Mistake(id="a.png", thumbnail="data:image/png;base64," + "A" * 2000),) * 2,
    )

    def stored(one: Confirmation) -> Confirmation:
        study = optuna.create_study()
        one.store(study)
        return Confirmation.of(study.user_attrs)

    alone = dataclasses.replace(result, tests=())
    assert stored(alone) == alone
    found = stored(result)
    assert found.tests == (
        TestResult(name="full", metrics={"accuracy": 0.5}),
        TestResult(name="trial 1", metrics=metrics),
    )
    assert found.mistakes == result.mistakes
    assert result.tests[0].metrics == metrics, "what is returned keeps everything"
    longer = {**metrics, "recall": by_class | {f"other {i}": i / 7 for i in range(3000)}}
    winner = TestResult(name="trial 1", metrics=longer)
    found = stored(dataclasses.replace(result, tests=(winner,)))
    assert found.mistakes == (Mistake(id="a.png"),) * 2
    assert found.tests == (TestResult(name="trial 1", metrics={"accuracy": 0.5}),)


def test_no_attribute_grows_with_the_number_of_trainings() -> None:
    study = optuna.create_study()
    old = {"full | seed 1": {"score": 0.5}, "full | seed 2": {"score": 0.6}}
    study.set_user_attr("confirm_trainings", old)
    record = Training(key=tuple(["0.123456789"] * 16), score=0.7)
    names = [f"trial {number} | seed {seed}" for number in range(70) for seed in range(3)]
    for name in (*names, "full | seed 2"):
        Ledger(study).add(name, record)
    first = {"full | seed 1": Training(score=0.5), "full | seed 2": record}
    assert trainings(study.user_attrs) == first | dict.fromkeys(names, record)
    assert max(len(json.dumps(value)) for value in study.user_attrs.values()) < 1000
    assert trainings({}) == {}


def test_a_ledger_without_a_study_keeps_trainings_in_memory() -> None:
    ledger = Ledger()
    ledger.add("full | seed 1", Training(score=0.5))
    assert ledger.read() == {"full | seed 1": Training(score=0.5)}
