"""The images that a model gets most confidently wrong."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from biotune_optuna.data.image_source import ImageSource

__all__ = ["list_mistakes"]


def list_mistakes(
    source: ImageSource, index: NDArray[np.int64], probs: NDArray[np.floating], *, most: int
) -> list[dict[str, Any]]:
    """Wrongly classified images, the most confident mistakes first.

    Args:
        source: Images, labels and class names.
        index: Which images were classified, shape (n,).
        probs: Their predicted probabilities, shape (n, n_classes).
        most: How many are listed.

    Returns:
        ``{"id", "label", "predicted", "probability", "thumbnail"}`` each, JSON-ready.
    """
    labels, predicted = source.labels[index], probs.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-probs[wrong, predicted[wrong]], kind="stable")]
    return [
        {
            "id": source.ids[index[i]],
            "label": source.classes[labels[i]],
            "predicted": source.classes[predicted[i]],
            "probability": round(float(probs[i, predicted[i]]), 4),
            "thumbnail": _thumbnail(source.load(int(index[i]))),
        }
        for i in wrong[:most]
    ]


def _thumbnail(image: Image.Image, side: int = 56) -> str:
    """A small JPEG as a data URI."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    with io.BytesIO() as buffer:
        small.save(buffer, "JPEG", quality=75)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
