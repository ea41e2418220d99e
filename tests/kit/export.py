"""Pictures of three shapes, and a trained model's export."""

import numpy as np
from PIL import Image

from biotune_optuna.export import export_model

NAME = "test_efficientnet"
SIZE = 48
CLASSES = ("circle", "stripes", "ünï|code*")


def picture(kind, seed):
    """A noisy picture of another size and shape each time."""
    rng = np.random.default_rng([kind, seed])
    height, width = rng.integers(40, 90, size=2)
    y, x = np.mgrid[:height, :width]
    shapes = ((y - height / 2) ** 2 + (x - width / 2) ** 2 < 200, x % 8 < 4, y % 8 < 4)
    noise = rng.integers(0, 60, size=(height, width, 3))
    return Image.fromarray((shapes[kind][..., None] * 180 + noise).astype(np.uint8))


def export(tuned, directory, **changes):
    arguments = {
        "model": tuned["model"],
        "model_name": NAME,
        "classes": CLASSES,
        "preprocessing": tuned["preprocessing"],
        "recipe": tuned["recipe"],
    }
    return export_model(directory, **{**arguments, **changes})


def probabilities(predictions):
    return np.stack([prediction.probabilities for prediction in predictions])
