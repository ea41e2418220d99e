"""The test images most often wrong."""

import math

import plotly.graph_objects as go

from biotune_optuna.confirmation.record import Mistake
from biotune_optuna.page.style import BLACK, finish, safe, shorten
from biotune_optuna.report.figures import NothingToShow, StudyFigure
from biotune_optuna.report.figures.shared import check_confirmed
from biotune_optuna.report.view import StudyView

MAX_MISTAKES = 24


@StudyFigure(
    name="most-wrong",
    title="Test images most often wrong",
    caption="What the image is labelled, and what the model said with which probability. Wrong"
    " labels often turn up here.",
    chapter="errors",
    place=20,
)
def most_wrong(view: StudyView) -> go.Figure:
    """Return the test images most often wrong among the models tested, as thumbnails."""
    shown = _with_thumbnail(view)[:MAX_MISTAKES]
    columns = min(4, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = go.Figure(
        go.Scatter(
            x=[i % columns + 0.5 for i in range(len(shown))],
            y=[i // columns + 0.45 for i in range(len(shown))],
            mode="markers",
            marker={"size": 60, "opacity": 0},
            text=[safe(m.id) for m in shown],
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


def _with_thumbnail(view: StudyView) -> list[Mistake]:
    mistakes = check_confirmed(view).mistakes
    if not mistakes:
        raise NothingToShow("No test image was recorded as a mistake.")
    kinds = ("data:image/png;", "data:image/jpeg;")
    shown = [mistake for mistake in mistakes if mistake.thumbnail.startswith(kinds)]
    if not shown:
        raise NothingToShow("The recorded mistakes come without thumbnails.")
    return shown


def _add_thumbnail(figure: go.Figure, mistake: Mistake, x: int, y: int) -> None:
    """One image in its cell, what it is and what was said below it."""
    figure.add_layout_image(
        source=mistake.thumbnail,
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


def _caption(mistake: Mistake) -> str:
    sure = mistake.probability
    how = f" ({sure:.0%})" if math.isfinite(sure) else ""
    said = shorten(mistake.predicted, 14)
    return f"{shorten(mistake.label, 14)}<br>said: <b>{said}</b>{how}"
