"""What `biotune tune` and `demo` say at the end: the outcome, and how to go on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from click.testing import CliRunner

from biotune_optuna.cli import cli
from biotune_optuna.cli.tune import Job, _say_result
from biotune_optuna.study.spec import StudySpec
from tests.kit.cli import RATES


def job(tmp_path: Path, **more: Any) -> Job:
    facts: dict[str, Any] = {
        "spec": StudySpec(model="m", data="d"),
        "storage": None,
        "name": "mine",
        "trials": 1,
        "timeout": None,
        "device": "cpu",
        "out": tmp_path / "out",
        "display": None,
    }
    return Job(**(facts | more))


def outcome(own: float, rival: float) -> dict[str, Any]:
    """A confirmation whose winner is BioTune's, tested beside the linear probe."""
    interval = {"low": 0.1, "high": 0.9}
    return {
        "metric": "accuracy",
        "winner": "trial 0",
        "why": "trial 0 has the best mean on fresh seeds",
        "n_test": 3,
        "candidates": [{"name": "trial 0", "describe": "head at 1×", "mean": 0.5, "trial": 0}],
        "rivals": [{"name": "linear-probe", "describe": "head at 1×", "mean": 0.4}],
        "tests": [
            {"name": "linear-probe", "score": rival, **interval},
            {"name": "trial 0", "score": own, **interval},
        ],
        "paired": [],
    }


@pytest.mark.parametrize(
    ("own", "rival", "told"), [(1 / 3, 1 / 3, False), (1 / 3, 2 / 3, True), (2 / 3, 1 / 3, False)]
)
def test_only_a_better_rival_came_out_ahead(
    own: float, rival: float, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _say_result(outcome(own, rival), Path("report.html"), Path("model"), job(tmp_path))
    words = "On the test the rival linear-probe came out ahead of the chosen recipe."
    assert (words in capsys.readouterr().out) is told


@pytest.mark.parametrize(
    "command", [("demo", "--seed", "3"), ("tune", "--model", "m", "--data", "digits")]
)
def test_what_was_stopped_goes_on_with_the_same_command(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    study = SimpleNamespace(
        search=interrupted,
        setup=SimpleNamespace(classes=()),
        study=optuna.create_study(),
    )
    monkeypatch.setattr("biotune_optuna.study.study.create_study", lambda *_a, **_o: study)
    monkeypatch.setattr("biotune_optuna.confirmation.winner.check_export", lambda *_a: None)
    result = CliRunner().invoke(cli, [*command, "--out", str(tmp_path), "--plain"])
    assert result.exit_code == 130, result.output
    assert result.stderr.splitlines()[-1] == (
        "Stopped; everything finished is kept. The same command goes on."
    )


def test_json_ends_with_the_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIOTUNE_CACHE", str(tmp_path / "cache"))
    small = ("--train-size", "30", "--val-size", "20", "--test-fraction", "0.1", "--epochs", "1")
    model = ("--model", "test_efficientnet", "--weights", "none", "--image-size", "32")
    line = ["tune", "--data", "digits", *model, *small, *RATES, "--trials", "1", "--json"]
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 0, result.output
    *before, last = map(json.loads, result.stdout.splitlines())
    assert "result" not in {event["event"] for event in before}
    assert last["event"] == "result"
    assert last["time"] >= before[-1]["time"]
    assert last["winner"] in last["why"]
    assert {test["name"] for test in last["tests"]} == {"trial 0", "full", "linear-probe"}
    assert len(last["paired"]) == 2
    assert Path(last["report"]).is_file()
    assert (Path(last["model"]) / "model.safetensors").is_file()
