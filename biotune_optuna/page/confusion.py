"""A table of what was taken for what, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from biotune_optuna.page.style import SHARE_SCALE, VERMILION, finish, shorten

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_CLASSES = 30


def draw_confusion(
    counts: Sequence[Sequence[int]], classes: Sequence[str], *, images: str = "test images"
) -> go.Figure | None:
    """Return counts shaded by share of the true class.

    Beyond 30 classes a matrix cannot be read: the 25 most frequent confusions are listed instead.

    Args:
        counts: One row a true class, one column a predicted one.
        classes: Names of the classes.
        images: What is counted.

    Returns:
        The figure; None where there are too many classes for a matrix and no confusion to list.
    """
    import plotly.graph_objects as go

    wrong = sum(n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j)
    total = sum(map(sum, counts))
    title = f"{total - wrong:,} of {total:,} {images} right, {wrong:,} wrong"
    if len(classes) > MAX_CLASSES:
        return _frequent_confusions(counts, classes, title, images)
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


def _frequent_confusions(
    counts: Sequence[Sequence[int]], classes: Sequence[str], title: str, images: str
) -> go.Figure | None:
    import plotly.graph_objects as go

    pairs = [
        (n, f"{shorten(classes[i], 20)} → {shorten(classes[j], 20)}")
        for i, row in enumerate(counts)
        for j, n in enumerate(row)
        if i != j and n
    ]
    top = sorted(pairs, key=lambda pair: -pair[0])[:25]
    if not top:
        return None
    figure = go.Figure(
        go.Bar(
            x=[n for n, _ in top],
            y=[words for _, words in top],
            orientation="h",
            marker_color=VERMILION,
            hovertemplate="%{y}: %{x}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text=images, tickformat="d")
    figure.update_yaxes(autorange="reversed")
    title += f": the {len(top)} most frequent of {len(pairs):,} confusions"
    return finish(figure, title, height=120 + 24 * len(top), legend=False)
