"""BioTune on Optuna: evolutionary selective fine-tuning of vision models.

The names below are the public interface; everything else may change without notice. They are
imported when first used, so ``import biotune_optuna`` loads neither Optuna nor PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from biotune_optuna._version import __version__

if TYPE_CHECKING:
    from biotune_optuna.errors import (
        BioTuneError,
        DataError,
        ModelError,
        StorageError,
        StudyError,
    )
    from biotune_optuna.genome import Genome, GenomeSpace
    from biotune_optuna.recipe import BlockRecipe, Recipe

_HOME = {
    "BioTuneClassifier": "estimator",
    "BioTuneError": "errors",
    "BioTuneSampler": "sampler",
    "Block": "models.blocks",
    "BlockRecipe": "recipe",
    "DataError": "errors",
    "Genome": "genome",
    "GenomeSpace": "genome",
    "ModelError": "errors",
    "Recipe": "recipe",
    "StorageError": "errors",
    "StudyError": "errors",
    "StudySpec": "study.spec",
    "create_study": "study.study",
    "load_study": "study.study",
    "model_blocks": "models.blocks",
    "open_storage": "study.storage",
}

__all__ = [
    "BioTuneError",
    "BlockRecipe",
    "DataError",
    "Genome",
    "GenomeSpace",
    "ModelError",
    "Recipe",
    "StorageError",
    "StudyError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Imports a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
