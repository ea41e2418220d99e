"""A study small enough for tests and real throughout: digit images and a tiny timm model."""

from __future__ import annotations

from typing import Any

from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.study.spec import StudySpec


def tiny_spec(**changes: Any) -> StudySpec:
    options: dict[str, Any] = {
        "model": "test_efficientnet",
        "data": "digits",
        "weights": "none",
        "image_size": 32,
        "crop_pct": 1.0,
        "train_size": 60,
        "val_size": 40,
        "test_fraction": 0.1,
        "n_seeds": 2,
        "lr": (1e-3, 3e-2),
        "train": TrainSettings(epochs=2, batch_size=20),
    }
    return StudySpec(**(options | changes))
