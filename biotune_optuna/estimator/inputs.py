"""What may be given as ``X`` and ``y``, turned into what a study and a trained network take."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from biotune_optuna.data.sources.arrays import channels_last, check_labels, to_uint8
from biotune_optuna.data.sources.image_source import ImageSource
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.errors import DataError

Scale = float | None
"""What a float value of 1 stands for in [0, 255]: 255 for images in [0, 1], 1 for [0, 255]."""


class InputError(DataError, ValueError):
    """Images or labels that scikit-learn's conventions call a ValueError."""


def training_images(
    X: Any, y: ArrayLike | None, *, skip_bad_images: bool = False
) -> tuple[ImageSource, NDArray[Any], Scale]:
    """Labelled images for a study.

    Args:
        X: Images, as in `BioTuneClassifier.fit`.
        y: Labels, or None where ``X`` has its own.
        skip_bad_images: Leave out files that are no readable image instead of refusing them.

    Returns:
        The source; the labels' values in the order of the source's classes, sorted where ``y``
        gives them; and the scale of float images, None for others.

    Raises:
        DataError: If images or labels cannot be used.
    """
    if isinstance(X, (ImageSource, str)) or hasattr(X, "__fspath__"):
        if y is not None:
            raise InputError("y is given together with a source of images that has its own labels")
        source = open_images(X, skip_bad_images=skip_bad_images)
        return source, np.asarray(source.classes), None
    if y is None:
        raise InputError(
            "requires y to be passed, but the target y is None: give one label an image"
        )
    labels = _labels(y)
    X = _listed(X)
    scale = None
    if _is_array(X):
        array = _as_array(X)
        scale = _scale_of(array)
        X = _pixels(array, scale)
    elif not isinstance(X, Sequence):
        raise InputError(
            f"X is a {type(X).__name__}; give an array of images, a list of files or of PIL "
            "pictures, or an ImageSource"
        )
    if len(X) != len(labels):
        raise InputError(
            f"X has {len(X)} images and y {len(labels)} labels: inconsistent numbers of samples"
        )
    classes = np.unique(labels)
    if len(classes) < 2:
        raise InputError(
            f"y has {len(classes)} class{'' if len(classes) == 1 else 'es'}; "
            "a classifier needs at least 2"
        )
    return open_images(X, labels=labels, skip_bad_images=skip_bad_images), classes, scale


def _labels(y: ArrayLike) -> NDArray[Any]:
    """One label an image, none missing."""
    try:
        check_labels(y, "y")
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
    except (DataError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from error
    found: NDArray[Any] = labels
    return found


def images_of(X: Any, scale: Scale) -> Iterator[Any]:
    """Images to predict, one by one: paths, pictures or uint8 arrays.

    Args:
        X: Images, as in `BioTuneClassifier.predict_proba`.
        scale: What `training_images` found.

    Raises:
        DataError: If ``X`` cannot be images.
    """
    if isinstance(X, str) or hasattr(X, "__fspath__"):
        X = open_images(X)
    if isinstance(X, ImageSource):
        return (X.load(i) for i in range(len(X)))
    X = _listed(X)
    if _is_array(X):
        return iter(_pixels(_as_array(X), scale))
    if isinstance(X, Sequence):
        return iter(X)
    raise InputError(f"X is a {type(X).__name__}; give images in one of the ways fit takes them")


def _listed(X: Any) -> Any:
    """Names of files or pictures in an array or a pandas Series as a list; others as they are.

    Raises:
        InputError: If ``X`` is one picture.
    """
    if isinstance(X, Image.Image):
        raise InputError("X is one picture; give a list of pictures")
    values = X.to_numpy() if hasattr(X, "to_numpy") else X
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "UO":
        return values.tolist()
    return X


def _is_array(X: Any) -> bool:
    return hasattr(X, "__array_interface__") or hasattr(X, "detach")


def _as_array(X: Any) -> NDArray[Any]:
    """Images with channels last."""
    array = np.asarray(X.detach().cpu() if hasattr(X, "detach") else X)
    if array.dtype.kind not in "buif":
        raise InputError(f"X has values of type {array.dtype}; give uint8 or floats")
    if len(array) == 0:
        raise InputError("X has no images: 0 sample(s), while a minimum of 1 is required")
    if array.ndim == 3 and array.shape[2] in {3, 4} and array.shape[1] >= 16:
        raise InputError(f"X has the shape {array.shape}, that of one picture; give image[None]")
    placed = channels_last(array)
    if placed is None:
        raise InputError(
            f"X has the shape {array.shape}; images have (N, H, W), (N, H, W, C) or (N, C, H, W) "
            "with 1, 3 or 4 channels. Reshape your data if they are rows of pixels"
        )
    return placed


def _scale_of(array: NDArray[Any]) -> Scale:
    if array.dtype.kind != "f":
        return None
    return 255.0 if array.max() <= 1 else 1.0


def _pixels(array: NDArray[Any], scale: Scale) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "f":
        unit = array.size and array.max() <= 1 and (array != np.rint(array)).any()
        # fitted on integers, pictures or files: floats must be on their scale
        if scale is None and unit:
            raise InputError(
                "X has floats of at most 1, but the classifier was fitted on whole numbers, "
                "pictures or files; give values in [0, 255], the same scale in fit and predict"
            )
        if scale == 1.0 and unit:  # black, unless somebody has divided it by 255
            warnings.warn(
                "X has no value above 1, and is taken as nearly black: the classifier was fitted "
                "on floats in [0, 255]",
                stacklevel=2,
            )
    scale = scale if scale is not None and array.dtype.kind == "f" else 1.0
    pixels = to_uint8(array, scale)
    if pixels is None:
        low, high = array.min() * scale, array.max() * scale
        found = "NaN or infinity" if not np.isfinite([low, high]).all() else f"{low:g} to {high:g}"
        raise InputError(
            f"X has values of {found}; give uint8, or floats in [0, 1] or [0, 255], on the same "
            "scale in fit and predict"
        )
    return pixels
