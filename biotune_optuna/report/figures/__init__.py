"""Plotly figures, each a function of a study and usable alone.

    import optuna
    from biotune_optuna.report import figures

    study = optuna.load_study(study_name="flowers", storage="sqlite:///biotune.db")
    figures.search_history(study).show()

A figure that has nothing to show raises :class:`NothingToShow`, whose message is one sentence that
can be printed in the figure's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from biotune_optuna.report.figures.confirmed import (
    confusion_matrix,
    most_wrong,
    search_confirmed_test,
)
from biotune_optuna.report.figures.cost import accuracy_against_cost, where_time_went
from biotune_optuna.report.figures.genome import freeze_by_block, genome_heatmap
from biotune_optuna.report.figures.importance import block_importance
from biotune_optuna.report.figures.search import lineage, search_history
from biotune_optuna.report.figures.training import learning_curves
from biotune_optuna.report.view import NothingToShow, StudyView

if TYPE_CHECKING:
    from collections.abc import Callable

    import plotly.graph_objects as go

__all__ = [
    "FIGURES",
    "FigureEntry",
    "NothingToShow",
    "accuracy_against_cost",
    "block_importance",
    "confusion_matrix",
    "freeze_by_block",
    "genome_heatmap",
    "learning_curves",
    "lineage",
    "most_wrong",
    "search_confirmed_test",
    "search_history",
    "where_time_went",
]


class FigureEntry(NamedTuple):
    """One figure of the report: a stable id, how to read it, and the function that draws it."""

    id: str
    caption: str
    draw: Callable[[StudyView], go.Figure]


FIGURES: tuple[FigureEntry, ...] = (
    FigureEntry(
        "search-confirmed-test",
        "Search values flatter whatever was picked by them. The confirmation trained again on"
        " fresh seeds; the test images were kept out of all choices. Whiskers: one standard error"
        " for search and confirmation, the 95 % interval for the test.",
        search_confirmed_test,
    ),
    FigureEntry(
        "search-history",
        "Each point is one recipe trained and validated; the line is the best so far; bands mark"
        " generations. Below: how many evaluations each generation made, by how they came about.",
        search_history,
    ),
    FigureEntry(
        "freeze-by-block",
        "What the best recipes share. Left: how many of them freeze a block. Right: how fast they"
        " train it where they do; 1× is the base learning rate.",
        freeze_by_block,
    ),
    FigureEntry(
        "genome-heatmap",
        "One column per recipe, one row per block from the input down to the classifier."
        " Dark trains fast, light trains slowly, hatched is frozen.",
        genome_heatmap,
    ),
    FigureEntry(
        "block-importance",
        "How much of the difference between recipes each block's setting explains (fANOVA). It says"
        " where choices mattered within what was tried, not which block is good.",
        block_importance,
    ),
    FigureEntry(
        "lineage",
        "Lines join parents and children. The thick line follows the best parent back to the"
        " start.",
        lineage,
    ),
    FigureEntry(
        "accuracy-against-cost",
        "No recipe tried was better than one on the front without costing more. Where the front is"
        " flat, the cheaper one loses little.",
        accuracy_against_cost,
    ),
    FigureEntry(
        "learning-curves",
        "Validation score after each epoch. Dotted grey: trials that were stopped because others"
        " were clearly ahead.",
        learning_curves,
    ),
    FigureEntry(
        "confusion-matrix",
        "Rows are what the image shows, columns what the model said; the shade is the share of the"
        " row.",
        confusion_matrix,
    ),
    FigureEntry(
        "most-wrong",
        "What the image is labelled, and what the model said with which probability. Wrong labels"
        " often turn up here.",
        most_wrong,
    ),
    FigureEntry(
        "where-time-went",
        "Summed over all workers, so it can exceed the time on the clock.",
        where_time_went,
    ),
)
