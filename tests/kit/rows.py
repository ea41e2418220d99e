"""Rows of a comparison that nobody ran, for tables and pages."""

from __future__ import annotations

from typing import Any

from biotune_optuna.compare.rows import Row


def make_row(method: str, repeat: int, score: float, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "task": "digits-tiny",
        "data": "digits",
        "model": "tiny",
        "weights": "none: random initialisation",
        "metric": "macro_accuracy",
        "classes": 10,
        "train": 60,
        "val": 20,
        "test": 40,
        "pool": 80,
        "official": 0,
        "repeat": repeat,
        "seed": repeat,
        "split": f"split{repeat}",
        "method": method,
        "score": score,
        "validation": score - 0.01,
        "trainable": 50.0,
        "forward": 3000,
        "backward": 2000,
        "seconds": 12.5,
        "evaluations": 5,
        "setting": "lr 0.01, decay 0.75",
    }
    return Row(**(values | changes))


def make_rows(scores: dict[str, list[float]], **changes: Any) -> list[Row]:
    return [
        make_row(method, repeat, score, **changes)
        for method, values in scores.items()
        for repeat, score in enumerate(values)
    ]
