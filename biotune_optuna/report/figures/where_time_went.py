"""Where the time went, by kind of work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from biotune_optuna.page.style import BLACK, BLUE, GREY, ORANGE, SKY, finish
from biotune_optuna.page.text import duration
from biotune_optuna.report.cost import time_spent
from biotune_optuna.report.figures import NothingToShow, StudyFigure

if TYPE_CHECKING:
    from biotune_optuna.report.view import StudyView


@StudyFigure(
    name="where-time-went",
    title="Where the time went",
    caption="Summed over all workers, so it can exceed the time on the clock.",
    chapter="cost",
    place=20,
)
def where_time_went(view: StudyView) -> go.Figure:
    """Time by kind of work, summed over all workers.

    Args:
        view: A study with finished trials.

    Raises:
        NothingToShow: No trial has finished.
    """
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
    figure = go.Figure(
        go.Bar(
            x=list(spent.values()),
            y=kinds,
            orientation="h",
            marker_color=[colours.get(k, SKY if k.startswith("training") else GREY) for k in kinds],
            text=[f"{duration(s)} ({s / total:.0%})" for s in spent.values()],
            textposition="auto",
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )
    unit, length = _unit(max(spent.values()))
    step = _round_step(max(spent.values()) / length / 5)
    ticks = [i * step for i in range(int(max(spent.values()) / length / step) + 2)]
    figure.update_xaxes(
        title_text=unit,
        tickvals=[t * length for t in ticks],
        ticktext=[f"{t:g}" for t in ticks],
        range=[0, 1.05 * max(spent.values())],
    )
    figure.update_yaxes(autorange="reversed")
    title = f"Where {duration(total)} of computing went (all workers together)"
    return finish(figure, title, height=130 + 42 * len(kinds), legend=False)


def _round_step(step: float) -> float:
    power = 1.0
    while power > step:
        power /= 10
    while power * 10 <= step:
        power *= 10
    return next(power * k for k in (1, 2, 5, 10) if power * k >= step)


def _unit(longest: float) -> tuple[str, float]:
    if longest < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if longest < 3 * 3600 else ("hours", 3600.0)
