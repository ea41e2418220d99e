"""The pages: complete, self-contained, and safe with any name."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from biotune_optuna.compare.pages import write_comparison
from biotune_optuna.compare.plan import Comparison
from biotune_optuna.compare.rows import read_csv
from biotune_optuna.errors import StudyError
from biotune_optuna.study.spec import StudySpec
from tests.kit.rows import make_row, make_rows

SCORES = {
    "biotune": [0.81, 0.84, 0.9],
    "full": [0.8, 0.82, 0.81],
    "linear-probe": [0.5, 0.5, 0.6],
    "full@budget": [0.8, 0.83, 0.85],
}


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)


def test_a_page_says_it_all_and_needs_nothing(tmp_path: Path) -> None:
    path = write_comparison(make_rows(SCORES), tmp_path / "out", title="Both")
    html = path.read_text()
    assert not re.search(r"<script[^>]+src|<(link|img)[^>]+http|@import", html)
    for text in ("Nadeau and Bengio", "The same total budget", "full@budget", "0.8500"):
        assert text in html
    body = html.partition("<script>")[0]
    assert body.count("<table") == 4
    figures = re.findall(r'<script type="application/json" id="[^"]+">(.*?)</script>', html)
    assert [json.loads(figure)["layout"]["height"] > 0 for figure in figures] == [True] * 3
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "| biotune | 3 | 0.8500 |" in markdown
    assert "digits-tiny: biotune − full" in markdown
    assert "Mean ranks" not in markdown, "one task has no mean rank"


def test_several_members_stand_beside_the_first(tmp_path: Path) -> None:
    rows = [
        row
        for method, scores in SCORES.items()
        for row in make_rows({method: scores}, members=5, together=scores[0] + 0.05)
    ]
    write_comparison(rows, tmp_path)
    markdown = (tmp_path / "report.md").read_text()
    assert "all members" in markdown
    assert re.search(r"\| biotune \| 3 \| 0\.8500 \| [^|]+ \| 0\.8600 \|", markdown)
    assert read_csv(tmp_path / "results.csv")[0].members == 5
    write_comparison(make_rows(SCORES), tmp_path)
    assert "all members" not in (tmp_path / "report.md").read_text()


def test_rendering_from_the_table_alone_gives_the_same(tmp_path: Path) -> None:
    rows = [*make_rows(SCORES), *make_rows(SCORES, task="other", official=1)]
    write_comparison(rows, tmp_path / "a")
    write_comparison(read_csv(tmp_path / "a" / "results.csv"), tmp_path / "b")
    for name in ("report.md", "results.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    text = (tmp_path / "a" / "report.md").read_text()
    assert "Wilcoxon" in text
    assert "Descriptive: ranks of a few tasks carry no test" in text


def test_what_has_not_finished_is_said(tmp_path: Path) -> None:
    rows = [*make_rows(SCORES, task="a"), *make_rows(SCORES, task="b")]
    rows = [r for r in rows if r.method != "full" or (r.task, r.repeat) == ("b", 0)]
    write_comparison(rows, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Holm's over 4 comparisons: each task's with full and linear-probe, named" in text
    assert "| a: biotune − full | – | – | 0 | – | – |" in text
    assert text.count("have not run in all repeats yet") == 1
    assert "| full | 1 | 0.8000 |" in text
    ranks = text.partition("## Mean ranks")[2]
    assert "biotune" in ranks
    assert "full" not in ranks, "one repeat of three is not ranked among full means"


def test_what_was_asked_counts_before_it_has_a_result(tmp_path: Path) -> None:
    tasks = tuple(StudySpec(model="tiny", data=name) for name in ("digits", "other"))
    plan = Comparison(tasks=tasks, contenders=("biotune", "full", "linear-probe"))
    rows = [row for row in make_rows(SCORES) if row.method in ("biotune", "full")]
    write_comparison(rows, tmp_path, plan=plan)
    text = (tmp_path / "report.md").read_text()
    assert "Holm's over 4 comparisons" in text
    for contrast in ("digits-tiny: biotune − linear-probe", "other-tiny: biotune − full"):
        assert f"| {contrast} | – | – | 0 | – | – |" in text
    write_comparison(rows, tmp_path)
    assert (
        "Holm's over 1 comparisons: each task's with full, named"
        in (tmp_path / "report.md").read_text()
    )


def test_ablations_are_known_by_their_names(tmp_path: Path) -> None:
    scores = {"biotune": [0.8, 0.9], "rates only": [0.7, 0.7], "twice the trials": [0.8, 0.8]}
    write_comparison(make_rows(scores), tmp_path / "a")
    text = (tmp_path / "a" / "report.md").read_text()
    assert "digits-tiny: rates only − biotune |" in text
    assert "Holm's over 2 comparisons: all of them" in text


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>|**x**"
    names = {"task": evil, "data": evil, "model": "<img src=x>"}
    rows = make_rows(SCORES, **names)
    rows += [make_row(f"<b>{evil}", r, 0.5, **names) for r in range(3)]
    html = write_comparison(rows, tmp_path, title=evil).read_text()
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    before = html.partition("<script>")[0]
    parser = Tags()
    parser.feed(before)
    assert not {"img", "b"} & set(parser.seen)
    for line in (tmp_path / "report.md").read_text().splitlines():
        assert not re.search(r"(?<!\\)<", line), line
        if line.startswith("| ") and "alert" in line and " to " in line:
            assert len(re.findall(r"(?<!\\)\|", line)) in (7, 8, 5)


def test_nothing_yet_is_said(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no finished cell"):
        write_comparison([], tmp_path)
