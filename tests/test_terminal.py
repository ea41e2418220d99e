"""What reaches a terminal is text, and what reaches a spreadsheet no formula."""

from __future__ import annotations

import io
import os
import stat
import sys
import threading
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biotune_optuna.cli.terminal import (
    PlainStream,
    one_line,
    show_text_only,
    terminal_of,
    visible,
)
from biotune_optuna.files import csv_cell, replace_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;cm0K\x07", r"\x1b]52;c;cm0K\x07"),
        ("\x1b[2J\x9b2J", r"\x1b[2J\x9b2J"),
        ("one\rtwo", r"one\rtwo"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("a\u200bb\ufeff\u200f\U000e0041", r"a\u200bb\ufeff\u200f\U000e0041"),  # takes no space
        ("می\u200cخواهم \U0001f469\u200d\U0001f33e", "می\u200cخواهم \U0001f469\u200d\U0001f33e"),
        ("plain\ttext\r\nand\nmore é 花 \U0001f600", "plain\ttext\r\nand\nmore é 花 \U0001f600"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    stream = io.StringIO(newline="")
    plain = PlainStream(stream)
    assert plain.write(text) == len(text)
    plain.writelines(["x", "\x1b"])
    assert stream.getvalue() == shown + r"x\x1b"
    assert terminal_of(plain) is stream  # type: ignore[arg-type]
    assert plain.closed is False


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_encoding_lets_escapes_past(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
    show_text_only()
    click.echo("\x1b]0;x\x07 \u82b1 \udcff")
    sys.stdout.flush()
    flower = "\u82b1" if encoding == "utf-8" else r"\u82b1"
    assert raw.getvalue().decode(encoding) == rf"\x1b]0;x\x07 {flower} \udcff" + "\n"


def test_a_name_shows_no_lines_of_its_own() -> None:
    assert one_line("a\nTrial 7\r\n\tx\x1b") == r"a\nTrial 7\r\n\tx\x1b"


@given(st.text())
def test_no_text_brings_an_escape(text: str) -> None:
    shown = visible(text)
    assert not {c for c in shown if ord(c) < 32 or 127 <= ord(c) < 160} - {"\n", "\t", "\r"}
    assert visible(shown) == shown


@pytest.mark.parametrize("cell", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-x", "\t=1", "\r=1"])
def test_formulas_are_taken_for_text(cell: str) -> None:
    assert csv_cell(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["cat", "-1", "+2.5e3", "a=b", "", "'x"])
def test_other_cells_stay(cell: str) -> None:
    assert csv_cell(cell) == cell


def test_pipes_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to("target")
    replace_text(link, "new\n")
    assert link.is_symlink()
    assert target.read_text() == "new\n"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="No such device"):  # nobody reads: said, not waited for
        replace_text(pipe, "text")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    for _ in range(1000):
        try:
            replace_text(pipe, "text\n")
            break
        except OSError:
            threading.Event().wait(0.01)
    reader.join(30)
    assert read == ["text\n"]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    replace_text(Path("/dev/null"), "text")
    assert stat.S_ISCHR(os.lstat("/dev/null").st_mode)
    with pytest.raises(OSError, match="directory"):
        replace_text(tmp_path, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "target"]
