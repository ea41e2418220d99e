"""Where the winner comes from."""

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from biotune_optuna.page.style import GREY, VERMILION, finish, mark
from biotune_optuna.page.text import plural
from biotune_optuna.report.figures import NothingToShow, StudyFigure
from biotune_optuna.report.view import StudyView
from biotune_optuna.schema import TrialRecord


@StudyFigure(
    name="lineage",
    title="Where the winner comes from",
    caption="Lines join parents and children. The thick line follows the best parent back to the"
    " start.",
    chapter="search",
    place=50,
    dashboard="6-lineage",
    dashboard_limits={"max_ancestors": 30},
)
def lineage(view: StudyView, *, max_ancestors: int = 60) -> go.Figure:
    """Return the winner's ancestors: who came from whom, by which operator, with what gain.

    The thick line follows the best parent of each ancestor.

    Args:
        view: A study whose trials carry parents.
        max_ancestors: Ancestors drawn at most, nearest first; the title says if there are more.
    """
    winner = view.chosen_trial
    if winner is None or winner.value is None:
        raise NothingToShow(f"{view.none_complete}, so nobody has ancestors.")
    family, total = _ancestors(view, winner, max_ancestors)
    if len(family) < 2:
        role = mark(TrialRecord(winner).role).words
        raise NothingToShow(f"The best so far, trial {winner.number} ({role}), has no parents.")
    line = _main_line(view, winner)
    first = line[0]
    if first.value is not None and not view.better(winner.value, first.value):
        raise NothingToShow(
            f"Trial {winner.number} scored no better in the search than trial {first.number}, which"
            " it comes from, so its line explains nothing."
        )
    figure = go.Figure()
    _add_ties(figure, family)
    figure.add_scatter(
        x=[_x(t) for t in line],
        y=[t.value for t in line],
        mode="lines",
        line={"color": VERMILION, "width": 3},
        name="line of the best parent",
        hoverinfo="skip",
    )
    _add_family(figure, view, family, line)
    gain = view.say_difference(float(line[-1].value or 0.0) - float(line[0].value or 0.0))
    title = f"Where trial {winner.number} comes from: {gain} in {plural(len(line) - 1, 'step')}"
    if total > len(family):
        title += f"<br>({len(family) - 1} nearest of {total - 1:,} ancestors drawn)"
    xs = [_x(t) for t in family]
    step = max(1, (max(xs) - min(xs)) // 10)
    figure.update_xaxes(title_text="generation", tickformat="d", dtick=step)
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


def _x(trial: FrozenTrial) -> int:
    number = TrialRecord(trial).generation
    return trial.number if number is None else number


def _add_ties(figure: go.Figure, family: list[FrozenTrial]) -> None:
    """Draw a line from each parent to each of its children."""
    by_number = {t.number: t for t in family}
    ties = [
        (by_number[number], child)
        for child in family
        for number in TrialRecord(child).parents
        if number in by_number
    ]
    figure.add_scatter(
        x=[x for parent, child in ties for x in (_x(parent), _x(child), None)],
        y=[y for parent, child in ties for y in (parent.value, child.value, None)],
        mode="lines",
        line={"color": GREY, "width": 1},
        showlegend=False,
        hoverinfo="skip",
    )


def _add_family(
    figure: go.Figure, view: StudyView, family: list[FrozenTrial], line: list[FrozenTrial]
) -> None:
    ends = line if len(line) <= 8 else [line[0], line[-1]]  # all names of a long line collide
    named = {t.number for t in ends}
    for role in dict.fromkeys(TrialRecord(t).role or "" for t in family):
        members = [t for t in family if (TrialRecord(t).role or "") == role]
        figure.add_scatter(
            x=[_x(t) for t in members],
            y=[t.value for t in members],
            mode="markers+text",
            name=mark(role).words,
            text=[str(t.number) if t.number in named else "" for t in members],
            textposition="top center",
            marker=mark(role).marker(11),
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
