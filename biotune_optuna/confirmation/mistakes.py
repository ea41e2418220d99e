"""The test images that are most often wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.confirmation.record import Mistake
from biotune_optuna.data.thumbnail import thumbnail
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource


def list_mistakes(
    source: ImageSource,
    index: NDArray[np.int64],
    probs: NDArray[np.floating],
    others: Sequence[NDArray[np.floating]] = (),
    *,
    most: int,
) -> list[Mistake]:
    """Wrongly classified images: those that most models get wrong first, then the surest mistakes.

    Args:
        source: Images, labels and class names.
        index: Which images were classified, shape (n,).
        probs: The model's probabilities, shape (n, n_classes).
        others: Those of other models tested on the same images.
        most: How many are listed.

    Returns:
        One record each; its thumbnail is "" where the image cannot be read any more.
    """
    labels, predicted = source.labels[index], probs.argmax(1)
    times = np.sum([one.argmax(1) != labels for one in (probs, *others)], axis=0)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.lexsort((-probs[wrong, predicted[wrong]], -times[wrong]))]
    return [
        Mistake(
            id=source.ids[index[i]],
            label=source.classes[labels[i]],
            predicted=source.classes[predicted[i]],
            probability=round(float(probs[i, predicted[i]]), 4),
            wrong=int(times[i]),
            models=1 + len(others),
            thumbnail=_thumbnail(source, int(index[i])),
        )
        for i in wrong[:most]
    ]


def _thumbnail(source: ImageSource, index: int) -> str:
    """Return the image made small, "" where it cannot be read any more."""
    try:
        return thumbnail(source.load(index))
    except DataError:
        return ""
