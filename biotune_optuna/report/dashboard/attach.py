"""Keeps what optuna-dashboard shows of a study up to date while the study runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from biotune_optuna.errors import StorageError
from biotune_optuna.report.dashboard.artifacts import (
    artifact_store,
    attach_model,
    attach_trial_artifacts,
)
from biotune_optuna.report.dashboard.serve import default_artifact_dir, refresh_study
from biotune_optuna.schema import TrialRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import optuna
    from optuna.artifacts import FileSystemArtifactStore
    from optuna.trial import FrozenTrial

__all__ = ["Attachments"]

logger = logging.getLogger(__name__)


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

    def evaluated(self, trial: optuna.Trial, confusion: Sequence[Sequence[int]] | None) -> None:
        """Attaches curves, recipe and confusion matrix to a trial that is about to end."""
        if self._store is None:
            return
        try:
            attach_trial_artifacts(
                trial.study, trial, self._store, confusion=confusion, classes=self._classes
            )
        except Exception:
            logger.warning("trial %d carries no artifacts", trial.number, exc_info=True)

    def trial_finished(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Renews figures and note when a generation has ended."""
        current = TrialRecord(trial).generation
        if current != self._generation:
            self._generation = current
            self._renew(study)

    def finished(self, study: optuna.Study, model: Path, trial: int | None) -> None:
        """Attaches the exported model and renews everything.

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

    def _renew(self, study: optuna.Study, *, force: bool = False) -> None:
        try:
            refresh_study(study, force=force)
        except Exception:
            logger.warning("the dashboard's figures were not renewed", exc_info=True)
