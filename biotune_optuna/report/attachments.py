"""Keeps the dashboard's view of a study up to date while the study runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from biotune_optuna.report.artifacts import artifact_store, attach_trial_artifacts
from biotune_optuna.report.dashboard import refresh_study
from biotune_optuna.report.view import generation

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from biotune_optuna.study.setup import Setup

__all__ = ["Attachments"]

logger = logging.getLogger(__name__)


class Attachments:
    """Attaches artifacts to trials before they are told, and renews the study's figures.

        attachments = Attachments("study-artifacts", setup=study.setup)
        attachments.trial_recorded(trial)                 # before the trial is told
        study.search(60, callbacks=[attachments.trial_finished])

    Whatever fails here is logged and costs the study nothing else.

    Args:
        folder: Folder of artifacts, see `biotune_optuna.report.dashboard.default_artifact_dir`.
        setup: Data, model and trainer; with it trials carry the confusion matrix of their last run
            on its validation images, at the cost of one more pass over them.
    """

    def __init__(self, folder: str | Path, *, setup: Setup | None = None) -> None:
        self._store = artifact_store(folder)
        self._setup = setup
        self._generation = -1

    def trial_recorded(self, trial: Trial) -> None:
        """The attributes of a trial are written, its value is not yet told.

        Args:
            trial: The trial.
        """
        try:
            confusion, classes = self._confusion(trial)
            attach_trial_artifacts(
                trial.study, trial, self._store, confusion=confusion, classes=classes
            )
        except Exception:  # a full disk or a lost connection must not cost the trial
            logger.warning("trial %d carries no artifacts", trial.number, exc_info=True)

    def trial_finished(self, study: Study, trial: FrozenTrial) -> None:
        """A trial has ended; the figures are renewed when it is the first of a later generation.

        Args:
            study: The study.
            trial: The trial.
        """
        number = generation(trial)
        if number is not None and number <= self._generation:
            return
        if number is not None:
            self._generation = number
        self.renew(study)

    def renew(self, study: Study, *, force: bool = False) -> None:
        """Renew the study's figures and note.

        Args:
            study: The study.
            force: Renew even if little has changed, as at the end of a search.
        """
        try:
            refresh_study(study, force=force)
        except Exception:
            logger.warning("the dashboard's figures were not renewed", exc_info=True)

    def _confusion(self, trial: Trial) -> tuple[list[list[int]] | None, tuple[str, ...]]:
        runs = trial.user_attrs.get("runs")
        if self._setup is None or not runs or trial.user_attrs.get("diverged"):
            return None, ()
        _, index = self._setup.splits.run(runs[-1]["fold"])
        predicted = self._setup.trainer.predict(index).argmax(1)
        return _count(self._setup.source.labels[index], predicted, len(self._setup.classes)), tuple(
            self._setup.classes
        )


def _count(labels: Any, predicted: Any, n_classes: int) -> list[list[int]]:
    counts = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    found: list[list[int]] = counts.tolist()
    return found
