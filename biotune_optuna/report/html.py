"""The report: one HTML file about a study that needs nothing else, not even a network."""

from __future__ import annotations

import html as html_escape
import os
import re
import tempfile
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from biotune_optuna._version import __version__
from biotune_optuna.errors import StudyError
from biotune_optuna.report import sections
from biotune_optuna.report.figures import FIGURES, NothingToShow
from biotune_optuna.report.style import at_height
from biotune_optuna.report.text import plural
from biotune_optuna.report.view import StudyView, as_view
from biotune_optuna.report.words import search_sentences, verdict

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna import Study

__all__ = ["write_report"]

_CHAPTERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("compare", "How the methods compare", ("search-confirmed-test",)),
    ("recipe", "The recipe", ()),
    (
        "search",
        "How the search went",
        (
            "search-history",
            "freeze-by-block",
            "genome-heatmap",
            "block-importance",
            "lineage",
            "learning-curves",
        ),
    ),
    ("cost", "What it cost", ("accuracy-against-cost", "where-time-went")),
    ("errors", "Where the model is wrong", ("confusion-matrix", "most-wrong")),
    ("use", "How to use the result", ()),
    ("trust", "How far to trust this", ()),
    ("settings", "Settings", ()),
)


def write_report(study: Study | StudyView, path: str | Path) -> Path:
    """Write a study's report as one self-contained HTML file.

    The file holds all figures with their library, opens without a network, and is meant for readers
    who know neither Python nor the method. It can be written at any moment of a study, before the
    first trial as well as after the confirmation, and for studies of plain Optuna. An older report
    of the same name is replaced at once, never half.

    Args:
        study: A study of one objective.
        path: File to write; a folder gets ``report.html`` in it.

    Returns:
        The file written.

    Raises:
        StudyError: The study has several objectives, or the file cannot be written.
    """
    view = as_view(study)
    target = Path(path)
    if target.is_dir():
        target = target / "report.html"
    return _replace(target, page(view))


def page(view: StudyView) -> str:
    """The report's HTML.

    Args:
        view: The study read.
    """
    from plotly.offline import get_plotlyjs

    assets = resources.files("biotune_optuna.report") / "assets"
    chapters = [_chapter(view, *chapter) for chapter in _CHAPTERS]
    title = html_escape.escape(view.name)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{title} · fine-tuning report</title>",
            f"<style>{(assets / 'report.css').read_text('utf-8')}</style></head><body><main>",
            _head(view),
            *filter(None, chapters),
            f"<footer>Written {datetime.now().astimezone():%Y-%m-%d %H:%M %Z} by biotune-optuna"
            f" {__version__}.</footer></main>",
            "<noscript><p>The figures need JavaScript; all results are in the tables too.</p>"
            "</noscript>",
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{(assets / 'report.js').read_text('utf-8')}</script>",
            "</body></html>",
        ]
    )


def _head(view: StudyView) -> str:
    found = verdict(view)
    running = len(view.in_state(TrialState.RUNNING))
    state = "confirmed" if view.confirm else "running" if running else "not confirmed yet"
    sub = [
        state,
        plural(view.evaluated, "recipe") + " evaluated"
        if view.spec
        else plural(len(view.trials), "trial"),
    ]
    if view.spec:
        sub.insert(0, f"{view.spec.get('model')} on {view.spec.get('data')}")
    says = "".join(f"<p>{html_escape.escape(s)}</p>" for s in found.sentences)
    told = "".join(f"<p>{html_escape.escape(s)}</p>" for s in search_sentences(view))
    return (
        '<header><p class="eyebrow">Fine-tuning report</p>'
        f"<h1>{html_escape.escape(view.name)}</h1>"
        f'<p class="soft">{html_escape.escape(" · ".join(sub))}</p></header>'
        f'<section class="verdict {found.tone}"><strong>{html_escape.escape(found.headline)}'
        f"</strong>{says}</section>{sections.tiles(view)}<h2>What was searched</h2>{told}"
    )


def _chapter(view: StudyView, key: str, title: str, figure_ids: tuple[str, ...]) -> str:
    if not view.spec and not view.confirm and key in ("compare", "errors"):
        return ""
    body = sections.BODIES[key](view) if key in sections.BODIES else ""
    drawn, missing = [], []
    for entry in FIGURES:
        if entry.id in figure_ids:
            try:
                drawn.append(_figure(entry.id, entry.caption, entry.draw(view)))
            except NothingToShow as nothing:
                missing.append(f'<p class="none">{html_escape.escape(str(nothing))}</p>')
    if not body and not drawn and not missing:
        return ""
    inside = "".join([body, *drawn, *dict.fromkeys(missing)])
    return f'<section id="{key}"><h2>{html_escape.escape(title)}</h2>{inside}</section>'


def _figure(identity: str, caption: str, figure: go.Figure) -> str:
    """A figure: its title as a heading, its data as JSON that cannot end the script element."""
    title = html_escape.unescape(re.sub(r"<[^>]*>", " ", figure.layout.title.text or ""))
    figure.update_layout(title=None)
    at_height(figure, figure.layout.height, title_lines=0)
    data = str(figure.to_json()).replace("<", "\\u003c")
    return (
        f'<figure id="figure-{identity}"><h3>{html_escape.escape(title)}</h3>'
        f'<div class="plot" id="{identity}"></div>'
        f'<script type="application/json" id="{identity}-data">{data}</script>'
        f"<figcaption>{html_escape.escape(caption)}</figcaption></figure>"
    )


def _replace(target: Path, text: str) -> Path:
    """Write a file so that a reader sees the old one or the new one."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".report-", suffix=".html")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            Path(name).chmod(0o644)
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StudyError(
            f"report {str(target)!r} cannot be written ({error.strerror or error});"
            " give a path in a folder you may write to"
        ) from error
    return target
