"""Figures of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from biotune_optuna.compare.rows import BUDGET_SUFFIX
from biotune_optuna.page.style import BLACK, BLUE, GREY, ORANGE, finish, safe

if TYPE_CHECKING:
    from biotune_optuna.compare.statistics import Effect
    from biotune_optuna.compare.tables import Contrast, Entry, Task


def scores_figure(task: Task) -> go.Figure:
    """Mean test score of each method with its interval, and every repeat as a dot.

    Args:
        task: The task.
    """
    figure = go.Figure()
    entries = task.entries[::-1]
    names = [safe(entry.method) for entry in entries]
    figure.add_scatter(
        x=[row.score for row in task.rows],
        y=[safe(row.method) for row in task.rows],
        mode="markers",
        marker={"color": GREY, "size": 5, "opacity": 0.5},
        hovertemplate="%{y}: %{x:.4f}<extra></extra>",
        name="repeats",
    )
    figure.add_scatter(
        x=[entry.score.value for entry in entries],
        y=names,
        mode="markers",
        error_x=_bars([entry.score for entry in entries]),
        marker={"color": [_colour(e) for e in entries], "size": 10, "symbol": "diamond"},
        hovertemplate="%{y}: mean %{x:.4f}<extra></extra>",
        name="mean and 95 % interval",
    )
    figure.update_yaxes(categoryorder="array", categoryarray=names)
    figure.update_xaxes(title=f"test {task.rows[0].metric.replace('_', ' ')}")
    return finish(
        figure,
        f"{safe(task.name)}: test score by method",
        height=170 + 26 * len(names),
        legend=True,
    )


def cost_figure(task: Task) -> go.Figure:
    """Mean test score against image passes.

    Args:
        task: The task.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[entry.passes for entry in task.entries],
        y=[entry.score.value for entry in task.entries],
        mode="markers+text",
        text=[safe(entry.method) for entry in task.entries],
        textposition="top center",
        textfont={"size": 10.5},
        marker={"color": [_colour(e) for e in task.entries], "size": 9},
        hovertemplate="%{text}: %{y:.4f}, %{x:,.0f} image passes<extra></extra>",
    )
    ends = [math.log10(edge(1 + e.passes for e in task.entries)) for edge in (min, max)]
    figure.update_xaxes(
        type="log",
        dtick=1,  # a tick a power of ten
        title="image passes, forward and backward",
        range=[ends[0] - 0.2, ends[1] + 0.2],  # room for the names
    )
    figure.update_yaxes(title="test score")
    title = f"{safe(task.name)}: what a score costs, everything charged"
    return finish(figure, title, height=420, legend=False)


def contrasts_figure(contrasts: Sequence[Contrast]) -> go.Figure:
    """Paired differences with their intervals.

    Args:
        contrasts: What to draw, at least one that has a value.
    """
    shown = [c for c in contrasts if c.effect.n][::-1]
    words = [safe(f"{c.task}: {c.method} − {c.against}") for c in shown]
    figure = go.Figure()
    figure.add_vline(x=0, line={"color": BLACK, "width": 1})
    figure.add_scatter(
        x=[round(c.effect.value, 4) + 0.0 for c in shown],  # no minus before a zero
        y=words,
        mode="markers",
        error_x=_bars([c.effect for c in shown]),
        marker={"color": BLUE, "size": 9, "symbol": "diamond"},
        hovertemplate="%{y}: %{x:+.4f}<extra></extra>",
    )
    figure.update_xaxes(title="difference of test scores")
    return finish(figure, "Paired differences", height=150 + 26 * len(words), legend=False)


def _bars(effects: Sequence[Effect]) -> dict[str, object]:
    up = [_finite(e.high - e.value) for e in effects]
    down = [_finite(e.value - e.low) for e in effects]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.3}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _colour(entry: Entry) -> str:
    if entry.method == "biotune":
        return BLUE
    return ORANGE if entry.method.endswith(BUDGET_SUFFIX) else BLACK
