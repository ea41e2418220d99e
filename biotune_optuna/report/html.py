"""The report: one HTML file about a study that needs nothing else, not even a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from biotune_optuna.files import replace_file
from biotune_optuna.page.html import document
from biotune_optuna.page.parts import Heading, Part, Section, Text, texts
from biotune_optuna.page.text import plural
from biotune_optuna.report.figures import all_figures
from biotune_optuna.report.sections import CHAPTERS, tiles
from biotune_optuna.report.view import DoesNotApply, NothingToShow, StudyView, as_view
from biotune_optuna.report.words import search_sentences, verdict

if TYPE_CHECKING:
    from optuna import Study


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
    parts: list[Part] = [
        verdict(view),
        *tiles(view),
        Heading("What was searched"),
        *texts(search_sentences(view)),
    ]
    for name, chapter in CHAPTERS.items():
        if chapter.ours and not view.spec and not view.confirmation:
            continue
        if inside := [*chapter.words(view), *_figures(view, name)]:
            parts.append(Section(name, chapter.title, inside))
    return document(
        view.name,
        parts,
        eyebrow="Fine-tuning report",
        title=f"{view.name} · fine-tuning report",
        below=" · ".join(_state(view)),
    )


def _state(view: StudyView) -> list[str]:
    """Say what was tuned, whether it was confirmed, and how much was tried."""
    if view.confirmation:
        state = "confirmed in part" if view.unconfirmed else "confirmed"
    else:
        state = "running" if view.in_state(TrialState.RUNNING) else "not confirmed yet"
    if not view.spec:
        return [state, plural(len(view.trials), "trial")]
    what = f"{view.spec.get('model')} on {view.spec.get('data')}"
    return [what, state, f"{plural(view.evaluated, 'recipe')} evaluated"]


def _figures(view: StudyView, chapter: str) -> list[Part]:
    """Draw a chapter's figures; below them, once each, why the others have nothing to show."""
    drawn: list[Part] = []
    missing: dict[str, Part] = {}
    for figure in all_figures():
        if figure.chapter == chapter:
            try:
                drawn.append(figure.part(view))
            except DoesNotApply:
                continue
            except NothingToShow as nothing:
                missing[str(nothing)] = Text(str(nothing), "none")
    return [*drawn, *missing.values()]
