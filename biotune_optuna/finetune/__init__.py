"""Fine-tuning: recipes and rival methods trained on one model and one set of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biotune_optuna.finetune.prefix.cache import PrefixCache
    from biotune_optuna.finetune.results import EpochRecord, RunResult, StopTraining
    from biotune_optuna.finetune.settings import TrainSettings
    from biotune_optuna.finetune.trainer import Trainer
    from biotune_optuna.methods.registry import METHODS, Method, get_method

__all__ = [
    "METHODS",
    "EpochRecord",
    "Method",
    "PrefixCache",
    "RunResult",
    "StopTraining",
    "TrainSettings",
    "Trainer",
    "get_method",
]

_HOMES = {
    "METHODS": "methods",
    "Method": "methods",
    "get_method": "methods",
    "PrefixCache": "prefix_cache",
    "EpochRecord": "results",
    "RunResult": "results",
    "StopTraining": "results",
    "TrainSettings": "settings",
    "Trainer": "trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
