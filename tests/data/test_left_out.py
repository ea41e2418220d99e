"""What of the data is not used, and that a study tells of it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest

from biotune_optuna.data.left_out import sentence, summary
from biotune_optuna.report.html import write_report
from biotune_optuna.report.status import format_status, study_status
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.setup import prepare
from biotune_optuna.study.study import study_of
from tests.kit.studies import tiny_spec

LINES = ["'cats/a.HEIC' is not an image", "image 'b.jpg' cannot be decoded: x", "'c.heic' is odd"]


def test_files_are_counted_by_their_ending() -> None:
    assert summary([]) == {}
    assert summary(LINES)["kinds"] == {".heic": 2, ".jpg": 1}
    said = "3 files were left out (2 .heic, 1 .jpg), first: 'cats/a.HEIC' is not an image"
    assert sentence(summary(LINES)) == said
    assert sentence(summary(['"it\'s.png" is odd'])).startswith("1 file was left out (1 .png)")


@pytest.mark.parametrize("odd", [{}, {"count": "many"}, {"count": 0}, {"count": 2, "kinds": [1]}])
def test_what_somebody_else_stored_does_no_harm(odd: dict[str, object]) -> None:
    assert sentence(odd) in {"", "2 files were left out"}


def test_status_and_report_of_a_study_tell_of_it(tmp_path: Path) -> None:
    setup = prepare(tiny_spec(), device="cpu")
    source = copy.copy(setup.source)
    source.skipped = tuple(LINES)
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    study = study_of(dataclasses.replace(setup, source=source), storage=storage, name="s").study
    assert "3 files were left out (2 .heic" in format_status(study_status(study))
    page = write_report(study, tmp_path / "report.html").read_text()
    assert "3 files were left out (2 .heic" in page
