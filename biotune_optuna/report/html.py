"""The report: one HTML file about a study that needs nothing else, not even a network."""

from __future__ import annotations

import html as html_escape
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from biotune_optuna.page.html import document, figure_html, replace_file
from biotune_optuna.page.text import plural
from biotune_optuna.report import sections
from biotune_optuna.report.figures import FIGURES, NothingToShow
from biotune_optuna.report.view import StudyView, as_view
from biotune_optuna.report.words import search_sentences, verdict

if TYPE_CHECKING:
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
    return replace_file(target, page(view))


def page(view: StudyView) -> str:
    """Return the report's HTML.

    Args:
        view: The study read.
    """
    chapters = [_chapter(view, *chapter) for chapter in _CHAPTERS]
    return document(f"{view.name} · fine-tuning report", [_head(view), *filter(None, chapters)])


def _head(view: StudyView) -> str:
    found = verdict(view)
    running = len(view.in_state(TrialState.RUNNING))
    confirmed = "confirmed in part" if view.unconfirmed else "confirmed"
    state = confirmed if view.confirm else "running" if running else "not confirmed yet"
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
                drawn.append(figure_html(entry.id, entry.caption, entry.draw(view)))
            except NothingToShow as nothing:
                missing.append(f'<p class="none">{html_escape.escape(str(nothing))}</p>')
    if not body and not drawn and not missing:
        return ""
    inside = "".join([body, *drawn, *dict.fromkeys(missing)])
    return f'<section id="{key}"><h2>{html_escape.escape(title)}</h2>{inside}</section>'
