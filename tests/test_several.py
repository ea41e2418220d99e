"""`biotune tune` with several networks: one of them is left, confirmed, tested and exported."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner

from biotune_optuna.cli import cli
from biotune_optuna.report.view import as_view
from biotune_optuna.schema import CONFIRM_KEY, LOOKS_KEY
from tests.kit.cli import RATES, fails

SMALL = (
    *("--data", "digits", "--weights", "none", "--image-size", "32", "--train-size", "30"),
    *("--val-size", "20", "--test-fraction", "0.1", "--epochs", "1", "--members", "1", *RATES),
)
BOTH = ("--model", "test_efficientnet", "--model", "test_resnet")


def test_one_network_is_left_and_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIOTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("biotune_optuna.study.race.LEAST", 1)
    line = ["tune", *SMALL, *BOTH, "--study", "two", "--trials", "4", "--json"]
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 0, result.output
    events = [json.loads(text) for text in result.stdout.splitlines()]
    networks = {one["name"]: one for one in events if one["event"] == "network"}
    (left,) = [one for one in networks.values() if one["goes_on"]]
    (behind,) = [one for one in networks.values() if not one["goes_on"]]
    assert left["fresh"] >= behind["fresh"]
    assert events[-1]["event"] == "result"
    assert "Study two-test_resnet, until it has 1 trials, about " in result.stderr
    studies = {
        one.study_name: optuna.load_study(study_name=one.study_name, storage=one_storage())
        for one in one_storage().get_all_studies()
    }
    assert {"two-test_efficientnet", "two-test_resnet"} <= set(studies)
    winner, other = studies[left["study"]], studies[behind["study"]]
    assert (len(winner.trials), len(other.trials)) == (3, 1)
    assert CONFIRM_KEY in winner.user_attrs
    assert CONFIRM_KEY not in other.user_attrs
    assert LOOKS_KEY not in other.user_attrs, "the test was looked at for one network"
    view = as_view(winner)
    assert view.race.cost.forward == behind["forward"] > 0
    assert Path("biotune-out/two/model/model.safetensors").exists()
    report = Path("biotune-out/two/report.html").read_text()
    assert "2 networks were searched side by side" in report
    again = CliRunner().invoke(cli, line)
    assert again.exit_code == 0, again.output
    assert (len(winner.trials), len(other.trials)) == (3, 1), "nothing is done again"
    assert "confirm" not in {json.loads(text)["event"] for text in again.stdout.splitlines()}
    third = ["--model", "test_efficientnet", "--model", "test_vit"]
    other_networks = CliRunner().invoke(cli, ["tune", *SMALL, *third, "--study", "two"])
    assert other_networks.exit_code == 2
    assert "begun beside other networks: test_efficientnet, test_resnet" in other_networks.output


def one_storage() -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage("sqlite:///biotune.db")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--model", "resnet50", "--model", "resnet50"), "'resnet50' is named twice"),
        (("--model", "resnet50", "--model", "auto"), "chooses among networks itself"),
        (("--model", "resnet50", "--model", "resnet500"), "the nearest names are"),
        ((*BOTH, "--trials", "15"), "too few for 2 networks; give at least 16"),
        ((*BOTH, "--within", "5m"), "share a number of trials, not a time"),
        ((*BOTH, "--like", "other"), "recipes of one network"),
    ],
)
def test_what_does_not_go_side_by_side_is_said(
    more: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in fails("tune", *SMALL, *more)
    assert not Path("biotune.db").exists(), "nothing was begun"
