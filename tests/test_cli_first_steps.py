"""What a newcomer mistypes, and what the command says then."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner

from biotune_optuna.cli import cli
from tests.kit.cli import fails


@pytest.mark.parametrize(
    ("typed", "meant"), [("tun", "tune"), ("stats", "status"), ("evalute", "evaluate")]
)
def test_a_mistyped_command_is_guessed(typed: str, meant: str) -> None:
    assert fails(typed) == f"there is no command {typed!r}; did you mean {meant}?"


def test_an_unknown_command_leads_to_the_list() -> None:
    assert fails("xyzzy") == "there is no command 'xyzzy'; biotune --help lists all"


@pytest.mark.parametrize("given", [(), ("--data", "x")])
def test_tune_without_options_shows_an_example(given: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, ["tune", *given], prog_name="biotune")
    assert done.exit_code == 2
    assert "is missing" in done.stderr
    assert "biotune tune --data flowers --model resnet50" in done.stderr


def test_a_time_needs_a_unit() -> None:
    said = fails("tune", "--data", "x", "--model", "m", "--timeout", "5")
    assert "'5' of what? Write 5s, 5m or 5h" in said


def test_studies_lists_what_a_database_holds(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    assert "does not exist; give --storage" in fails("studies", "--storage", url)
    for name in ("b", "a"):
        optuna.create_study(storage=url, study_name=name).optimize(lambda t: t.number, n_trials=2)
    optuna.create_study(storage=url, study_name="c", directions=["minimize", "maximize"])
    done = CliRunner().invoke(cli, ["studies", "--storage", url])
    assert done.exit_code == 0, done.output
    assert [line for line in done.stdout.splitlines() if line[0] != " "] == ["a", "b", "c"]
    assert "2 trials" in done.stdout
    told = json.loads(CliRunner().invoke(cli, ["studies", "--storage", url, "--json"]).stdout)
    assert [one["study"] for one in told] == ["a", "b", "c"]
    assert "several values" in told[2]["what"]
