"""From the predictions of a confirmation to probabilities that can be trusted.

A confirmation trains the winner on fresh seeds without the validation images, so what these runs
predict for them is honest: alone for a single model, as a mean for one of several members. Models
of the search have not been trained on them either, but were chosen by them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.confirmation.record import Confirmation, Training, model_name, trainings
from biotune_optuna.finetune.calibration import Calibration

if TYPE_CHECKING:
    from biotune_optuna.study.study import TuningStudy


_MOST_NUMBERS = 16_000  # 43 KB as text; an attribute of a study holds 64 KB on MySQL
FEWEST_IMAGES = 30
"""Validation images that say something about a temperature; with fewer none is fitted."""


def rows_kept(n_images: int, n_classes: int) -> NDArray[np.int64]:
    """Return which validation images' predictions are kept: all, or as many as there is room for.

    Args:
        n_images: Validation images.
        n_classes: Classes.

    Returns:
        Their places, evenly spaced; none where there would be too few.
    """
    room = min(n_images, _MOST_NUMBERS // n_classes)
    if room < FEWEST_IMAGES:
        return np.empty(0, dtype=np.int64)
    return np.arange(room) * n_images // room


def pack(probs: NDArray[np.float32]) -> str:
    """Return the predictions that are kept as text, to three digits; "" for none.

    Args:
        probs: Probabilities of all validation images, (n, C).
    """
    rows = rows_kept(*probs.shape)
    logs = np.log(np.maximum(probs[rows], 1e-7)).astype("<f2")
    return base64.b64encode(logs.tobytes()).decode()


def unpack(text: str, n_classes: int) -> NDArray[np.float64]:
    """Return what `pack` was given, (m, C); rows add up to 1.

    Args:
        text: What `pack` returned.
        n_classes: Classes.
    """
    logs = np.frombuffer(base64.b64decode(text), dtype="<f2").reshape(-1, n_classes)
    probs = np.exp(logs.astype(np.float64))
    found: NDArray[np.float64] = probs / probs.sum(axis=1, keepdims=True)
    return found


def calibrations(study: TuningStudy, confirmed: Confirmation) -> Mapping[str, Calibration]:
    """Return how far the winner's probabilities can be trusted.

    Args:
        study: The study.
        confirmed: Its confirmation.

    Returns:
        ``"single"`` of one training and ``"members"`` of several together; nothing where no
        predictions were kept: too few validation images, too many classes, an earlier version, or
        a confirmation that did not ask for the views.
    """
    setup, winner = study.setup, confirmed.winner
    known = trainings(study.study.user_attrs)

    def shown(one: Training) -> bool:
        return one.views == confirmed.views

    if confirmed.from_search:
        runs = [known.get(model_name(number)) for number in confirmed.from_search]
        texts = [one.probabilities for one in runs if one is not None and shown(one)]
        if len(texts) < len(runs):
            return {}
    else:
        seeds = [run.seed for run in setup.spec.confirm_runs(len(winner.scores))]
        runs = [known.get(f"{winner.name} | seed {seed}") for seed in seeds]
        key = winner.rebuild(setup.blocks).key()
        held = [one for one in runs if one is not None and one.key == key]
        texts = [one.probabilities for one in held if shown(one)]
    val, n_classes = setup.splits.val, len(setup.classes)
    rows = rows_kept(len(val), n_classes)
    probs = [unpack(text, n_classes) for text in texts if text]
    if not probs or any(len(one) != len(rows) for one in probs):
        return {}
    labels = setup.source.labels[val[rows]]
    alone = probs[:1] if confirmed.from_search else probs  # others are of other recipes
    together = np.average(probs, axis=0, weights=confirmed.weights or None)
    return {
        "single": Calibration.fit(np.tile(labels, len(alone)), np.concatenate(alone)),
        "members": Calibration.fit(labels, together),
    }
