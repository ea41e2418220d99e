"""Learning curves of the best trials and of those stopped early."""

from collections import Counter
from itertools import cycle
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.page.style import GREY, PALETTE, finish
from biotune_optuna.report.figures import NothingToShow, StudyFigure
from biotune_optuna.report.view import StudyView

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


@StudyFigure(
    name="learning-curves",
    title="Learning curves",
    caption="Validation score after each epoch. Dotted grey: trials that were stopped because"
    " others were clearly ahead.",
    chapter="search",
    place=60,
    dashboard="7-learning-curves",
    dashboard_limits={"best": 3, "max_pruned": 6},
)
def learning_curves(view: StudyView, *, best: int = 4, max_pruned: int = 30) -> go.Figure:
    """Draw the validation score by epoch: the best trials, a line a run, and those stopped early.

    Args:
        view: A study whose trials report intermediate values.
        best: How many of the best trials are drawn.
        max_pruned: How many of the trials stopped early are drawn at most, the latest.
    """
    leaders = [t for t in view.ranked if t.intermediate_values][:best]
    pruned = [t for t in view.in_state(TrialState.PRUNED) if t.intermediate_values]
    if not leaders and not pruned:
        raise NothingToShow("No trial reported a score while it trained, so there are no curves.")
    figure = go.Figure()
    recent = pruned[-max_pruned:]
    shown = f"{len(recent)} of {len(pruned)}" if len(recent) < len(pruned) else str(len(pruned))
    dotted = {"color": GREY, "dash": "dot", "width": 1.2}
    _add(figure, view, recent, f"stopped early ({shown})", dotted)
    for trial, colour, dash in zip(leaders, cycle(PALETTE), cycle(_DASHES), strict=False):
        line = {"color": colour, "dash": dash, "width": 2.2}
        _add(figure, view, [trial], f"trial {trial.number}: {view.say(trial.value)}", line)
    unit = "epoch" if view.max_epochs else "reported step"
    figure.update_xaxes(title_text=unit, tickformat="d")
    if max(e for t in leaders + recent for run in view.curves(t) for e, _ in run) <= 15:
        figure.update_xaxes(dtick=1)
    figure.update_yaxes(title_text=f"validation {view.metric_words}", tickformat=view.axis_format)
    runs = Counter(len(view.curves(t)) for t in leaders).most_common(1)
    title = f"Learning curves of the best {len(leaders)} trials" if leaders else "Learning curves"
    if runs and runs[0][0] > 1:
        title += ", one line per run"
    return finish(figure, title, height=400, legend=True)


def _add(
    figure: go.Figure, view: StudyView, trials: list[FrozenTrial], name: str, line: dict[str, Any]
) -> None:
    runs = [run for trial in trials for run in view.curves(trial)]
    if runs:
        figure.add_scatter(
            x=[epoch for run in runs for epoch in (*(e for e, _ in run), None)],
            y=[score for run in runs for score in (*(s for _, s in run), None)],
            mode="lines+markers",
            name=name,
            line=line,
            marker={"size": 2 * line["width"] + 1},
            hovertemplate="%{x}: %{y}",
        )
