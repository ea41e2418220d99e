"""How the search went: values by generation, the best so far, counts by role."""

from collections import Counter

import plotly.graph_objects as go
from optuna.trial import FrozenTrial
from plotly.subplots import make_subplots

from biotune_optuna.page.style import BLACK, LIGHT, ROLES, TOP, finish, mark
from biotune_optuna.report.figures import NothingToShow, StudyFigure
from biotune_optuna.report.figures.shared import MAX_POINTS, thin
from biotune_optuna.report.view import StudyView
from biotune_optuna.schema import TrialRecord


@StudyFigure(
    name="search-history",
    title="How the search went",
    caption="Each point is one recipe trained and validated; the line is the best so far; bands"
    " mark generations. Below: how many evaluations each generation made, by how they came"
    " about.",
    chapter="search",
    place=10,
    dashboard="1-search-history",
    dashboard_limits={"max_points": 400},
)
def search_history(view: StudyView, *, max_points: int = MAX_POINTS) -> go.Figure:
    """Value of every evaluation by generation, the best so far, and how many each role ran.

    A study without generations (another sampler) is drawn by trial number alone. Where there are
    more trials than points, the points are thinned evenly, never the line of the best; the title
    says so.

    Args:
        view: A study with at least one complete trial.
        max_points: Points drawn at most.
    """
    if not view.complete:
        raise NothingToShow(f"{view.none_complete}, so there is no history to draw.")
    generations = {TrialRecord(t).generation for t in view.complete} - {None}
    figure = make_subplots(
        rows=2 if generations else 1,
        cols=1,
        row_heights=[0.74, 0.26] if generations else None,
        vertical_spacing=0.2,
    )
    shown = thin(view.complete, max_points)
    _add_points(figure, view, shown)
    _add_best_line(figure, view)
    if generations:
        _shade_generations(figure, view)
        _add_counts(figure, view)
        figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_yaxes(title_text=view.metric_words, tickformat=view.axis_format, **TOP)
    whole = 1 if len(view.trials) <= 12 else None  # no tick between two trials
    figure.update_xaxes(title_text="trial", tickformat="d", dtick=whole, **TOP)
    title = f"Best {view.metric_words} so far: {view.say(view.ranked[0].value)}"
    if len(shown) < len(view.complete):
        title += f"  ({len(shown):,} of {len(view.complete):,} points drawn)"
    return finish(figure, title, height=520 if generations else 380, legend=True)


def _add_points(figure: go.Figure, view: StudyView, shown: list[FrozenTrial]) -> None:
    for role in (*ROLES, None):
        members = [t for t in shown if _known_role(t) == role]
        if members:
            figure.add_scatter(
                x=[t.number for t in members],
                y=[t.value for t in members],
                mode="markers",
                name=mark(role).words,
                marker=mark(role).marker(8 if len(shown) < 300 else 5),
                customdata=[[view.say(t.value), TrialRecord(t).frozen or "–"] for t in members],
                hovertemplate="trial %{x}<br>%{customdata[0]}<br>frozen: %{customdata[1]}",
                **TOP,
            )


def _known_role(trial: FrozenTrial) -> str | None:
    role = TrialRecord(trial).role
    return role if role in ROLES else None


def _add_best_line(figure: go.Figure, view: StudyView) -> None:
    best = [view.complete[0]]
    for trial in view.complete:
        if view.better(float(trial.value or 0.0), float(best[-1].value or 0.0)):
            best.append(trial)
    figure.add_scatter(
        x=[*(t.number for t in best), view.complete[-1].number],
        y=[*(t.value for t in best), best[-1].value],
        mode="lines",
        name="best so far",
        line={"shape": "hv", "color": BLACK, "width": 2},
        hoverinfo="skip",
        **TOP,
    )


def _shade_generations(figure: go.Figure, view: StudyView) -> None:
    """Bands behind every second generation, drawn while they are wide enough to be seen."""
    spans: dict[int, tuple[int, int]] = {}
    for trial in view.trials:
        number = TrialRecord(trial).generation
        if number is not None:
            low, high = spans.get(number, (trial.number, trial.number))
            spans[number] = (min(low, trial.number), max(high, trial.number))
    if len(spans) > 40:
        return
    for number, (low, high) in spans.items():
        if number % 2:
            look = {"fillcolor": LIGHT, "opacity": 0.5, "line_width": 0, "layer": "below"}
            figure.add_vrect(x0=low - 0.5, x1=high + 0.5, **look, **TOP)


def _add_counts(figure: go.Figure, view: StudyView) -> None:
    counts: Counter[tuple[str | None, int]] = Counter()
    for trial in view.trials:
        number = TrialRecord(trial).generation
        if number is not None and trial.state.is_finished():
            counts[_known_role(trial), number] += 1
    generations = sorted({g for _, g in counts})
    for role in (*ROLES, None):
        heights = [counts[role, g] for g in generations]
        if any(heights):
            figure.add_bar(
                x=generations,
                y=heights,
                name=mark(role).words,
                marker_color=mark(role).colour,
                showlegend=False,
                hovertemplate="generation %{x}: %{y} × " + mark(role).words + "<extra></extra>",
                row=2,
                col=1,
            )
    step = max(1, len(generations) // 12)
    figure.update_xaxes(title_text="generation", tickformat="d", dtick=step, row=2, col=1)
    figure.update_yaxes(title_text="count", rangemode="tozero", row=2, col=1)
