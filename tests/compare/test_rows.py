"""The raw table: what is written is what is read."""

from __future__ import annotations

import dataclasses
from math import nan
from pathlib import Path

import pytest

from biotune_optuna.compare.rows import read_csv, write_csv
from biotune_optuna.errors import DataError, StudyError
from tests.kit.rows import make_row, make_rows


def test_round_trip(tmp_path: Path) -> None:
    rows = [
        make_row("full", 1, 0.1 + 0.2, setting='stem at 0.3×, "head, at" 6×\nand so on'),
        make_row("biotune", 0, 1 / 3, task="=1+1,x", validation=float("nan")),
        make_row("biotune", 1, 0.5),
    ]
    path = write_csv(rows, tmp_path / "results.csv")
    again = read_csv(path)
    assert again[0].task == "=1+1,x"
    assert again[0].validation != again[0].validation
    assert [repr(r) for r in again] == [repr(rows[1]), repr(rows[2]), repr(rows[0])]
    assert write_csv(again[::-1], tmp_path / "b.csv").read_bytes() == path.read_bytes()
    assert path.read_text().count("\n") <= len(rows) + 2, "one line a cell"


def test_several_members_have_columns_of_their_own(tmp_path: Path) -> None:
    single = write_csv(make_rows({"full": [0.5]}), tmp_path / "single.csv")
    assert "members" not in single.read_text()
    assert read_csv(single)[0].members == 1
    rows = make_rows({"full": [0.5, 0.6]}, members=5, together=0.625)
    path = write_csv(rows, tmp_path / "several.csv")
    assert read_csv(path) == rows
    assert rows[0].to_dict()["together"] == 0.625
    assert not {"members", "together"} & make_row("full", 0, 0.5).to_dict().keys()
    assert rows[0].delivered == 0.625
    assert make_row("full", 0, 0.5).delivered == 0.5


def test_cross_entropy_is_told_where_it_was_kept(tmp_path: Path) -> None:
    old = make_row("full", 0, 0.5)
    new = make_row("biotune", 0, 0.5, cross_entropy=1.25)
    assert "cross_entropy" not in write_csv([old], tmp_path / "old.csv").read_text()
    again = read_csv(write_csv([old, new], tmp_path / "new.csv"))
    assert [row.delivered_cross_entropy for row in again] == [1.25, pytest.approx(nan, nan_ok=True)]
    assert "cross_entropy" not in old.to_dict()
    assert new.to_dict()["cross_entropy"] == 1.25


def test_derived_figures() -> None:
    row = make_row("full", 0, 0.5)
    assert row.passes == 5000
    assert row.ratio == 40 / 80
    assert dataclasses.replace(row, pool=400).ratio == 0.1  # most of it was not drawn


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("method", "x", 1), "lack the column 'method'"),
        (lambda text: text.replace(",3000,", ",many,", 1), "line 2: forward 'many' is no number"),
        (lambda text: text.replace("0.5", "nan"), "line 2: score nan must be a finite number"),
        (lambda text: text.replace("12.5", "inf"), "line 2: seconds inf must be a finite number"),
        (lambda text: text.replace(",80,", ",0,"), "line 2: pool 0 must be at least 1"),
        (lambda text: text.replace(",3000,", ",-3,"), "line 2: forward -3 must be at least 0"),
        (lambda text: text + text.splitlines()[1], "line 3: full in repeat 0 of .* is on line 2"),
        (lambda text: text[: text.rindex(",12.5")], "line 2: seconds None is no number"),
    ],
)
def test_what_is_wrong_is_named(change, message: str, tmp_path: Path) -> None:
    path = write_csv(make_rows({"full": [0.5]}), tmp_path / "results.csv")
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        read_csv(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_csv(tmp_path / "nothing.csv")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StudyError, match="cannot be written"):
        write_csv([], tmp_path / "file" / "results.csv")


def test_a_table_that_excel_has_saved_is_read(tmp_path: Path) -> None:
    path = write_csv(make_rows({"full": [0.5]}), tmp_path / "results.csv")
    rows = read_csv(path)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_csv(path) == rows
