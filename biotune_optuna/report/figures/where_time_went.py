"""Where the time went, by kind of work."""

import plotly.graph_objects as go

from biotune_optuna.page.style import BLACK, BLUE, GREY, ORANGE, SKY, finish
from biotune_optuna.page.text import duration
from biotune_optuna.report.cost import time_spent
from biotune_optuna.report.figures import NothingToShow, StudyFigure
from biotune_optuna.report.view import StudyView


@StudyFigure(
    name="where-time-went",
    title="Where the time went",
    caption="Summed over all workers, so it can exceed the time on the clock.",
    chapter="cost",
    place=20,
)
def where_time_went(view: StudyView) -> go.Figure:
    """Time by kind of work, summed over all workers."""
    spent = time_spent(view)
    total = sum(spent.values())
    if total <= 0:
        raise NothingToShow("No trial has finished yet, so no time was spent.")
    colours = {
        "training, trial kept": BLUE,
        "confirmation": ORANGE,
        "trials that failed or were stopped": BLACK,
    }
    kinds = list(spent)
    unit, length = _unit(max(spent.values()))
    figure = go.Figure(
        go.Bar(
            x=[seconds / length for seconds in spent.values()],
            y=kinds,
            orientation="h",
            marker_color=[colours.get(k, SKY if k.startswith("training") else GREY) for k in kinds],
            text=[f"{duration(s)} ({s / total:.0%})" for s in spent.values()],
            textposition="auto",
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text=unit, nticks=8)
    figure.update_yaxes(autorange="reversed")
    title = f"Where {duration(total)} of computing went (all workers together)"
    return finish(figure, title, height=130 + 42 * len(kinds), legend=False)


def _unit(longest: float) -> tuple[str, float]:
    """Return the unit of the axis, and its seconds."""
    if longest < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if longest < 3 * 3600 else ("hours", 3600.0)
