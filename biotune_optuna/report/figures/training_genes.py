"""What augmentation, length and the like did to the values of the trials."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from plotly.subplots import make_subplots

from biotune_optuna.page.style import BLUE, VERMILION, finish, safe
from biotune_optuna.report.figures import StudyFigure
from biotune_optuna.report.figures.shared import MAX_POINTS, thin
from biotune_optuna.report.view import DoesNotApply

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from biotune_optuna.report.view import StudyView

_PREFIX = "train."
_COLUMNS = 3


@StudyFigure(
    name="training-genes",
    title="How the recipes train",
    caption="A dot is a trial, a line the middle of its value's trials. The search tries what does"
    " well more often, together with good blocks, so a higher line alone is no proof.",
    chapter="search",
    place=37,
    dashboard="3c-training",
)
def training_genes(view: StudyView) -> go.Figure:
    """Draw the values of the trials by each training gene's value.

    Args:
        view: A study that searches training genes.
    """
    trials = [t for t in view.complete if any(name.startswith(_PREFIX) for name in t.params)]
    genes = list(dict.fromkeys(n for t in trials for n in t.params if n.startswith(_PREFIX)))
    if not genes:
        raise DoesNotApply("This study does not search how a recipe trains (--genes).")
    columns = min(_COLUMNS, len(genes))
    rows = -(-len(genes) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes=True,
        subplot_titles=[safe(gene.removeprefix(_PREFIX).replace("_", " ")) for gene in genes],
        horizontal_spacing=0.05,
        vertical_spacing=0.25 / rows,
    )
    for number, gene in enumerate(genes):
        at = {"row": number // columns + 1, "col": number % columns + 1}
        drawn = thin([t for t in trials if gene in t.params], MAX_POINTS)
        values = [safe(f"{t.params[gene]}") for t in drawn]
        figure.add_scatter(
            x=values,
            y=[t.value for t in drawn],
            mode="markers",
            marker={"color": BLUE, "size": 7, "opacity": 0.5},
            name="one trial",
            showlegend=number == 0,
            text=[f"trial {t.number}: {view.say(t.value)}" for t in drawn],
            hovertemplate="%{text}<extra></extra>",
            **at,
        )
        by_value: dict[str, list[float]] = {}
        for value, trial in zip(values, drawn, strict=True):
            by_value.setdefault(value, []).append(float(trial.value or 0.0))
        figure.add_scatter(
            x=list(by_value),
            y=[median(some) for some in by_value.values()],
            mode="markers",
            marker={"color": VERMILION, "symbol": "line-ew-open", "size": 26, "line": {"width": 3}},
            name="median",
            showlegend=number == 0,
            hovertemplate="%{x}: median %{y}<extra></extra>",
            **at,
        )
        figure.update_xaxes(type="category", **at)
    figure.update_yaxes(tickformat=view.axis_format, nticks=5)
    title = f"How the recipes train ({len(trials):,} trials)"
    return finish(figure, title, height=110 + 210 * rows, legend=True)
