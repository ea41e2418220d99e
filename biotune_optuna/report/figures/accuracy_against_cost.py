"""What accuracy costs: parameters trained and seconds, with Pareto fronts."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from optuna.trial import FrozenTrial
from plotly.subplots import make_subplots

from biotune_optuna.page.style import GREY, VERMILION, finish
from biotune_optuna.report.figures import NothingToShow, StudyFigure
from biotune_optuna.report.figures.shared import MAX_POINTS, thin
from biotune_optuna.report.view import StudyView, seconds
from biotune_optuna.schema import TrialRecord


@StudyFigure(
    name="accuracy-against-cost",
    title="Value against cost",
    caption="No recipe tried was better than one on the front without costing more. Where the front"
    " is flat, the cheaper one loses little.",
    chapter="cost",
    place=10,
    dashboard="5-cost",
    dashboard_limits={"max_points": 400},
)
def accuracy_against_cost(view: StudyView, *, max_points: int = MAX_POINTS) -> go.Figure:
    """Value against the share of trainable parameters and against seconds, with Pareto fronts.

    Args:
        view: A study whose complete trials say their cost. Seconds fall back on each trial's
            wall-clock time.
        max_points: Dominated trials drawn at most, evenly thinned; the front is always whole.
    """
    panels = {}
    for words, costs in (
        ("trainable parameters, %", [TrialRecord(t).trainable_pct for t in view.complete]),
        ("seconds of training", [seconds(t) for t in view.complete]),
    ):
        pairs = zip(view.complete, costs, strict=True)
        known = [(trial, cost) for trial, cost in pairs if cost is not None]
        if known and max(cost for _, cost in known) > 0:
            panels[words] = known
    if not panels:
        raise NothingToShow("No complete trial says what it cost.")
    figure = make_subplots(rows=len(panels), cols=1, vertical_spacing=0.2)
    for row, (words, known) in enumerate(panels.items(), 1):
        at = {"row": row, "col": 1}
        _add_panel(figure, view, known, max_points, at)
        wide = max(cost for _, cost in known) > 30 * min(cost for _, cost in known) > 0
        figure.update_xaxes(title_text=words, type="log" if wide else "linear", **at)
        if wide:
            figure.update_xaxes(dtick=1, **at)  # a tick a power of ten
        figure.update_yaxes(title_text=view.metric_words, tickformat=view.axis_format, **at)
    words, known = next(iter(panels.items()))
    best, cost = min(known, key=lambda pair: view.sort_key(pair[0]))
    unit = "% of the parameters" if words.startswith("trainable") else "s"
    title = f"Best {view.metric_words} against cost: {view.say(best.value)} with {cost:.3g} {unit}"
    return finish(figure, title, height=110 + 240 * len(panels), legend=True)


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
    max_points: int,
    at: Mapping[str, int],
) -> None:
    front = pareto_front(view, known)
    on_front = {t.number for t, _ in front}
    rest = thin([pair for pair in known if pair[0].number not in on_front], max_points)
    dots = {"color": GREY, "size": 6, "opacity": 0.55}
    diamonds = {"color": VERMILION, "size": 10, "symbol": "diamond"}
    for pairs, name, mode, marker in (
        (rest, "dominated: better and cheaper exists", "markers", dots),
        (front, "Pareto front", "lines+markers", diamonds),
    ):
        if pairs:
            figure.add_scatter(
                x=[cost for _, cost in pairs],
                y=[t.value for t, _ in pairs],
                mode=mode,
                name=name,
                line={"shape": "hv", "color": VERMILION, "width": 2},
                marker=marker,
                text=[f"trial {t.number}" for t, _ in pairs],
                hovertemplate="%{text}: %{y}, cost %{x:.3g}<extra></extra>",
                showlegend=at["row"] == 1,
                legendgroup=name,
                **at,
            )
