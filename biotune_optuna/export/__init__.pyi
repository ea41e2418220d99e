from .evaluate import Evaluation
from .folder import export_model, load_exported
from .predict import Prediction, Predictor, write_csv

__all__ = [
    "Evaluation",
    "Prediction",
    "Predictor",
    "export_model",
    "load_exported",
    "write_csv",
]
