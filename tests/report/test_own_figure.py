"""A figure from outside: declared by a function or offered by a package, then shown everywhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
import pytest

from biotune_optuna.errors import StudyError
from biotune_optuna.report import figures
from biotune_optuna.report.dashboard.attach import refresh_study
from biotune_optuna.report.figures import NothingToShow, StudyFigure, all_figures
from biotune_optuna.report.html import page
from biotune_optuna.report.sections import CHAPTERS
from biotune_optuna.report.view import StudyView, as_view
from tests.kit.dashboard import detail

ABOUT: dict[str, Any] = {
    "name": "values",
    "title": "Which <values> came out",
    "caption": "One bar for each range.",
    "chapter": "search",
    "place": 15,
    "dashboard": "8-values",
}
MODULE = """
import plotly.graph_objects as go
from biotune_optuna.report.figures import StudyFigure

@StudyFigure(name="offered", title="T", caption="Offered by a package.", chapter="use", place=1)
def offered(view):
    return go.Figure(go.Bar(y=[len(view.trials)]))
"""


@pytest.fixture(autouse=True)
def _own_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test declares is forgotten after it."""
    all_figures()
    monkeypatch.setattr(figures, "_declared", dict(figures._declared))


def declare(**changes: Any) -> None:
    @StudyFigure(**ABOUT | changes)
    def values(view: StudyView) -> go.Figure:
        if not view.complete:
            raise NothingToShow("There are no values.")
        return go.Figure(go.Histogram(x=[trial.value for trial in view.complete]))


def test_it_stands_in_its_chapter_of_the_report(make_study: Any, confirmed_study: Any) -> None:
    declare()
    html = page(as_view(confirmed_study))
    places = [
        html.index(f'id="figure-{name}"')
        for name in ("search-history", "values", "freeze-by-block")
    ]
    assert places == sorted(places)
    assert "<h3>Which &lt;values&gt; came out</h3>" in html
    assert "One bar for each range." in html
    assert "There are no values." in page(as_view(make_study(0)))


def test_it_is_on_the_list_of_the_dashboard(study: optuna.Study, tmp_path: Path) -> None:
    declare()
    assert refresh_study(study)
    graphs = detail(study, tmp_path)["plotly_graph_objects"]
    shown = {graph["id"]: json.loads(graph["graph_object"]) for graph in graphs}["8-values"]
    assert shown["data"][0]["type"] == "histogram"
    assert shown["layout"]["title"]["text"] == "Which &lt;values&gt; came out"


def offer(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package that names its module of figures as an entry point."""
    (folder / "somebody.py").write_text(source)
    about = folder / "somebody-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[biotune_optuna.figures]\nmine = somebody\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "somebody", raising=False)
    figures._load.cache_clear()


def test_a_package_offers_one_by_an_entry_point(
    confirmed_study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, MODULE, monkeypatch)
    html = page(as_view(confirmed_study))
    assert 'id="figure-offered"' in html.partition('<section id="use">')[2]


def test_what_is_wrong_with_a_package_s_figure_is_told_and_costs_no_report(
    confirmed_study: optuna.Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    offer(tmp_path, MODULE.replace('"use"', '"usage"'), monkeypatch)
    html = page(as_view(confirmed_study))
    assert (
        "figures of 'mine' are left out: figure 'offered' stands in chapter 'usage'" in caplog.text
    )
    assert 'id="figure-lineage"' in html


def test_an_unknown_chapter_is_an_error() -> None:
    with pytest.raises(
        StudyError, match=r"'values' stands in chapter 'serch'.* give one of model, compare"
    ):
        declare(chapter="serch")


def test_a_name_that_is_taken_is_an_error() -> None:
    with pytest.raises(StudyError, match="there is a figure 'lineage' already"):
        declare(name="lineage")
    declare()
    declare()  # the same function once more, as in a notebook


def test_no_figure_is_without_a_place() -> None:
    """All of ours are drawn: each file of the folder declares one, in a chapter that there is."""
    folder = Path(figures.__file__).parent
    files = {path.stem.replace("_", "-") for path in folder.glob("*.py")} - {"--init--", "shared"}
    assert {figure.name for figure in all_figures()} == files
    assert [f.chapter for f in all_figures()] == sorted(
        (f.chapter for f in all_figures()), key=list(CHAPTERS).index
    )


def test_an_unknown_figure_is_an_error(plain_study: optuna.Study) -> None:
    with pytest.raises(
        StudyError, match=r"there is no figure 'histroy'; there are .*search-history"
    ):
        figures.draw("histroy", plain_study)
