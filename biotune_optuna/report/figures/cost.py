"""What accuracy costs, and where the time went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from biotune_optuna.page.style import BLACK, BLUE, GREY, ORANGE, SKY, VERMILION, finish
from biotune_optuna.page.text import duration
from biotune_optuna.report.view import NothingToShow, StudyView, as_view, seconds
from biotune_optuna.schema import ENDED_KEY, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study

__all__ = ["accuracy_against_cost", "pareto_front", "time_spent", "where_time_went"]

MAX_POINTS = 1500


def accuracy_against_cost(study: Study | StudyView, *, max_points: int = MAX_POINTS) -> go.Figure:
    """Value against the share of trainable parameters and against seconds, with Pareto fronts.

    Args:
        study: A study whose complete trials say their cost. Seconds fall back on each trial's
            wall-clock time.
        max_points: Dominated trials drawn at most, evenly thinned; the front is always whole.

    Raises:
        NothingToShow: No trial is complete.
    """
    view = as_view(study)
    panels = []
    share = [(t, TrialRecord(t).trainable_pct) for t in view.complete]
    for words, pairs in (
        ("trainable parameters, %", share),
        ("seconds of training", [(t, seconds(t)) for t in view.complete]),
    ):
        known = [(t, float(c)) for t, c in pairs if isinstance(c, (int, float))]
        if known and max(c for _, c in known) > 0:
            panels.append((words, known))
    if not panels:
        raise NothingToShow("No complete trial says what it cost.")
    figure = make_subplots(rows=len(panels), cols=1, vertical_spacing=0.2)
    for row, (words, known) in enumerate(panels, 1):
        _add_panel(figure, view, known, row, max_points)
        wide = max(c for _, c in known) > 30 * min(c for _, c in known) > 0
        figure.update_xaxes(title_text=words, type="log" if wide else "linear", row=row, col=1)
        figure.update_yaxes(
            title_text=view.metric_words, tickformat=view.axis_format, row=row, col=1
        )
    return finish(figure, _headline(view, panels[0]), height=110 + 240 * len(panels), legend=True)


def _headline(view: StudyView, panel: tuple[str, list[tuple[FrozenTrial, float]]]) -> str:
    words, known = panel
    best, cost = min(known, key=lambda pair: view.sort_key(pair[0]))
    unit = f"{cost:.3g} % of the parameters" if words.startswith("trainable") else f"{cost:.3g} s"
    return f"Best {view.metric_words} against cost: {view.say(best.value)} with {unit}"


def pareto_front(
    view: StudyView, known: Sequence[tuple[FrozenTrial, float]]
) -> list[tuple[FrozenTrial, float]]:
    """Trials that no other beats at equal or lower cost, cheapest first.

    Args:
        view: The study read, for the direction.
        known: Pairs of complete trial and cost.
    """
    front: list[tuple[FrozenTrial, float]] = []
    for trial, cost in sorted(known, key=lambda pair: (pair[1], view.sort_key(pair[0]))):
        value = float(trial.value or 0.0)
        if not front or view.better(value, float(front[-1][0].value or 0.0)):
            front.append((trial, cost))
    return front


def _add_panel(
    figure: go.Figure,
    view: StudyView,
    known: list[tuple[FrozenTrial, float]],
    row: int,
    max_points: int,
) -> None:
    front = pareto_front(view, known)
    on_front = {t.number for t, _ in front}
    rest = [pair for pair in known if pair[0].number not in on_front]
    rest = rest[:: len(rest) // max_points + 1]
    if rest:
        figure.add_scatter(
            x=[c for _, c in rest],
            y=[t.value for t, _ in rest],
            mode="markers",
            name="dominated: better and cheaper exists",
            marker={"color": GREY, "size": 6, "opacity": 0.55},
            text=[f"trial {t.number}" for t, _ in rest],
            hovertemplate="%{text}: %{y}, cost %{x:.3g}<extra></extra>",
            showlegend=row == 1,
            legendgroup="rest",
            row=row,
            col=1,
        )
    figure.add_scatter(
        x=[c for _, c in front],
        y=[t.value for t, _ in front],
        mode="lines+markers",
        name="Pareto front",
        line={"shape": "hv", "color": VERMILION, "width": 2},
        marker={"color": VERMILION, "size": 10, "symbol": "diamond"},
        text=[f"trial {t.number}" for t, _ in front],
        hovertemplate="%{text}: %{y}, cost %{x:.3g}<extra></extra>",
        showlegend=row == 1,
        legendgroup="front",
        row=row,
        col=1,
    )


def time_spent(study: Study | StudyView) -> dict[str, float]:
    """Seconds per kind of work, summed over workers; kinds that took no time are absent.

    What a trial took whose worker died is not known, and not counted.

    Args:
        study: Any study with finished trials.
    """
    view = as_view(study)
    parts = dict.fromkeys(
        (
            "finding the range of rates",
            "training, trial kept",
            "training, trial stopped early",
            "trials that failed or were stopped",
            "around training (loading, writing)",
            "confirmation",
        ),
        0.0,
    )
    parts["finding the range of rates"] = float(view.rate_check.get("seconds", 0.0))
    for trial in view.trials:
        if not trial.state.is_finished():
            continue
        wall = trial.duration.total_seconds() if trial.duration is not None else 0.0
        if trial.system_attrs.get(ENDED_KEY) == "lost":
            wall = 0.0  # it ended when somebody noticed, which may be days after its worker died
        said = seconds(trial) or 0.0
        if trial.state == TrialState.FAIL:
            parts["trials that failed or were stopped"] += wall
        elif trial.state == TrialState.PRUNED:
            parts["training, trial stopped early"] += said
        else:
            parts["training, trial kept"] += said
        if trial.state != TrialState.FAIL:
            parts["around training (loading, writing)"] += max(0.0, wall - said)
    parts["confirmation"] = view.confirm_seconds
    return {kind: spent for kind, spent in parts.items() if spent > 0}


def where_time_went(study: Study | StudyView) -> go.Figure:
    """Time by kind of work, summed over all workers.

    Args:
        study: A study with finished trials.

    Raises:
        NothingToShow: No trial has finished.
    """
    spent = time_spent(study)
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
