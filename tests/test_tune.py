"""What `biotune tune` and `demo` say at the end: the outcome, and how to go on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from click.testing import CliRunner

from biotune_optuna.cli import cli
from biotune_optuna.cli.tune import Job, _say_result
from biotune_optuna.confirmation.record import Confirmation, Contender, TestResult
from biotune_optuna.finetune.statistics import PairedTest
from biotune_optuna.report.view import StudyView, as_view
from biotune_optuna.report.words import verdict
from biotune_optuna.schema import RecipeSummary
from biotune_optuna.study.setup import Setup
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
        "members": 5,
    }
    return Job(**(facts | more))


def confirmed(**more: Any) -> StudyView:
    """A study whose confirmation chose BioTune's recipe beside the linear probe."""
    rates = {"stem": 0.0, "head": 1.0}
    result = Confirmation(
        metric="accuracy",
        chosen="trial 0",
        why="trial 0 has the best mean on fresh seeds",
        candidates=(Contender(name="trial 0", method="biotune", scores=(0.5,), trial=0),),
        rivals=(
            Contender(
                name="linear-probe",
                method="linear-probe",
                recipe=RecipeSummary(1e-3, 0.0, rates),
                scores=(0.4,),
            ),
        ),
    )
    study = optuna.create_study(direction="maximize")
    dataclasses.replace(result, **more).store(study)
    return as_view(study)


def test_the_outcome_is_told_as_the_report_tells_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tests = (
        TestResult(name="linear-probe", method="linear-probe", score=0.25, low=0.1, high=0.5, n=4),
        TestResult(name="trial 0", method="biotune", score=0.5, low=0.25, high=0.75, n=4),
    )
    paired = {"linear-probe": PairedTest(0.25, -0.25, 0.5, 1.0)}
    view = confirmed(n_test=4, tests=tests, paired=paired)
    _say_result(view, Path("report.html"), Path("model"), job(tmp_path))
    said = capsys.readouterr().out
    assert [" ".join(line.split()) for line in said.splitlines() if line.startswith("  ")][:2] == [
        "BioTune, trial 0 50.0 % (25.0 to 75.0 %) <- chosen",
        "linear probe 25.0 % (10.0 to 50.0 %)",
    ]
    found = verdict(view)
    for sentence in (found.headline, *found.sentences):
        assert sentence.replace("\u00a0", " ") in said
    assert "the test cannot tell it from the linear probe" in found.headline
    assert "Report  report.html\nModel   model\n" in said


def test_without_a_test_part_no_number_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = confirmed(n_test=0, chosen="linear-probe")
    _say_result(view, Path("report.html"), Path("model"), job(tmp_path))
    said = capsys.readouterr().out
    assert "no images were held out for a test" in said
    assert "test images that the search never saw" not in said
    assert "Recipe: stem frozen; head at 1×; base rate 0.001." in said


@pytest.mark.parametrize(
    "command", [("demo", "--seed", "3"), ("tune", "--model", "m", "--data", "digits")]
)
def test_what_was_stopped_goes_on_with_the_same_command(
    command: tuple[str, ...], setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    study = SimpleNamespace(
        search=interrupted,
        setup=setup,
        spec=setup.spec,
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
    assert last["members"] == 5
    if last["winner"] == "linear-probe":  # which is fitted, and has one member
        assert not {"ensemble", "gain"} & last.keys()
    else:
        assert last["ensemble"]["name"] == last["winner"]
        assert last["gain"]["low"] <= last["gain"]["difference"] <= last["gain"]["high"]
    assert Path(last["report"]).is_file()
    assert (Path(last["model"]) / "model.safetensors").is_file()
