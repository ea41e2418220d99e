"""BioTune on Optuna: evolutionary selective fine-tuning of vision models.

The names below are the public interface; everything else may change without notice. They are
imported when first used, so ``import biotune_optuna`` loads neither Optuna nor PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from biotune_optuna._version import __version__

if TYPE_CHECKING:
    from biotune_optuna.confirm.confirm import ConfirmPlan, confirm
    from biotune_optuna.confirm.winner import export_winner
    from biotune_optuna.data.sources.open import open_source
    from biotune_optuna.errors import BioTuneError, DataError, ModelError, StorageError, StudyError
    from biotune_optuna.estimator import BioTuneClassifier
    from biotune_optuna.export import Exported, load_exported
    from biotune_optuna.finetune.settings import TrainSettings
    from biotune_optuna.genome import Genome, GenomeSpace
    from biotune_optuna.models.blocks import Block, model_blocks
    from biotune_optuna.recipe import BlockRecipe, Recipe
    from biotune_optuna.report.html import write_report
    from biotune_optuna.sampler.sampler import BioTuneSampler, rank_finished, slot_of
    from biotune_optuna.storage.open import open_storage
    from biotune_optuna.study.objective import Objective
    from biotune_optuna.study.setup import prepare
    from biotune_optuna.study.spec import StudySpec
    from biotune_optuna.study.study import TuningStudy, create_study, load_study

_HOME = {
    "BioTuneClassifier": "estimator",
    "BioTuneError": "errors",
    "BioTuneSampler": "sampler",
    "Block": "models.blocks",
    "BlockRecipe": "recipe",
    "ConfirmPlan": "study.confirm",
    "DataError": "errors",
    "Exported": "export",
    "Genome": "genome",
    "GenomeSpace": "genome",
    "ModelError": "errors",
    "Objective": "study.objective",
    "Recipe": "recipe",
    "StorageError": "errors",
    "StudyError": "errors",
    "StudySpec": "study.spec",
    "TrainSettings": "finetune.settings",
    "TuningStudy": "study.study",
    "confirm": "study.confirm",
    "create_study": "study.study",
    "export_winner": "outcome",
    "load_exported": "export",
    "load_study": "study.study",
    "model_blocks": "models.blocks",
    "open_source": "data.sources",
    "open_storage": "study.storage",
    "prepare": "study.setup",
    "rank_finished": "sampler",
    "slot_of": "sampler",
    "write_report": "report.html",
}

__all__ = [
    "BioTuneClassifier",
    "BioTuneError",
    "BioTuneSampler",
    "Block",
    "BlockRecipe",
    "ConfirmPlan",
    "DataError",
    "Exported",
    "Genome",
    "GenomeSpace",
    "ModelError",
    "Objective",
    "Recipe",
    "StorageError",
    "StudyError",
    "StudySpec",
    "TrainSettings",
    "TuningStudy",
    "__version__",
    "confirm",
    "create_study",
    "export_winner",
    "load_exported",
    "load_study",
    "model_blocks",
    "open_source",
    "open_storage",
    "prepare",
    "rank_finished",
    "slot_of",
    "write_report",
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
