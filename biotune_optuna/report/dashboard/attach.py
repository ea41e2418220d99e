"""What optuna-dashboard shows of a study, kept up to date while the study runs."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import textwrap
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import ExperimentalWarning

from biotune_optuna.errors import StorageError
from biotune_optuna.page.parts import Heading, markdown, texts
from biotune_optuna.page.style import at_height, safe
from biotune_optuna.report.dashboard.artifacts import (
    artifact_store,
    attach_model,
    attach_trial_artifacts,
)
from biotune_optuna.report.figures import NothingToShow, all_figures
from biotune_optuna.report.view import as_view
from biotune_optuna.report.words import search_sentences, verdict
from biotune_optuna.schema import SHOWN_KEY, TrialRecord
from biotune_optuna.storage.urls import default_artifact_dir

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna import Study, Trial
    from optuna.artifacts import FileSystemArtifactStore
    from optuna.trial import FrozenTrial

    from biotune_optuna.report.view import StudyView


logger = logging.getLogger(__name__)

_REST = 20  # times as long as a renewal took: a twentieth of a worker's time at most
_CARD_HEIGHT = 445  # pixels
_CARD_LETTERS = 62  # of a line of the title


class Attachments:
    """Artifacts of trials and the study's live figures.

    What fails here, a folder that cannot be made, a full disk or a figure, is logged and costs the
    study nothing else.

    Args:
        url: The storage, as in `biotune_optuna.open_storage`; artifacts lie beside an SQLite file.
        classes: Names of the classes.
    """

    def __init__(self, url: str | None, classes: Sequence[str]) -> None:
        self._store: FileSystemArtifactStore | None = None
        try:
            self._store = artifact_store(default_artifact_dir(url))
        except StorageError as error:
            logger.warning("trials carry no artifacts: %s", error)
        self._classes = tuple(classes)
        self._generation: int | None = None

    def evaluated(self, trial: Trial, confusion: Sequence[Sequence[int]] | None) -> None:
        """Attach curves, recipe and confusion matrix to a trial that is about to end."""
        if self._store is None:
            return
        try:
            attach_trial_artifacts(
                trial.study, trial, self._store, confusion=confusion, classes=self._classes
            )
        except Exception:
            logger.warning("trial %d carries no artifacts", trial.number, exc_info=True)

    def trial_finished(self, study: Study, trial: FrozenTrial) -> None:
        """Renew figures and note when a generation has ended."""
        current = TrialRecord(trial).generation
        if current != self._generation:
            self._generation = current
            self._renew(study)

    def finished(self, study: Study, model: Path, trial: int | None) -> None:
        """Attach the exported model and renew everything.

        Args:
            study: The study.
            model: Folder of the exported model.
            trial: Number of the winning trial; None where a rival won.
        """
        try:
            if self._store is not None:
                attach_model(study, self._store, model, trial=trial)
        except Exception:
            logger.warning("the model was not attached", exc_info=True)
        self._renew(study, force=True)

    def _renew(self, study: Study, *, force: bool = False) -> None:
        try:
            refresh_study(study, force=force)
        except Exception:
            logger.warning("the dashboard's figures were not renewed", exc_info=True)


def refresh_study(study: Study, *, force: bool = False) -> bool:
    """Renew what the dashboard shows of a study: figures, note, metric name.

    To be called when a generation ends. The cost stays small beside the trials' however long the
    study: the figures are bounded in size, and nothing is done until the study has grown by a
    hundredth and twenty times as long has passed as the last renewal took. Without
    optuna-dashboard installed nothing is done at all. A note that a person has edited is left
    alone.

    Args:
        study: A study of one objective.
        force: Renew even if little has changed.

    Returns:
        Whether anything was written.
    """
    if importlib.util.find_spec("optuna_dashboard") is None:
        return False
    from optuna_dashboard import save_plotly_graph_object

    view = as_view(study)
    shown = _shown(study)
    ended = sum(t.state.is_finished() for t in view.trials)
    begun = time.time()
    if not force and not _is_due(shown, ended, begun):
        return False
    live = {figure.dashboard: figure for figure in all_figures() if figure.dashboard is not None}
    for heading, figure in sorted(live.items()):
        with contextlib.suppress(NothingToShow):
            drawn = _fit_card(figure.draw(view, **figure.dashboard_limits), safe(figure.title))
            save_plotly_graph_object(study, drawn, graph_object_id=heading)
    note = _renew_note(study, view, shown.get("note"))
    if study.metric_names is None and view.spec:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([view.metric])
    mark = {"trials": ended, "note": note, "time": time.time(), "took": time.time() - begun}
    study._storage.set_study_system_attr(study._study_id, SHOWN_KEY, mark)
    return True


def _is_due(shown: dict[str, Any], ended: int, now: float) -> bool:
    passed = now - float(shown.get("time", 0.0))
    rested = passed < 0 or passed >= _REST * float(shown.get("took", 0.0))  # < 0: another clock
    return rested and ended - int(shown.get("trials", 0)) >= max(1, ended // 100)


def _fit_card(figure: go.Figure, title: str) -> go.Figure:
    """Fit a figure and the lines of its title, or of the one given, to the dashboard's cards."""
    text = str(figure.layout.title.text or title).replace("<br>", " ")
    lines = textwrap.wrap(text, _CARD_LETTERS)
    figure.update_layout(title_text="<br>".join(lines), title_font_size=14)
    return at_height(
        figure, min(_CARD_HEIGHT, figure.layout.height or _CARD_HEIGHT), title_lines=len(lines)
    )


def _shown(study: Study) -> dict[str, Any]:
    stored = study._storage.get_study_system_attrs(study._study_id).get(SHOWN_KEY)
    return dict(stored) if isinstance(stored, dict) else {}


def _renew_note(study: Study, view: StudyView, ours: str | None) -> str | None:
    """Write the note unless a person has edited it; return the mark of what we wrote."""
    from optuna_dashboard import get_note, save_note

    now = get_note(study)
    if now and _mark(now) != ours:
        return ours
    found = verdict(view)
    sentences = texts([*found.sentences, *search_sentences(view)])
    body = markdown([Heading(found.headline), *sentences]).strip()
    if body != now:
        save_note(study, body)
    return _mark(body)


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
