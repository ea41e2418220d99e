"""The smallest classifier that there is, and images as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from biotune_optuna import BioTuneClassifier, ConfirmPlan

TINY: dict[str, Any] = {
    "model": "test_efficientnet",
    "weights": "none",
    "image_size": 32,
    "n_trials": 2,
    "epochs": 1,
    "batch_size": 20,
    "study_params": {"n_seeds": 1, "lr": [1e-3, 3e-2]},
    "confirm": False,
    "device": "cpu",
    "random_state": 0,
}
PLAN = ConfirmPlan(top_k=1, n_runs=1, rates=(1e-2,))


def tiny(**changes: Any) -> BioTuneClassifier:
    return BioTuneClassifier(**(TINY | changes))


def as_files(images: np.ndarray, folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:03}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return [str(path) for path in paths]
