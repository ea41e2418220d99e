"""The tuned model as a folder that stands on its own, and predictions from such a folder.

The folder has timm's hub layout, so using it elsewhere needs nothing of this package::

    timm.create_model("local-dir:DIR", pretrained=True)
    timm.create_model(NAME, num_classes=N, checkpoint_path="DIR/model.safetensors")

Beside the weights lie the class names, the exact preprocessing, the recipe and a model card.
"""

from biotune_optuna.data.preprocessing import Preprocessing
from biotune_optuna.export.evaluate import Evaluation
from biotune_optuna.export.folder import export_model, load_exported
from biotune_optuna.export.predict import Prediction, Predictor, write_csv

__all__ = [
    "Evaluation",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "export_model",
    "load_exported",
    "write_csv",
]
