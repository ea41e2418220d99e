"""The confirmation: confusion, mistakes, and the three values of each contender side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from biotune_optuna.page.style import (
    BLACK,
    BLUE,
    GREEN,
    SHARE_SCALE,
    VERMILION,
    finish,
    safe,
    shorten,
)
from biotune_optuna.page.text import label
from biotune_optuna.report.view import NothingToShow, StudyView, as_view

if TYPE_CHECKING:
    from optuna import Study

__all__ = ["confusion_matrix", "most_wrong", "search_confirmed_test"]

MAX_CLASSES = 30
MAX_MISTAKES = 24


def _confirmed(study: Study | StudyView) -> StudyView:
    view = as_view(study)
    if not view.confirm:
        raise NothingToShow("The winner has not been confirmed on test data yet.")
    return view


def search_confirmed_test(study: Study | StudyView) -> go.Figure:
    """Search value, confirmed mean and test score of every contender, with their intervals.

    Whiskers are one standard error for search and confirmation, the stored interval for the test.

    Args:
        study: A study with a confirmation.

    Raises:
        NothingToShow: There is no confirmation.
    """
    view = _confirmed(study)
    rows = view.contenders[::-1]
    winner = str(view.confirm.get("winner", ""))
    labels = [_row_label(c, winner) for c in rows]
    figure = go.Figure()
    tests = [view.tested(str(c["name"])) for c in rows]
    confirmed_by = [_pair(c.get("mean"), c.get("stderr")) for c in rows]
    searched = [_pair(c.get("search_value"), c.get("search_stderr")) for c in rows]
    tested = [
        (t["score"], t["score"] - t["low"], t["high"] - t["score"]) if t else None for t in tests
    ]
    for words, points, colour, symbol, shift in (
        ("search (optimistic)", searched, BLUE, "circle-open", 0.22),
        ("confirmed on fresh seeds", confirmed_by, GREEN, "diamond", 0.0),
        ("test", tested, VERMILION, "square", -0.22),
    ):
        known = [(i, p) for i, p in enumerate(points) if p is not None]
        if not known:
            continue
        figure.add_scatter(
            x=[p[0] for _, p in known],
            y=[i + shift for i, _ in known],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [p[2] for _, p in known],
                "arrayminus": [p[1] for _, p in known],
                "thickness": 1.6,
                "width": 4,
            },
            mode="markers",
            name=words,
            marker={"color": colour, "symbol": symbol, "size": 9, "line": {"width": 2}},
            text=[f"{rows[i]['name']}, {words}: {view.say(p[0])}" for i, p in known],
            hovertemplate="%{text}<extra></extra>",
        )
    for i in range(1, len(rows)):
        figure.add_hline(y=i - 0.5, line={"color": "#e4e7eb", "width": 1})
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=labels,
        range=[-0.6, len(rows) - 0.4],
        showgrid=False,
    )
    figure.update_xaxes(title_text=view.metric_words, tickformat=view.axis_format)
    title = "Search, confirmed and test, side by side"
    return finish(figure, title, height=150 + 58 * max(2, len(rows)), legend=True)


def _row_label(record: dict[str, Any], winner: str) -> str:
    words = shorten(label(record), 30)
    return f"<b>{words}</b>" if record.get("name") == winner else words


def _pair(value: object, error: object) -> tuple[float, float, float] | None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    whisker = float(error) if isinstance(error, (int, float)) and math.isfinite(error) else 0.0
    return float(value), whisker, whisker


def confusion_matrix(study: Study | StudyView) -> go.Figure:
    """Return the winner's confusion on the test data: counts, shaded by share of the true class.

    Beyond 30 classes a matrix cannot be read: the 25 most frequent confusions are listed instead.

    Args:
        study: A study with a confirmation.

    Raises:
        NothingToShow: There is no confirmation, or it holds no confusion matrix.
    """
    view = _confirmed(study)
    test = view.tested(str(view.confirm.get("winner", ""))) or {}
    counts = test.get("confusion")
    classes = [str(c) for c in view.confirm.get("classes", ())]
    if not counts or len(counts) != len(classes):
        raise NothingToShow("The test result holds no confusion matrix.")
    wrong = sum(n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j)
    total = sum(map(sum, counts))
    title = f"{total - wrong:,} of {total:,} test images right, {wrong:,} wrong"
    if len(classes) > MAX_CLASSES:
        return _frequent_confusions(counts, classes, title)
    shares = [[n / sum(row) if sum(row) else 0.0 for n in row] for row in counts]
    labels = [shorten(c, 16) for c in classes]
    ticks = list(range(len(classes)))
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=ticks,
            y=ticks,
            zmin=0,
            zmax=1,
            colorscale=list(SHARE_SCALE),
            xgap=1,
            ygap=1,
            showscale=False,
            text=[[str(n) if n else "" for n in row] for row in counts],
            texttemplate="%{text}" if len(classes) <= 20 else "",
            textfont={"size": 11},
            customdata=[
                [f"{t} taken for {p}" if t != p else f"{t} right" for p in labels] for t in labels
            ],
            hovertemplate="%{customdata}: %{text} (%{z:.0%})<extra></extra>",
        )
    )
    long = max(len(x) for x in labels) > 3
    figure.update_xaxes(
        title_text="predicted",
        tickvals=ticks,
        ticktext=labels,
        tickangle=-60 if long else 0,
        showgrid=False,
    )
    figure.update_yaxes(
        title_text="true", tickvals=ticks, ticktext=labels, autorange="reversed", showgrid=False
    )
    return finish(figure, title, height=200 + 26 * max(6, len(classes)), legend=False)


def _frequent_confusions(counts: list[list[int]], classes: list[str], title: str) -> go.Figure:
    pairs = [
        (n, f"{shorten(classes[i], 20)} → {shorten(classes[j], 20)}")
        for i, row in enumerate(counts)
        for j, n in enumerate(row)
        if i != j and n
    ]
    top = sorted(pairs, key=lambda pair: -pair[0])[:25]
    if not top:
        raise NothingToShow(f"{title}: there is no confusion to draw.")
    figure = go.Figure(
        go.Bar(
            x=[n for n, _ in top],
            y=[words for _, words in top],
            orientation="h",
            marker_color=VERMILION,
            hovertemplate="%{y}: %{x}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="test images", tickformat="d")
    figure.update_yaxes(autorange="reversed")
    title += f": the {len(top)} most frequent of {len(pairs):,} confusions"
    return finish(figure, title, height=120 + 24 * len(top), legend=False)


def most_wrong(study: Study | StudyView) -> go.Figure:
    """Return the test images most often wrong among the models tested, as thumbnails.

    Args:
        study: A study whose confirmation holds mistakes with thumbnails (PNG or JPEG data URIs).

    Raises:
        NothingToShow: There is no confirmation, no mistake, or no thumbnail.
    """
    shown = _with_thumbnail(_confirmed(study))[:MAX_MISTAKES]
    columns = min(4, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = go.Figure(
        go.Scatter(
            x=[i % columns + 0.5 for i in range(len(shown))],
            y=[i // columns + 0.45 for i in range(len(shown))],
            mode="markers",
            marker={"size": 60, "opacity": 0},
            text=[safe(m.get("id", "")) for m in shown],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    )
    for i, mistake in enumerate(shown):
        _add_thumbnail(figure, mistake, i % columns, i // columns)
    finish(figure, "Test images most often wrong", height=60 + 132 * lines, legend=False)
    figure.update_xaxes(range=[0, columns], visible=False, fixedrange=True)
    figure.update_yaxes(range=[lines, 0], visible=False, fixedrange=True)
    return figure


def _with_thumbnail(view: StudyView) -> list[dict[str, Any]]:
    mistakes = view.confirm.get("mistakes") or []
    if not mistakes:
        raise NothingToShow("No test image was recorded as a mistake.")
    kinds = ("data:image/png;", "data:image/jpeg;")
    shown = [dict(m) for m in mistakes if str(m.get("thumbnail", "")).startswith(kinds)]
    if not shown:
        raise NothingToShow("The recorded mistakes come without thumbnails.")
    return shown


def _add_thumbnail(figure: go.Figure, mistake: dict[str, Any], x: int, y: int) -> None:
    """One image in its cell, what it is and what was said below it."""
    figure.add_layout_image(
        source=mistake["thumbnail"],
        xref="x",
        yref="y",
        x=x + 0.5,
        y=y + 0.04,
        sizex=0.88,
        sizey=0.66,
        xanchor="center",
        yanchor="top",
        sizing="contain",
    )
    figure.add_annotation(
        x=x + 0.5,
        y=y + 0.72,
        xref="x",
        yref="y",
        yanchor="top",
        showarrow=False,
        text=_caption(mistake),
        font={"size": 11, "color": BLACK},
        align="center",
    )


def _caption(mistake: dict[str, Any]) -> str:
    sure = mistake.get("probability")
    how = f" ({sure:.0%})" if isinstance(sure, (int, float)) else ""
    said = shorten(mistake.get("predicted", "?"), 14)
    return f"{shorten(mistake.get('label', '?'), 14)}<br>said: <b>{said}</b>{how}"
