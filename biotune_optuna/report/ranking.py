"""A ranking of networks as a page, as Markdown, and as a picture where kaleido is installed."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from biotune_optuna.files import replace_file
from biotune_optuna.models.candidates import short_list
from biotune_optuna.page.html import document
from biotune_optuna.page.parts import Figure, Part, Table, Text, markdown
from biotune_optuna.page.style import GREY, VERMILION, finish
from biotune_optuna.study.choice import front

if TYPE_CHECKING:
    from biotune_optuna.study.choice import Ranked

_log = logging.getLogger("biotune_optuna.report")


def write_ranking(
    ranked: Sequence[Ranked], folder: str | Path, *, title: str, metric: str, below: str = ""
) -> Path:
    """Write ``report.html`` and ``report.md`` of a ranking, and ``front.png`` if it can be drawn.

    Args:
        ranked: The networks, as `biotune_optuna.study.ranking.rank_models` gives them.
        folder: Folder to write into; it must be there.
        title: Title of the page.
        metric: Metric of the scores, in words.
        below: A line below the title.

    Returns:
        The HTML file.

    Raises:
        StudyError: If the files cannot be written.
    """
    target = Path(folder)
    parts = ranking_parts(ranked, metric)
    replace_file(target / "report.md", f"# {title}\n\n{markdown(parts)}")
    if importlib.util.find_spec("kaleido"):
        try:
            picture(ranked, metric).write_image(
                target / "front.png", width=760, height=420, scale=2
            )
        except Exception as error:  # noqa: BLE001 - kaleido drives a browser, which may be missing
            _log.warning("no picture was drawn: %s", error)
    page = document(title, parts, eyebrow="Which network?", below=below)
    return replace_file(target / "report.html", page)


def ranking_parts(ranked: Sequence[Ranked], metric: str) -> list[Part]:
    """Return the table and the figure of a ranking.

    Args:
        ranked: The networks, the best first.
        metric: Metric of the scores, in words.
    """
    able, best = [one for one in ranked if not one.why_not], front(ranked)
    licences = {one.name: one.licence for one in short_list()}
    rows = [
        (
            one.name,
            f"{one.score:.3f} ({one.low:.3f} to {one.high:.3f})",
            f"{one.parameters / 1e6:.1f} M",
            f"{one.ms:.1f}",
            f"{one.megabytes:.0f} MB",
            licences.get(one.name, ""),
            "yes" if one in best else "",
        )
        for one in able
    ]
    head = ("Network", metric, "Parameters", "ms an image", "Disk", "Licence", "On the front")
    parts: list[Part] = [
        Table(head, rows, strong=0 if rows else None),
        Text(
            "Score: of a linear probe (logistic regression on the frozen network's features), on"
            " training images by folds that had not seen them, with its 95 % interval. Networks"
            " whose intervals overlap may well be level. On the front: no network is better in as"
            " little time."
        ),
    ]
    if len(able) > 1:
        caption = (
            "Each dot is a network. The line joins those that no other beats in as little time."
        )
        parts.append(Figure(picture(ranked, metric), caption, "front"))
    parts += [Text(f"{one.name} is left out: {one.why_not}.") for one in ranked if one.why_not]
    return parts


def picture(ranked: Sequence[Ranked], metric: str) -> go.Figure:
    """Return score against milliseconds an image, with the Pareto front.

    Args:
        ranked: The networks.
        metric: Metric of the scores, in words.
    """
    able, best = [one for one in ranked if not one.why_not], front(ranked)[::-1]
    figure = go.Figure()
    figure.add_scatter(
        x=[one.ms for one in best],
        y=[one.score for one in best],
        mode="lines",
        line={"color": VERMILION, "shape": "hv"},
        name="front",
    )
    figure.add_scatter(
        x=[one.ms for one in able],
        y=[one.score for one in able],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [one.high - one.score for one in able],
            "arrayminus": [one.score - one.low for one in able],
            "color": GREY,
            "thickness": 1,
        },
        mode="markers+text",
        text=[one.name.partition(".")[0] for one in able],
        textposition="top center",
        marker={"size": 8, "color": [VERMILION if one in best else GREY for one in able]},
        name="networks",
    )
    figure.update_xaxes(title_text="milliseconds an image", type="log")
    figure.update_yaxes(title_text=metric)
    return finish(figure, f"{metric} of a linear probe against time", height=420)
