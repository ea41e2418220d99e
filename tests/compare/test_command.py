"""``biotune compare`` without training anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from biotune_optuna.cli import cli
from biotune_optuna.compare.plan import Comparison
from biotune_optuna.compare.rows import write_csv
from biotune_optuna.compare.run import CellProgress
from biotune_optuna.errors import DataError
from tests.kit.rows import make_rows


def test_a_report_from_the_table_alone(tmp_path: Path) -> None:
    table = write_csv(make_rows({"biotune": [0.9, 0.8], "full": [0.7, 0.7]}), tmp_path / "r.csv")
    arguments = ["compare", "--from", str(table), "--out", str(tmp_path / "out"), "--name", "mine"]
    ran = CliRunner().invoke(cli, arguments)
    assert ran.exit_code == 0, ran.output
    assert ran.output.strip() == str(tmp_path / "out" / "report.html")
    assert (tmp_path / "out" / "report.md").read_text().startswith("# mine\n")
    assert (tmp_path / "out" / "results.csv").read_bytes() == table.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a comparison needs --data and --model, or --from a results.csv"),
        (["--data", "digits", "--model", "m", "--methods", "full, prayer"], "'prayer' is not one"),
        (["--data", "digits", "--model", "m", "--methods", ","], "a comparison needs a method"),
        (
            ["--data", "digits", "--model", "m", "--name", ".."],
            "comparison name '..' is no folder name; give another --name",
        ),
        (["--from", "nothing.csv"], "'nothing.csv' cannot be read"),
        (
            ["--from", "r.csv", "--data", "digits", "--methods", "full", "--no-equal-budget"],
            "--from only writes the report of a table; leave out --data, --methods, "
            "--no-equal-budget",
        ),
    ],
)
def test_mistakes_take_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(cli, ["compare", *arguments])
    assert ran.exit_code == 2
    assert message in ran.output
    assert len(ran.output.strip().splitlines()) == 1


@pytest.mark.parametrize("begun", [True, False])
def test_what_fails_does_not_hide_what_is_done_and_what_is_refused_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, begun: bool
) -> None:
    def fails(
        plan: Comparison, *, tell: Callable[[CellProgress], None], **_options: object
    ) -> None:
        if begun:
            tell(CellProgress(plan.cells()[0], "begins", 0, 1))
        raise DataError("no images in 'flowers'")

    rows = make_rows({"biotune": [0.9, 0.8], "full": [0.7, 0.7]})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("biotune_optuna.compare.run_comparison", fails)
    monkeypatch.setattr("biotune_optuna.compare.read_rows", lambda *_: rows)
    line = ["compare", "--data", "digits", "--model", "m", "--methods", "full", "--json"]
    ran = CliRunner().invoke(cli, line)
    assert ran.exit_code == 2
    assert ran.stderr == "Error: no images in 'flowers'\n"
    said = [json.loads(line) for line in ran.stdout.splitlines()]
    if begun:
        assert (tmp_path / said[-1]["path"]).is_file()
    else:
        assert said == []
        assert list(tmp_path.glob("biotune-out/*/*")) == []


@pytest.mark.parametrize("source", ["--from", "--data"])
def test_a_folder_of_something_else_is_left_alone_before_anything_runs(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_args: object, **_options: object) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr("biotune_optuna.compare.run_comparison", never)
    table = write_csv(make_rows({"biotune": [0.9, 0.8], "full": [0.7, 0.7]}), tmp_path / "r.csv")
    work = ["--from", str(table)] if source == "--from" else ["--data", "digits", "--model", "m"]
    study = tmp_path / "study"
    study.mkdir()
    (study / "report.html").write_text("a study's")
    ran = CliRunner().invoke(cli, ["compare", *work, "--out", str(study)])
    assert (ran.exit_code, ran.stderr) == (
        2, f"Error: {study} holds the report of a study; give another --name or --out\n"
    )  # fmt: skip
    assert [(f.name, f.read_text()) for f in study.iterdir()] == [("report.html", "a study's")]
    ran = CliRunner().invoke(cli, ["compare", *work, "--out", str(table / "out")])
    assert ran.exit_code == 2
    assert f"output folder {table / 'out'} cannot be written" in ran.stderr
