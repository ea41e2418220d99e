"""What was tried and what the good ones share: rates and freezing per block."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from plotly.subplots import make_subplots

from biotune_optuna.page.style import (
    BLACK,
    BLUE,
    GREY,
    LIGHT,
    RATE_SCALE,
    VERMILION,
    finish,
    shorten,
)
from biotune_optuna.report.view import NothingToShow, StudyView, as_view

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go
    from optuna import Study
    from optuna.trial import FrozenTrial

__all__ = ["best_part", "freeze_by_block", "genome_heatmap", "with_recipe"]

MAX_COLUMNS = 100
_TICKS = (0.1, 0.3, 1.0, 3.0, 10.0)


def genome_heatmap(study: Study | StudyView, *, max_columns: int = MAX_COLUMNS) -> go.Figure:
    """Learning-rate multiplier of every block in every trial, the best trial on the left.

    Frozen blocks are hatched. The upper panel gives each column's value.

    Args:
        study: A study whose complete trials carry recipes.
        max_columns: Trials drawn at most, the best ones; the title says when there are more.

    Raises:
        NothingToShow: No complete trial carries a recipe.
    """
    view = as_view(study)
    all_trials = with_recipe(view)
    trials = all_trials[:max_columns]
    figure = make_subplots(
        rows=2, cols=1, row_heights=[0.24, 0.76], vertical_spacing=0.04, shared_xaxes=True
    )
    names = [f"trial {t.number}" for t in trials]
    positions = list(range(len(trials)))
    figure.add_scatter(
        x=positions,
        y=[t.value for t in trials],
        mode="lines+markers" if len(trials) < 60 else "lines",
        line={"color": BLUE, "width": 1.5},
        marker={"size": 5},
        showlegend=False,
        text=[f"{n}: {view.say(t.value)}" for n, t in zip(names, trials, strict=True)],
        hovertemplate="%{text}<extra></extra>",
        row=1,
        col=1,
    )
    _add_cells(figure, view, trials)
    figure.update_yaxes(tickformat=view.axis_format, nticks=4, row=1, col=1)
    _ticks(figure, trials)
    title = f"What was tried: {len(trials):,} recipes, best on the left"
    if len(trials) < len(all_trials):
        title = f"The best {len(trials):,} of {len(all_trials):,} recipes, best on the left"
    figure.add_annotation(
        text=view.metric_words,
        xref="x domain",
        yref="y domain",
        x=1,
        y=1,
        xanchor="right",
        yanchor="bottom",
        showarrow=False,
        font={"size": 11, "color": GREY},
    )
    height = 230 + 22 * max(6, len(view.blocks))
    return finish(figure, title, height=height, legend=True, bargap=0, barcornerradius=0)


def with_recipe(view: StudyView) -> list[FrozenTrial]:
    """Complete trials that say what they trained, best first.

    Args:
        view: The study read.

    Raises:
        NothingToShow: There are none.
    """
    found = [t for t in view.ranked if set(view.recipes.get(t.number, ())) == set(view.blocks)]
    if not found or not view.blocks:
        raise NothingToShow("No complete trial says which blocks it trained and how fast.")
    return found


def _add_cells(figure: go.Figure, view: StudyView, trials: list[FrozenTrial]) -> None:
    rows = [[view.recipes[t.number][block] for t in trials] for block in view.blocks]
    labels = [shorten(b) for b in view.blocks]
    figure.add_heatmap(
        z=[[round(math.log10(m), 4) if m > 0 else None for m in row] for row in rows],
        x=list(range(len(trials))),
        y=list(range(len(labels))),
        zmin=-1,
        zmax=1,
        colorscale=list(RATE_SCALE),
        xgap=0.5 if len(trials) < 60 else 0,
        ygap=1,
        colorbar={
            "title": {"text": "learning rate ×", "side": "right"},
            "tickvals": [math.log10(t) for t in _TICKS],
            "ticktext": [f"{t:g}×" for t in _TICKS],
            "thickness": 12,
            "len": 0.74,
            "y": 0,
            "yanchor": "bottom",
            "outlinewidth": 0,
        },
        text=[
            [f"{t.number}: {label} {m:.2g}×" for t, m in zip(trials, row, strict=True)]
            for label, row in zip(labels, rows, strict=True)
        ],
        hovertemplate="trial %{text}<extra></extra>",
        hoverongaps=False,
        row=2,
        col=1,
    )
    frozen = [(x, y) for y, row in enumerate(rows) for x, m in enumerate(row) if m <= 0]
    if frozen:
        figure.add_bar(
            x=[x for x, _ in frozen],
            y=[0.92] * len(frozen),
            base=[y - 0.46 for _, y in frozen],
            width=1,
            marker={
                "color": "white",
                "pattern": {"shape": "/", "fgcolor": GREY, "size": 5, "solidity": 0.25},
                "line": {"width": 0},
            },
            name="frozen",
            text=[f"{trials[x].number}: {labels[y]}" for x, y in frozen],
            textposition="none",
            hovertemplate="trial %{text} frozen<extra></extra>",
            row=2,
            col=1,
        )
    figure.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=labels,
        range=[len(labels) - 0.5, -0.5],
        showgrid=False,
        row=2,
        col=1,
    )


def _ticks(figure: go.Figure, trials: list[FrozenTrial]) -> None:
    step = max(1, math.ceil(len(trials) / 8))
    at = list(range(0, len(trials), step))
    figure.update_xaxes(range=[-0.6, len(trials) - 0.4], showgrid=False)
    figure.update_xaxes(
        title_text="trial number",
        tickvals=at,
        ticktext=[str(trials[i].number) for i in at],
        tickangle=0,
        row=2,
        col=1,
    )


def best_part(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the best quarter of the ranked trials, at least five of them, at most 100."""
    return list(trials[: min(100, max(5, len(trials) // 4))])


def freeze_by_block(study: Study | StudyView) -> go.Figure:
    """How often the best trials freeze each block, and how fast they train it otherwise.

    The best are the best quarter (at least five trials, at most 100).

    Args:
        study: A study whose complete trials carry recipes.

    Raises:
        NothingToShow: No complete trial carries a recipe.
    """
    view = as_view(study)
    everyone = with_recipe(view)
    best = best_part(everyone)
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
        row=1,
        col=1,
    )
    _add_rates(figure, view, rates, labels)
    figure.update_xaxes(
        title_text="frozen", range=[0, 1.4], tickformat=".0%", tickvals=[0, 0.5, 1], row=1, col=1
    )
    figure.update_xaxes(
        title_text="rate × where trained",
        type="log",
        range=_rate_range([m for ms in rates.values() for m in ms]),
        tickvals=list(_TICKS[::2]),
        ticktext=[f"{t:g}×" for t in _TICKS[::2]],
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
