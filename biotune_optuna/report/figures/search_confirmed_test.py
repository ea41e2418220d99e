"""The three values of each contender side by side."""

import math

import plotly.graph_objects as go

from biotune_optuna.confirmation.record import Contender
from biotune_optuna.page.style import BLUE, GREEN, LIGHT, VERMILION, finish, shorten
from biotune_optuna.report.figures import StudyFigure
from biotune_optuna.report.figures.shared import check_confirmed
from biotune_optuna.report.view import StudyView
from biotune_optuna.report.words import label


@StudyFigure(
    name="search-confirmed-test",
    title="Search, confirmed and test",
    caption="A search value is too high for the recipe that was chosen by it. The confirmation"
    " trained again on fresh seeds. No choice used the test images. Whiskers: one standard error"
    " for search and confirmation, the 95 % interval for the test.",
    chapter="compare",
    place=10,
)
def search_confirmed_test(view: StudyView) -> go.Figure:
    """Search value, confirmed mean and test score of every contender, with their intervals.

    Whiskers are one standard error for search and confirmation, the stored interval for the test.
    """
    confirmation = check_confirmed(view)
    rows = confirmation.ranked[::-1]
    labels = [_row_label(one, confirmation.chosen) for one in rows]
    figure = go.Figure()
    tests = [confirmation.test(one.name) for one in rows]
    confirmed_by = [_pair(one.mean, one.stderr) for one in rows]
    searched = [_pair(one.search_value, one.search_stderr or 0.0) for one in rows]
    tested = [(t.score, t.score - t.low, t.high - t.score) if t else None for t in tests]
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
            text=[f"{rows[i].name}, {words}: {view.say(p[0])}" for i, p in known],
            hovertemplate="%{text}<extra></extra>",
        )
    for i in range(1, len(rows)):
        figure.add_hline(y=i - 0.5, line={"color": LIGHT, "width": 1})
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=labels,
        range=[-0.6, len(rows) - 0.4],
        showgrid=False,
    )
    figure.update_xaxes(title_text=view.metric_words, tickformat=view.axis_format)
    title = "Search, confirmed and test, side by side"
    return finish(figure, title, height=150 + 58 * max(2, len(rows)), legend=True)


def _row_label(one: Contender, winner: str) -> str:
    words = shorten(label(one.name, one.method), 30)
    return f"<b>{words}</b>" if one.name == winner else words


def _pair(value: float, error: float) -> tuple[float, float, float] | None:
    return (value, error, error) if math.isfinite(value) else None
