"""How the search went: values by generation, and where the winner comes from."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from biotune_optuna.page.style import BLACK, GREY, LIGHT, OTHER, ROLES, VERMILION, finish, mark
from biotune_optuna.report.view import NothingToShow, StudyView, as_view
from biotune_optuna.schema import TrialRecord

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

__all__ = ["lineage", "search_history"]

MAX_POINTS = 1500
MAX_ANCESTORS = 60


def search_history(study: Study | StudyView, *, max_points: int = MAX_POINTS) -> go.Figure:
    """Value of every evaluation by generation, the best so far, and how many each role ran.

    A study without generations (another sampler) is drawn by trial number alone. Where there are
    more trials than points, the points are thinned evenly, never the line of the best; the title
    says so.

    Args:
        study: A study with at least one complete trial.
        max_points: Points drawn at most.

    Raises:
        NothingToShow: No trial is complete.
    """
    view = as_view(study)
    if not view.complete:
        raise NothingToShow(f"{view.none_complete}, so there is no history to draw.")
    generations = {TrialRecord(t).generation for t in view.complete} - {None}
    figure = make_subplots(
        rows=2 if generations else 1,
        cols=1,
        row_heights=[0.74, 0.26] if generations else None,
        vertical_spacing=0.2,
    )
    shown = _thin(view.complete, max_points)
    _add_points(figure, view, shown)
    _add_best_line(figure, view)
    if generations:
        _shade_generations(figure, view)
        _add_counts(figure, view)
        figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_yaxes(title_text=view.metric_words, tickformat=view.axis_format, row=1, col=1)
    whole = 1 if len(view.trials) <= 12 else None  # no tick between two trials
    figure.update_xaxes(title_text="trial", row=1, col=1, tickformat="d", dtick=whole)
    title = f"Best {view.metric_words} so far: {view.say(view.ranked[0].value)}"
    if len(shown) < len(view.complete):
        title += f"  ({len(shown):,} of {len(view.complete):,} points drawn)"
    return finish(figure, title, height=520 if generations else 380, legend=True)


def _thin(trials: tuple[FrozenTrial, ...], most: int) -> list[FrozenTrial]:
    """At most ``most`` trials, evenly over the study, the last one among them."""
    if len(trials) <= most:
        return list(trials)
    last = len(trials) - 1
    return [trials[round(i * last / (most - 1))] for i in range(most)]


def _add_points(figure: go.Figure, view: StudyView, shown: list[FrozenTrial]) -> None:
    roles = [role for role in ROLES if any(TrialRecord(t).role == role for t in shown)]
    rest = [t for t in shown if TrialRecord(t).role not in ROLES]
    groups = [(ROLES[r], [t for t in shown if TrialRecord(t).role == r]) for r in roles]
    if rest:
        groups.append((OTHER, rest))
    for look, members in groups:
        figure.add_scatter(
            x=[t.number for t in members],
            y=[t.value for t in members],
            mode="markers",
            name=look.words,
            marker={
                "color": look.colour,
                "symbol": look.symbol,
                "size": 8 if len(shown) < 300 else 5,
                "line": {"width": 0.5, "color": "white"},
            },
            customdata=[[view.say(t.value), TrialRecord(t).frozen or "–"] for t in members],
            hovertemplate="trial %{x}<br>%{customdata[0]}<br>frozen: %{customdata[1]}",
            row=1,
            col=1,
        )


def _add_best_line(figure: go.Figure, view: StudyView) -> None:
    xs: list[int] = []
    ys: list[float] = []
    for trial in view.complete:
        value = float(trial.value or 0.0)
        if not ys or view.better(value, ys[-1]):
            xs.append(trial.number)
            ys.append(value)
    xs.append(view.complete[-1].number)
    ys.append(ys[-1])
    figure.add_scatter(
        x=xs,
        y=ys,
        mode="lines",
        name="best so far",
        line={"shape": "hv", "color": BLACK, "width": 2},
        hoverinfo="skip",
        row=1,
        col=1,
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
            figure.add_vrect(
                x0=low - 0.5,
                x1=high + 0.5,
                fillcolor=LIGHT,
                opacity=0.5,
                line_width=0,
                layer="below",
                row=1,
                col=1,
            )


def _add_counts(figure: go.Figure, view: StudyView) -> None:
    counts: Counter[tuple[str, int]] = Counter()
    for trial in view.trials:
        number = TrialRecord(trial).generation
        if number is not None and trial.state.is_finished():
            counts[TrialRecord(trial).role or "", number] += 1
    generations = sorted({g for _, g in counts})
    for role in dict.fromkeys([*ROLES, *(r for r, _ in counts)]):
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


def lineage(study: Study | StudyView, *, max_ancestors: int = MAX_ANCESTORS) -> go.Figure:
    """Return the winner's ancestors: who came from whom, by which operator, with what gain.

    The thick line follows the best parent of each ancestor.

    Args:
        study: A study whose trials carry parents.
        max_ancestors: Ancestors drawn at most, nearest first; the title says if there are more.

    Raises:
        NothingToShow: There is no winner, or it has no parents.
    """
    view = as_view(study)
    winner = view.chosen_trial
    if winner is None or winner.value is None:
        raise NothingToShow(f"{view.none_complete}, so nobody has ancestors.")
    family, total = _ancestors(view, winner, max_ancestors)
    if len(family) < 2:
        role = mark(TrialRecord(winner).role).words
        raise NothingToShow(f"The best so far, trial {winner.number} ({role}), has no parents.")
    line = _main_line(view, winner)
    figure = go.Figure()
    _add_ties(figure, view, family, line)
    _add_family(figure, view, family, line)
    title = f"Where trial {winner.number} comes from: " + _gains(view, line)
    if total > len(family):
        title += f"<br>({len(family) - 1} nearest of {total - 1:,} ancestors drawn)"
    figure.update_xaxes(title_text="generation", tickformat="d", dtick=_tick(family))
    figure.update_yaxes(title_text=view.metric_words, tickformat=view.axis_format)
    return finish(figure, title, height=430, legend=True)


def _ancestors(view: StudyView, winner: FrozenTrial, most: int) -> tuple[list[FrozenTrial], int]:
    family, queue = {winner.number: winner}, [winner]
    while queue:
        trial = queue.pop(0)
        for number in TrialRecord(trial).parents:
            parent = view.by_number.get(number)
            if parent is not None and parent.value is not None and number not in family:
                family[number] = parent
                queue.append(parent)
    return list(family.values())[: most + 1], len(family)


def _main_line(view: StudyView, winner: FrozenTrial) -> list[FrozenTrial]:
    """Return the winner, its best parent, that one's best parent and so on, oldest first."""
    line = [winner]
    while True:
        elders = [view.by_number.get(n) for n in TrialRecord(line[-1]).parents]
        known = [t for t in elders if t is not None and t.value is not None and t not in line]
        if not known:
            return line[::-1]
        line.append(min(known, key=view.sort_key))


def _gains(view: StudyView, line: list[FrozenTrial]) -> str:
    first, last = float(line[0].value or 0.0), float(line[-1].value or 0.0)
    steps = "step" if len(line) == 2 else "steps"
    return f"{view.say_difference(last - first)} in {len(line) - 1} {steps}"


def _x(trial: FrozenTrial) -> int:
    number = TrialRecord(trial).generation
    return trial.number if number is None else number


def _tick(family: list[FrozenTrial]) -> int:
    xs = [_x(t) for t in family]
    return max(1, (max(xs) - min(xs)) // 10)


def _add_ties(
    figure: go.Figure, view: StudyView, family: list[FrozenTrial], line: list[FrozenTrial]
) -> None:
    numbers = {t.number for t in family}
    xs: list[int | None] = []
    ys: list[float | None] = []
    for child in family:
        for number in TrialRecord(child).parents:
            if number in numbers:
                parent = view.by_number[number]
                xs += [_x(parent), _x(child), None]
                ys += [parent.value, child.value, None]
    figure.add_scatter(
        x=xs,
        y=ys,
        mode="lines",
        line={"color": GREY, "width": 1},
        showlegend=False,
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[_x(t) for t in line],
        y=[t.value for t in line],
        mode="lines",
        line={"color": VERMILION, "width": 3},
        name="line of the best parent",
        hoverinfo="skip",
    )


def _add_family(
    figure: go.Figure, view: StudyView, family: list[FrozenTrial], line: list[FrozenTrial]
) -> None:
    ends = line if len(line) <= 8 else [line[0], line[-1]]  # all names of a long line collide
    named = {t.number for t in ends}
    for role in dict.fromkeys(TrialRecord(t).role or "" for t in family):
        members = [t for t in family if (TrialRecord(t).role or "") == role]
        look = mark(role)
        figure.add_scatter(
            x=[_x(t) for t in members],
            y=[t.value for t in members],
            mode="markers+text",
            name=look.words,
            text=[str(t.number) if t.number in named else "" for t in members],
            textposition="top center",
            marker={
                "color": look.colour,
                "symbol": look.symbol,
                "size": 11,
                "line": {"width": 1, "color": "white"},
            },
            customdata=[[t.number, view.say(t.value), _gain(view, t)] for t in members],
            hovertemplate="trial %{customdata[0]}: %{customdata[1]}<br>%{customdata[2]}",
        )


def _gain(view: StudyView, trial: FrozenTrial) -> str:
    values = [view.by_number[n].value for n in TrialRecord(trial).parents if n in view.by_number]
    known = [float(v) for v in values if v is not None]
    if not known or trial.value is None:
        return "no parents"
    best = max(known) if view.better(1, 0) else min(known)
    return f"{view.say_difference(trial.value - best)} against its better parent"
