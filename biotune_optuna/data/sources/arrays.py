"""Images already in memory: numpy arrays, tensors, lists of pictures or paths, and the digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from biotune_optuna.data.decode import (
    DECODE_ERRORS,
    array_to_image,
    decode_image,
    first_line,
    read_bytes,
    to_rgb,
)
from biotune_optuna.data.identity import content_hash
from biotune_optuna.data.sources.image_source import ImageSource
from biotune_optuna.data.sources.scan import check_unchanged, scan_files
from biotune_optuna.errors import DataError

_COMPLETE = "biuUS"  # kinds of NumPy's types without a value for "missing"
_EXACT = 2**53  # whole numbers below are exact in float64


def open_digits() -> ImageSource:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, ten classes; needs no network."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 17 grey levels, 0 to 16.
    pixels = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    return open_array(pixels, digits.target, name="digits")


def open_array(
    images: Any,
    labels: Any,
    *,
    name: str = "array",
    classes: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
) -> ImageSource:
    """Open an array or tensor of images.

    Args:
        images: Shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1, 3 or 4. uint8, bool or
            uint16, each over its full range; or floats, in [0, 1] or else in [0, 255].
        labels: N labels, numbers or strings.
        name: Name of the data set.
        classes: Class names that ``labels`` index; default one class per label that occurs.
        splits: Part of each image, see :class:`ImageSource`.

    Raises:
        DataError: Shape, type or values are none of these.
    """
    pixels = _pixels(_as_array(images, "images"))
    indices, found = class_names(labels, len(pixels))
    if classes is not None:
        indices, found = np.asarray(labels, dtype=np.int64), tuple(classes)
    hashes = [_array_hash(image) for image in pixels]

    def read(index: int) -> Image.Image:
        image = pixels[index]  # perhaps a view of the caller's array
        check_unchanged(_array_content(image), hashes[index], str(index))
        return array_to_image(image)

    return ImageSource(
        read,
        name=name,
        classes=found,
        labels=indices,
        ids=[str(index) for index in range(len(pixels))],
        content_hashes=hashes,
        splits=splits,
    )


def open_sequence(
    images: Sequence[Any], labels: Any, *, skip_bad_images: bool = False, name: str = "list"
) -> ImageSource:
    """Open a list of paths or of PIL pictures.

    Args:
        images: All paths, or all pictures.
        labels: One label each, numbers or strings.
        skip_bad_images: Leave out files that are no readable image instead of refusing them.
        name: Name of the data set.

    Raises:
        DataError: Neither paths nor pictures, labels do not fit, or a bad image.
    """
    images = list(images)
    indices, classes = class_names(labels, len(images))
    if all(isinstance(image, Image.Image) for image in images):
        return _open_pictures(images, indices, classes, name)
    if all(isinstance(image, (str, Path)) for image in images):
        paths = [Path(image) for image in images]
        return open_files(
            paths,
            [str(path) for path in paths],
            name=name,
            classes=classes,
            labels=indices,
            skip_bad_images=skip_bad_images,
        )
    if any(isinstance(image, np.ndarray) for image in images):
        raise DataError(f"{name}: stack the arrays into one array of shape (N, H, W, 3)")
    kinds = ", ".join(sorted({type(image).__name__ for image in images}))
    raise DataError(f"{name}: give all images as paths or all as PIL pictures, not {kinds}")


def open_files(
    paths: Sequence[Path],
    ids: Sequence[str],
    *,
    name: str,
    classes: Sequence[str],
    labels: NDArray[np.int64],
    splits: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    skip_bad_images: bool = False,
    skipped: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> ImageSource:
    """Open image files whose labels are known, checking each of them.

    Args:
        paths: The files.
        ids: What to call each of them.
        name: Name of the data set.
        classes: Class names that ``labels`` index.
        labels: Class index per file.
        splits: Part of each file, see :class:`ImageSource`.
        groups: Group of each file, see :class:`ImageSource`.
        skip_bad_images: Leave out files that are no readable image instead of refusing them.
        skipped: Lines about what was left out before.
        notes: See :class:`ImageSource`.

    Raises:
        DataError: A bad image, unless they are skipped.
    """
    sound, digests, problems = scan_files(
        list(zip(ids, paths, strict=True)), skip_bad_images=skip_bad_images
    )

    def read(index: int) -> Image.Image:
        shown = ids[sound[index]]
        content = read_bytes(paths[sound[index]], name=shown)
        check_unchanged(content, digests[index], shown)
        return decode_image(content, name=shown)

    return ImageSource(
        read,
        name=name,
        classes=classes,
        labels=labels[sound],
        ids=[ids[index] for index in sound],
        content_hashes=digests,
        splits=None if splits is None else [splits[index] for index in sound],
        groups=None if groups is None else [groups[index] for index in sound],
        skipped=[*skipped, *problems],
        notes=notes,
    )


def class_names(labels: Any, count: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Turn labels into class indices and class names, numbers in numeric order.

    Args:
        labels: ``count`` numbers or strings.
        count: Number of images.

    Raises:
        DataError: Labels are missing, of another length, or not one value per image.
    """
    if labels is None:
        raise DataError("images in memory need labels: one number or string per image")
    check_labels(labels)
    values = _as_array(labels, "labels")
    if values.ndim != 1 or len(values) != count:
        raise DataError(f"labels of shape {values.shape} do not fit {count} images")
    are_whole = values.dtype.kind != "f" or (
        np.isfinite(values).all() and np.array_equal(values, np.rint(values))
    )
    if not are_whole:
        raise DataError("labels are not whole numbers; regression targets cannot be classified")
    if values.dtype.kind == "O" and all(isinstance(one, (int, np.integer)) for one in values):
        values = np.array(values.tolist())
    names, indices = np.unique(
        values if values.dtype.kind in "iubf" else values.astype(str), return_inverse=True
    )
    return indices.astype(np.int64), label_names(names)


def check_labels(labels: Any, what: str = "labels") -> None:
    """Refuse labels that are missing, and text among numbers, of which NumPy makes text.

    Raises:
        DataError: There is one; its position is named.
    """
    if isinstance(labels, np.ndarray) and labels.dtype.kind in _COMPLETE:
        return
    if not isinstance(labels, (list, tuple)):
        labels = _as_array(labels, "labels").ravel().tolist()
    first: dict[bool, int] = {}
    for position, label in enumerate(labels):
        if _is_missing(label):
            raise DataError(f"{what}: no label at position {position}; give each image one")
        first.setdefault(isinstance(label, str), position)
    if len(first) > 1:
        found = " and ".join(f"{labels[i]!r} at position {i}" for i in first.values())
        raise DataError(f"{what}: {found}; give all labels as numbers or all as text")


def _is_missing(label: Any) -> bool:
    """Whether a label is None, NaN, or what pandas has for them."""
    try:
        return label is None or bool(label != label)  # noqa: PLR0124
    except TypeError:  # pandas.NA is not even comparable
        return True
    except ValueError:  # an array
        return False


def label_names(labels: NDArray[Any]) -> tuple[str, ...]:
    """Class names of distinct labels, in their order: ``"1"`` for 1, 1.0 and "1" alike."""
    if labels.dtype.kind == "f" and (np.abs(labels) < _EXACT).all():
        labels = labels.astype(np.int64)
    return tuple(str(label) for label in labels.tolist())


def _open_pictures(
    images: list[Image.Image], labels: NDArray[np.int64], classes: tuple[str, ...], name: str
) -> ImageSource:
    hashes = []
    for index, image in enumerate(images):
        try:
            hashes.append(_array_hash(np.asarray(to_rgb(image))))
        except DECODE_ERRORS as error:  # a lazy picture is read only now
            raise DataError(f"picture {index} cannot be read: {first_line(error)}") from None

    def read(index: int) -> Image.Image:
        picture = to_rgb(images[index])
        check_unchanged(_array_content(np.asarray(picture)), hashes[index], str(index))
        return picture

    return ImageSource(
        read,
        name=name,
        classes=classes,
        labels=labels,
        ids=[str(index) for index in range(len(images))],
        content_hashes=hashes,
    )


def _as_array(values: Any, what: str) -> NDArray[Any]:
    if hasattr(values, "detach"):  # a torch tensor; torch need not be imported to read one
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind == "O" and what == "images":
        raise DataError("images are of different shapes; give a list of PIL pictures instead")
    return array


def _pixels(images: NDArray[Any]) -> NDArray[np.uint8]:
    placed = channels_last(images)
    if placed is None:
        raise DataError(
            f"images of shape {images.shape} are none of (N, H, W), (N, H, W, C) and (N, C, H, W) "
            "with 1, 3 or 4 channels"
        )
    if placed.dtype == np.uint16:
        return np.rint(placed / np.float32(257.0)).astype(np.uint8)
    is_unit = placed.dtype.kind == "f" and placed.size and placed.max() <= 1
    pixels = to_uint8(placed, 255.0 if is_unit else 1.0)
    if pixels is None:
        low, high = images.min(), images.max()
        cure = ""
        if -1 <= low < 0 < high <= 1:
            cure = "; of values in [-1, 1] give (images + 1) / 2"
        raise DataError(
            f"image values of type {images.dtype} from {low} to {high}: expected "
            f"uint8, or values within [0, 1] or [0, 255]{cure}"
        )
    return pixels


def channels_last(images: NDArray[Any]) -> NDArray[Any] | None:
    """Return images as (N, H, W, C).

    Args:
        images: Shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1, 3 or 4.

    Returns:
        None for images of another shape.
    """
    if images.ndim == 3:
        return images[..., np.newaxis]
    if images.ndim == 4 and images.shape[3] in {1, 3, 4}:
        return images
    if images.ndim == 4 and images.shape[1] in {1, 3, 4}:
        return images.transpose(0, 2, 3, 1)
    return None


def to_uint8(images: NDArray[Any], scale: float = 1.0) -> NDArray[np.uint8] | None:
    """Return images as uint8, rounded; black and white for bool.

    Args:
        images: Of any type and shape.
        scale: What a value of 1 stands for in [0, 255].

    Returns:
        None if values are no numbers, or lie outside of [0, 255] when scaled.
    """
    if images.dtype == np.uint8 or not images.size:
        return images.astype(np.uint8, copy=False)
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255)
    if images.dtype.kind not in "iuf":
        return None
    scaled = images * scale
    if not (scaled.min() >= 0 and scaled.max() <= 255):  # catches NaN too
        return None
    pixels: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return pixels


def _array_hash(image: NDArray[np.uint8]) -> str:
    return content_hash(_array_content(image))


def _array_content(image: NDArray[np.uint8]) -> bytes:
    image = np.ascontiguousarray(image)
    return repr(image.shape).encode() + image.tobytes()
