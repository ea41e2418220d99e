"""What was tried: the rate of every block in every recipe."""

import math

import plotly.graph_objects as go
from optuna.trial import FrozenTrial
from plotly.subplots import make_subplots

from biotune_optuna.page.style import (
    BLACK,
    BLUE,
    GREY,
    RATE_SCALE,
    RATE_TICKS,
    TOP,
    finish,
    shorten,
)
from biotune_optuna.report.figures import StudyFigure
from biotune_optuna.report.figures.shared import with_recipe
from biotune_optuna.report.view import StudyView
from biotune_optuna.schema import TrialRecord

_BELOW = {"row": 2, "col": 1}
_LETTERS = {"norms": "n", "low-rank": "r"}


@StudyFigure(
    name="genome-heatmap",
    title="What was tried",
    caption="One column per recipe, one row per block from the input down to the classifier. Dark"
    " trains fast, light trains slowly, hatched is frozen. Where that is searched, n is a block of"
    " which only norms and biases train, r one whose weights change by a low rank.",
    chapter="search",
    place=30,
    dashboard="3-genomes",
    dashboard_limits={"max_columns": 40},
)
def genome_heatmap(view: StudyView, *, max_columns: int = 100) -> go.Figure:
    """Learning-rate multiplier of every block in every trial, the best trial on the left.

    Frozen blocks are hatched. The upper panel gives each column's value.

    Args:
        view: A study whose complete trials carry recipes.
        max_columns: Trials drawn at most, the best ones; the title says when there are more.
    """
    all_trials = with_recipe(view)
    trials = all_trials[:max_columns]
    figure = make_subplots(
        rows=2, cols=1, row_heights=[0.24, 0.76], vertical_spacing=0.04, shared_xaxes=True
    )
    figure.add_scatter(
        x=list(range(len(trials))),
        y=[t.value for t in trials],
        mode="lines+markers" if len(trials) < 60 else "lines",
        line={"color": BLUE, "width": 1.5},
        marker={"size": 5},
        showlegend=False,
        text=[f"trial {t.number}: {view.say(t.value)}" for t in trials],
        hovertemplate="%{text}<extra></extra>",
        **TOP,
    )
    _add_cells(figure, view, trials)
    figure.update_yaxes(tickformat=view.axis_format, nticks=4, **TOP)
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
            "tickvals": [math.log10(t) for t in RATE_TICKS],
            "ticktext": [f"{t:g}×" for t in RATE_TICKS],
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
        **_BELOW,
    )
    modes = [
        (x, y, _LETTERS[mode])
        for x, t in enumerate(trials)
        for y, block in enumerate(view.blocks)
        if (mode := TrialRecord(t).recipe.modes.get(block, "full")) in _LETTERS
    ]
    if modes:
        figure.add_scatter(
            x=[x for x, _, _ in modes],
            y=[y for _, y, _ in modes],
            text=[letter for _, _, letter in modes],
            mode="text",
            textfont={"size": 10, "color": BLACK},
            showlegend=False,
            hoverinfo="skip",
            **_BELOW,
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
            **_BELOW,
        )
    figure.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=labels,
        range=[len(labels) - 0.5, -0.5],
        showgrid=False,
        **_BELOW,
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
        **_BELOW,
    )
