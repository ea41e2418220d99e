from .evaluate import Evaluation
from .folder import Preprocessing, export_model, load_exported
from .predict import Prediction, Predictor, write_csv

__all__ = [
    "Evaluation",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "export_model",
    "load_exported",
    "write_csv",
]
