"""scikit-learn's interface: `BioTuneClassifier`."""

from biotune_optuna.estimator.classifier import BioTuneClassifier
from biotune_optuna.estimator.inputs import InputError

__all__ = ["BioTuneClassifier", "InputError"]
