"""What the best recipes share: freezing and rates per block."""

import math
from collections.abc import Sequence
from statistics import median

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from biotune_optuna.page.style import (
    BLACK,
    BLUE,
    GREY,
    LIGHT,
    RATE_TICKS,
    TOP,
    VERMILION,
    finish,
    shorten,
)
from biotune_optuna.report.figures import StudyFigure
from biotune_optuna.report.figures.shared import with_recipe
from biotune_optuna.report.view import StudyView


@StudyFigure(
    name="freeze-by-block",
    title="Frozen or trained, and how fast",
    caption="What the best recipes share. Left: how many of them freeze a block. Right: how fast"
    " they train it where they do; 1× is the base learning rate.",
    chapter="search",
    place=20,
    dashboard="2-freezing",
)
def freeze_by_block(view: StudyView) -> go.Figure:
    """How often the best trials freeze each block, and how fast they train it otherwise.

    The best are the best quarter (at least five trials, at most 100).
    """
    everyone = with_recipe(view)
    best = everyone[: min(100, max(5, len(everyone) // 4))]
    labels = [shorten(b) for b in view.blocks]
    rates = {b: [view.recipes[t.number][b] for t in best] for b in view.blocks}
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, column_widths=[0.42, 0.58], horizontal_spacing=0.06
    )
    counts = [sum(m <= 0 for m in rates[b]) for b in view.blocks]
    figure.add_bar(
        x=[c / len(best) for c in counts],
        y=labels,
        orientation="h",
        marker={"color": LIGHT, "line": {"color": GREY, "width": 1}, "pattern": {"shape": "/"}},
        marker_pattern_fgcolor=GREY,
        marker_pattern_size=5,
        text=[f"{c} of {len(best)}" for c in counts],
        textposition="outside",
        cliponaxis=False,
        textfont={"color": BLACK},
        showlegend=False,
        hovertemplate="%{y}: frozen in %{text}<extra></extra>",
        **TOP,
    )
    _add_rates(figure, view, rates, labels)
    figure.update_xaxes(
        title_text="frozen", range=[0, 1.4], tickformat=".0%", tickvals=[0, 0.5, 1], **TOP
    )
    figure.update_xaxes(
        title_text="rate × where trained",
        type="log",
        range=_rate_range([m for ms in rates.values() for m in ms]),
        tickvals=list(RATE_TICKS[::2]),
        ticktext=[f"{t:g}×" for t in RATE_TICKS[::2]],
        row=1,
        col=2,
    )
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1])
    part = "all" if len(best) == len(everyone) else f"the best {len(best)} of"
    title = f"Frozen or trained, and how fast: {part} {len(everyone):,} trials"
    return finish(figure, title, height=150 + 30 * max(4, len(labels)), legend=True)


def _add_rates(
    figure: go.Figure, view: StudyView, rates: dict[str, list[float]], labels: list[str]
) -> None:
    trained = [(x, m) for x, b in zip(labels, view.blocks, strict=True) for m in rates[b] if m > 0]
    figure.add_scatter(
        x=[m for _, m in trained],
        y=[x for x, _ in trained],
        mode="markers",
        marker={"color": BLUE, "size": 8, "opacity": 0.45},
        name="one trial",
        hovertemplate="%{y}: %{x:.2g}×<extra></extra>",
        row=1,
        col=2,
    )
    active = {b: [m for m in rates[b] if m > 0] for b in view.blocks}
    named = [(x, active[b]) for x, b in zip(labels, view.blocks, strict=True) if active[b]]
    figure.add_scatter(
        x=[10 ** median(math.log10(m) for m in ms) for _, ms in named],
        y=[x for x, _ in named],
        mode="markers",
        marker={"color": VERMILION, "symbol": "line-ns-open", "size": 18, "line": {"width": 3}},
        name="median",
        hovertemplate="%{y}: median %{x:.2g}×<extra></extra>",
        row=1,
        col=2,
    )


def _rate_range(multipliers: Sequence[float]) -> list[float]:
    """0.1 to 10, or wider where a variant of the genome goes beyond."""
    logs = [math.log10(m) for m in multipliers if m > 0]
    return [min([-1.0, *logs]) - 0.08, max([1.0, *logs]) + 0.08]
