"""Confirming, final and fold trainings of recipes with all that they predict, each made once."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from _trainings import log_probabilities, packed, test_part, unpacked
from sklearn.model_selection import StratifiedKFold

from biotune_optuna.data.views import shown
from biotune_optuna.finetune.device import ONE_AT_A_TIME
from biotune_optuna.finetune.feeds import probabilities

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from biotune_optuna import Recipe
    from biotune_optuna.study.setup import Setup

    Vector = NDArray[np.float64]

VIEWS = ("plain", "mirror", "zoom")
"""How a test image is shown: as it is, mirrored, its middle (7/8 of each side) enlarged."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """One training.

    Attributes:
        score: Macro accuracy on the images that it validated on; NaN without.
        best_epoch: Its best epoch.
        passes: Image passes, forward and backward.
        seconds: Wall time.
        val: Log-probabilities of the images that it validated on or left out, or None.
        test: Log-probabilities of the test images by view; empty if they were not looked at.
    """

    score: float
    best_epoch: int
    passes: int
    seconds: float
    val: Vector | None
    test: dict[str, Vector]


class Finals:
    """The trainings of a task, in a file of JSON lines.

    Args:
        setup: Images, model and trainer.
        path: The file.
        at_most: Trainings that are made here; asking for a further one raises `Missing`. With 0 the
            file is only read, so that another process may write it meanwhile.
    """

    def __init__(self, setup: Setup, path: Path, *, at_most: int) -> None:
        self.setup, self.path, self.at_most = setup, path, at_most
        self.made = 0
        self._rows: dict[str, Row] = {}
        if path.exists():
            text = path.read_bytes()
            whole = text.rfind(b"\n") + 1
            if at_most:
                with path.open("r+b") as file:  # a killed process may have left half a line
                    file.truncate(whole)
            rows = [json.loads(line) for line in text[:whole].splitlines()]
            self._rows = {row["key"]: row for row in rows}

    def __len__(self) -> int:
        """Return how many trainings there are."""
        return len(self._rows)

    def confirming(self, recipe: Recipe, seed: int) -> Made:
        """Trains on the training part and validates, as a confirmation does."""
        return self._get("confirm", recipe, seed)

    def final(self, recipe: Recipe, seed: int, epochs: int) -> Made:
        """Trains on training and validation images together, and predicts the test images."""
        return self._get("final", recipe, seed, epochs=epochs)

    def folded(self, recipe: Recipe, seed: int, epochs: int, fold: int, folds: int) -> Made:
        """The same without one of so many folds, which it predicts as well."""
        return self._get("fold", recipe, seed, epochs=epochs, fold=fold, folds=folds)

    def fold(self, fold: int, folds: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of the images to train on, and of those left out."""
        both, labels = self.everything, self.setup.source.labels
        cut = StratifiedKFold(folds, shuffle=True, random_state=0).split(both, labels[both])
        train, val = list(cut)[fold]
        return both[train], both[val]

    @property
    def everything(self) -> NDArray[np.int64]:
        """Positions of training and validation images."""
        splits = self.setup.splits
        return np.concatenate([splits.train, splits.val])

    def _get(self, kind: str, recipe: Recipe, seed: int, **more: int) -> Made:
        key = json.dumps([kind, *recipe.key(), recipe.fitted, seed, *more.values()])
        if key not in self._rows:
            if self.made >= self.at_most:
                raise Missing(key)
            row = {"key": key} | self._train(kind, recipe, seed, **more)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._rows[key] = row
            self.made += 1
        row, n = self._rows[key], len(self.setup.classes)
        return Made(
            **{name: row[name] for name in ("score", "best_epoch", "passes", "seconds")},
            val=unpacked(row["val"], n) if row["val"] else None,
            test={view: unpacked(text, n) for view, text in row["test"].items()},
        )

    def _train(
        self,
        kind: str,
        recipe: Recipe,
        seed: int,
        *,
        epochs: int = 0,
        fold: int = 0,
        folds: int = 0,
    ) -> Row:
        trainer, splits = self.setup.trainer, self.setup.splits
        if kind == "confirm":
            result = trainer.fit(recipe, splits.train, splits.val, seed=seed)
            val = result.probabilities
            test = {}
        else:
            train, left_out = (self.everything, None) if not folds else self.fold(fold, folds)
            result = trainer.fit(recipe, train, None, seed=seed, epochs=epochs)
            val = None if left_out is None else trainer.predict(left_out)
            test = {view: self._predict(view) for view in VIEWS}
        n_val = len(splits.val)
        guess = np.full((n_val, len(self.setup.classes)), 1 / len(self.setup.classes))
        val = guess if kind == "confirm" and val is None else val  # it has diverged
        return {
            "score": result.score,
            "best_epoch": result.best_epoch,
            "passes": result.images_forward + result.images_backward,
            "seconds": round(result.seconds, 3),
            "val": None if val is None else packed(_logs(val)),
            "test": {view: packed(_logs(probs)) for view, probs in test.items()},
        }

    def _predict(self, view: str) -> NDArray[np.float32]:
        trainer, images = self.setup.trainer, self.setup.images

        def forward(idx: NDArray[np.int64]) -> torch.Tensor:
            logits: torch.Tensor = trainer.model(shown(images.batch(idx), view))
            return logits

        with ONE_AT_A_TIME:
            trainer.model.eval()
            size = 2 * trainer.settings.batch_size
            return probabilities(forward, test_part(self.setup), size, trainer.device, None)[0]


class Missing(Exception):  # noqa: N818 - it asks for a training
    """A training that has not been made, and that this call may not make any more."""


def _logs(probs: NDArray[np.floating[Any]]) -> Vector:
    return log_probabilities(np.log(np.maximum(np.nan_to_num(probs), 1e-30)))
