"""What each block is worth on its own, and what leaving it out would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from plotly.subplots import make_subplots

from biotune_optuna.page.style import BLACK, BLUE, GREY, VERMILION, finish, shorten
from biotune_optuna.recipe import Recipe
from biotune_optuna.report.figures import NothingToShow, StudyFigure
from biotune_optuna.report.figures.shared import with_recipe
from biotune_optuna.sampler.ranking import Belief

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go

    from biotune_optuna.genome import Genome, GenomeSpace
    from biotune_optuna.report.view import StudyView

_FEWEST = 10  # trials; with fewer it is what other tasks taught that would be shown
_RATES = tuple(10.0 ** np.linspace(-1.0, 1.0, 5))  # factors on the middle rate


class Worth(NamedTuple):
    """The value that is expected of a kind of recipe, at the best of its rates.

    Attributes:
        value: In the units of the study's value.
        deviation: How sure that is, one standard deviation.
    """

    value: float
    deviation: float


class Worths(NamedTuple):
    """What the model says of a network's blocks.

    Attributes:
        alone: For each block of the body, only it and the head train.
        without: For each block of the body, all but it train.
        probe: Only the head trains.
        full: All train.
    """

    alone: list[Worth]
    without: list[Worth]
    probe: Worth
    full: Worth


@StudyFigure(
    name="single-blocks",
    title="What each block is worth",
    caption="Left: the score to expect if only this block and the head train. Right: if all blocks"
    " train but this one. A block whose dot on the left lies right of the dashed line is worth"
    " training; one whose dot on the right lies left of its line should not be frozen. Bars are one"
    " standard deviation: where they reach across the line, the study cannot tell.",
    chapter="search",
    place=35,
    dashboard="3b-single-blocks",
)
def single_blocks(view: StudyView) -> go.Figure:
    """Draw what the model of the landscape expects of each block alone, and of leaving it out.

    Rates are the best of five for the blocks and five for the head. What was never tried is
    foretold from like recipes and from what other tasks taught.

    Args:
        view: A study of at least 10 complete trials with a genome space.
    """
    if len(with_recipe(view)) < _FEWEST:
        raise NothingToShow(f"What a block is worth needs {_FEWEST} complete trials.")
    space = view.space
    if space is None or space.n_blocks < 3:
        raise NothingToShow("Single blocks can be told apart in a genome space of three or more.")
    found = worths(view, space)
    labels = [shorten(name) for name in view.blocks[:-1]]
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    sides = (
        (
            found.alone,
            found.probe,
            "only this block and the head<br>(dashed: the head alone)",
            BLUE,
        ),
        (found.without, found.full, "all but this block<br>(dashed: all)", VERMILION),
    )
    for column, (every, line, words, colour) in enumerate(sides, start=1):
        figure.add_scatter(
            x=[one.value for one in every],
            y=labels,
            error_x={"array": [one.deviation for one in every], "color": GREY, "thickness": 1.5},
            mode="markers",
            marker={"color": colour, "size": 10},
            showlegend=False,
            hovertemplate="%{y}: %{x:" + view.axis_format + "}<extra></extra>",
            row=1,
            col=column,
        )
        dashed = {"color": BLACK, "dash": "dash", "width": 1}
        figure.add_vline(x=line.value, line=dashed, row=1, col=column)
        figure.update_xaxes(
            title_text=words, tickformat=view.axis_format, nticks=5, row=1, col=column
        )
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1])
    return finish(figure, "What each block is worth", height=190 + 28 * max(4, len(labels)))


def worths(view: StudyView, space: GenomeSpace) -> Worths:
    """Return what the model of the landscape expects of each block of the body.

    Args:
        view: The study read.
        space: Its genome space.
    """
    belief = Belief(view.study, space)
    body = space.n_blocks - 1

    def best(trained: Sequence[bool]) -> Worth:
        values, spreads = belief.values(_at_rates(space, trained))
        at = int(np.argmax(values) if view.better(1.0, 0.0) else np.argmin(values))
        return Worth(float(values[at]), float(spreads[at]))

    one = np.eye(body, dtype=bool).tolist()
    return Worths(
        alone=[best(row) for row in one],
        without=[best([not trained for trained in row]) for row in one],
        probe=best([False] * body),
        full=best([True] * body),
    )


def _at_rates(space: GenomeSpace, trained: Sequence[bool]) -> list[Genome]:
    """Return genomes that train these blocks of the body and the head, at several rates."""
    low, high = space.extra_bounds.get("lr", (space.base_lr, space.base_lr))
    genomes = []
    for rate in _RATES if any(trained) else _RATES[:1]:
        for head in _RATES:
            logs = np.log10([rate] * any(trained) + [head])
            base = float(np.clip(space.base_lr * 10 ** ((logs.min() + logs.max()) / 2), low, high))
            factors = [rate * space.base_lr / base if on else 0.0 for on in trained]
            multipliers = [*factors, head * space.base_lr / base]
            recipe = Recipe.from_multipliers(
                space.blocks, multipliers, lr=base, weight_decay=space.base_weight_decay
            )
            genomes.append(space.encode(recipe))
    return genomes
