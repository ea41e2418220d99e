"""optuna-dashboard on a real finished study: our columns, figures and artifacts."""

from __future__ import annotations

import json
import urllib.request
from typing import Any


def settle(page: Any) -> None:
    page.wait_for_load_state("load")
    page.wait_for_timeout(2500)


def study_of(address: str) -> dict[str, Any]:
    """The study as the page's own requests get it."""
    base, _, number = address.partition("/dashboard/studies/")
    with urllib.request.urlopen(f"{base}/api/studies/{number}", timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_the_first_page_shows_the_best_value_and_our_note(page: Any, dashboard: str) -> None:
    page.goto(dashboard)
    settle(page)
    assert "digits-e2e" in page.inner_text("body")
    page.goto(f"{dashboard}/note")
    settle(page)
    note = study_of(dashboard)["note"]["body"]
    assert note.splitlines()[0].removeprefix("## ") in page.inner_text("body")


def test_our_figures_are_drawn(page: Any, dashboard: str) -> None:
    page.goto(dashboard)
    settle(page)
    for graph in study_of(dashboard)["plotly_graph_objects"]:
        title = json.loads(graph["graph_object"])["layout"]["title"]["text"].split("<br>")[0]
        figure = page.wait_for_selector(f".js-plotly-plot:has-text({json.dumps(title[:20])})")
        assert figure.query_selector(".main-svg")
        card, drawn = figure.bounding_box(), figure.query_selector(".main-svg").bounding_box()
        assert drawn["height"] <= card["height"] + 1  # nothing is cut off


def test_the_table_has_our_columns(page: Any, dashboard: str) -> None:
    page.goto(f"{dashboard}/smartSelection")
    settle(page)
    text = page.inner_text("table")
    for column in ("generation", "role", "parents", "frozen", "trainable_pct", "seconds", "stderr"):
        assert f"UserAttribute {column}" in text, column
    assert "UserAttribute runs" not in text
    rows = [r.bounding_box()["height"] for r in page.query_selector_all("tbody tr")]
    assert max(rows) < 150


def test_the_best_trial_carries_its_artifacts(page: Any, dashboard: str) -> None:
    study = study_of(dashboard)
    best = study["best_trials"][0]
    names = {a["filename"] for a in best["artifacts"]}
    assert names >= {"curves.csv", "recipe.json", "confusion.png"}
    page.goto(f"{dashboard}/trials?numbers={best['number']}")
    settle(page)
    text = page.inner_text("body")
    assert "curves.csv" in text
    assert "confusion.png" in text
    images = page.query_selector_all("img[src*='/artifacts/']")
    assert any(i.evaluate("i => i.naturalWidth") > 100 for i in images)


def test_the_study_carries_the_model(dashboard: str) -> None:
    assert [a["filename"] for a in study_of(dashboard)["artifacts"]] == ["model.zip"]
