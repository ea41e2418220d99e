from ._version import __version__
from .confirmation.confirm import confirm
from .confirmation.plan import ConfirmPlan
from .confirmation.record import Confirmation
from .confirmation.winner import export_winner
from .data.sources.open import open_images
from .errors import BioTuneError, DataError, ModelError, StorageError, StudyError
from .estimator import BioTuneClassifier
from .evolution.settings import SearchSettings
from .export import Predictor, load_exported
from .finetune.settings import TrainSettings
from .genome import Genome, GenomeSpace
from .models.blocks import Block, model_blocks
from .recipe import BlockRecipe, Recipe
from .report.html import write_report
from .sampler.sampler import BioTuneSampler, rank_finished, slot_of
from .storage.open import open_storage
from .study.objective import Objective
from .study.setup import prepare
from .study.spec import StudySpec
from .study.study import TuningStudy, create_study, load_study

__all__ = [
    "BioTuneClassifier",
    "BioTuneError",
    "BioTuneSampler",
    "Block",
    "BlockRecipe",
    "ConfirmPlan",
    "Confirmation",
    "DataError",
    "Genome",
    "GenomeSpace",
    "ModelError",
    "Objective",
    "Predictor",
    "Recipe",
    "SearchSettings",
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
    "open_images",
    "open_storage",
    "prepare",
    "rank_finished",
    "slot_of",
    "write_report",
]
