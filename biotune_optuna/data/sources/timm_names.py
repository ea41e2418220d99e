"""Data sets by the names that ``timm.data.create_dataset`` reads: ``torch/`` and ``hfds/``.

What timm would stream or silently skip is read by position and checked here instead, because
splits, hashes and the pixel cache need to come back to every image.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.data.cache_dir import default_cache_dir
from biotune_optuna.data.decode import decode_image, first_line
from biotune_optuna.data.sources.arrays import class_names
from biotune_optuna.data.sources.folder import open_folder
from biotune_optuna.data.sources.image_source import ImageSource
from biotune_optuna.data.sources.named import obtain, reachable, split_root, stack_parts
from biotune_optuna.data.sources.parts import SPLIT_ALIASES
from biotune_optuna.data.sources.scan import check_and_hash, check_unchanged, scan_images
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from PIL import Image


_logger = logging.getLogger("biotune_optuna.data")

PREFIXES = ("torch/", "hfds/", "wds/", "hfids/", "tfds/")
"""Beginnings of the names that are passed to :func:`open_timm`."""

_TORCH_URLS = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz",
    "kmnist": "http://codh.rois.ac.jp/kmnist/dataset/kmnist/train-images-idx3-ubyte.gz",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
_HUB = "https://huggingface.co"


_LABELS = frozenset({"labels", "class", "classes", "target", "targets", "category", "y"})
"""Names of columns that are taken for the labels where none is called ``label``."""


class _Part(NamedTuple):
    split: str
    reader: Any
    targets: list[Any]


def open_timm(name: str, *, skip_bad_images: bool = False) -> ImageSource:
    """Open a data set by timm's name for it.

    Args:
        name: ``torch/NAME`` or ``torch/NAME:ROOT`` with torchvision's cifar10, cifar100, mnist,
            kmnist, fashion_mnist or image_folder; ``hfds/NAME`` with a name on the Hugging Face Hub
            (or a local folder that ``datasets`` loads).
        skip_bad_images: Leave out what is no readable image instead of refusing it.

    Raises:
        DataError: Unknown name, missing package, or data that are not there and cannot be
            downloaded.
    """
    prefix, _, rest = name.partition("/")
    if prefix == "torch":
        return _open_torch(name, rest, skip_bad_images)
    if prefix == "hfds":
        return _open_hub(name, rest, skip_bad_images)
    raise DataError(
        f"{name!r} is a stream, but training comes back to each image many times; unpack the "
        "images into one folder per class and give that folder, or use hfds/ or torch/"
    )


def _open_torch(name: str, rest: str, skip_bad_images: bool) -> ImageSource:
    from timm.data.dataset_factory import create_dataset

    kind, given = split_root(rest)
    kind = kind.lower()
    root = default_cache_dir() / "datasets" if given is None else given
    if kind in {"image_folder", "folder"}:
        return open_folder(root, skip_bad_images=skip_bad_images)
    if kind not in _TORCH_URLS:
        raise DataError(
            f"{name!r} is unknown; torch/ is followed by {', '.join(_TORCH_URLS)} or image_folder"
        )
    found = [
        obtain(
            f"torch/{kind}",
            root,
            _TORCH_URLS[kind],
            functools.partial(create_dataset, f"torch/{kind}", root=str(root), split=split),
        )
        for split in ("train", "validation")
    ]
    # What timm calls the validation split is torchvision's test part.
    return stack_parts(kind, ["train", "test"], found)


def _open_hub(name: str, rest: str, skip_bad_images: bool) -> ImageSource:
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"{name!r} needs the package datasets; install it with: pip install datasets"
        )
    parts, unused = _hub_parts(name, rest)
    items = [(part.reader, index) for part in parts for index in range(len(part.targets))]
    ids = [f"{part.split}/{index}" for part in parts for index in range(len(part.targets))]

    def content(position: int) -> bytes:
        reader, index = items[position]
        try:
            with reader[index][0] as file:
                return bytes(file.read())
        except (OSError, TypeError, AssertionError, LookupError, ValueError) as error:
            raise DataError(
                f"image {ids[position]!r} cannot be read: {first_line(error)}"
            ) from None

    sound, digests, problems = scan_images(
        len(ids),
        lambda position: check_and_hash(content(position), ids[position]),
        skip_bad_images=skip_bad_images,
    )
    labels, classes = _hub_labels(parts)

    def read(index: int) -> Image.Image:
        shown, encoded = ids[sound[index]], content(sound[index])
        check_unchanged(encoded, digests[index], shown)
        return decode_image(encoded, name=shown)

    return ImageSource(
        read,
        name=rest.strip("/").replace("/", "-"),
        classes=classes,
        labels=labels[sound],
        ids=[ids[position] for position in sound],
        content_hashes=digests,
        splits=[ids[position].split("/")[0] for position in sound],
        skipped=[*unused, *problems],
    )


def _hub_labels(parts: list[_Part]) -> tuple[NDArray[np.int64], Sequence[str]]:
    """Class indices and names: of numbers those that the data set gives, of text its own.

    Only labels that occur are classes, as everywhere.
    """
    targets = [target for part in parts for target in part.targets]
    if not all(isinstance(target, int) for target in targets):
        return class_names(targets, len(targets))
    found, labels = np.unique(np.array(targets, dtype=np.int64), return_inverse=True)
    names = {index: label for label, index in (parts[0].reader.class_to_idx or {}).items()}
    return labels.astype(np.int64), [str(names.get(index, index)) for index in found.tolist()]


def _hub_parts(name: str, rest: str) -> tuple[list[_Part], list[str]]:
    """Return the labelled parts that a hub data set has, and a line for all that is not used."""
    datasets = importlib.import_module("datasets")
    damaged = importlib.import_module("datasets.exceptions").DatasetsError
    from timm.data.dataset_factory import create_dataset

    endpoint = os.environ.get("HF_ENDPOINT", _HUB)
    if not Path(rest).exists() and not reachable(endpoint):
        # What was downloaded before still opens; the rest fails at once instead of retrying.
        datasets.config.HF_HUB_OFFLINE = True
    try:
        known = datasets.get_dataset_split_names(rest)
        splits = _one_for_each_part(name, known)
        if not splits:
            raise DataError(f"{name!r} has no part train, validation or test, but {known}")
        features = datasets.load_dataset(rest, split=next(iter(splits.values()))).features
        keys = _columns(name, features, datasets)
        readers = [
            (part, create_dataset(name, root=None, split=split, **keys).reader)
            for part, split in splits.items()
        ]
        parts = [_Part(split, reader, list(reader.iter_targets())) for split, reader in readers]
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, damaged) as error:
        raise DataError(f"{name!r} cannot be loaded from {endpoint}: {first_line(error)}") from None
    # Test parts are often published with -1, or nothing, for every label.
    labelled = [part for part in parts if not any(map(_is_missing, part.targets))]
    if not labelled:
        raise DataError(f"{name!r} has no labelled train, validation or test part")
    unused = [f"split {split!r} is not used" for split in known if split not in splits.values()]
    for part in parts:
        if part not in labelled:
            unused += [f"'{part.split}/{i}' has no label" for i in range(len(part.targets))]
    return labelled, unused


def _columns(name: str, features: Mapping[str, Any], datasets: Any) -> dict[str, Any]:
    """Find the columns of the images and of the labels, as timm's reader wants them named.

    Raises:
        DataError: It is not clear which they are.
    """
    said = ", ".join(features)
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    image = "image" if "image" in features else images[0] if len(images) == 1 else None
    if image is None:
        why = f"{' and '.join(images)} are columns of images" if images else "no column of images"
        raise DataError(
            f"{name!r}: {why} among {said}; rename the one that is meant to 'image', as with"
            " dataset.rename_column"
        )
    rest = {key: kind for key, kind in features.items() if key != image}
    named = [key for key, kind in rest.items() if isinstance(kind, datasets.ClassLabel)]
    label = "label" if "label" in rest else None
    for found in (named, [key for key in rest if key.lower() in _LABELS]):
        label = label or (found[0] if len(found) == 1 else None)
    if label is None:
        raise DataError(
            f"{name!r}: none, or several, of the columns {said} may be the labels; rename the one"
            " that is meant to 'label', as with dataset.rename_column"
        )
    return {"input_key": image, "target_key": label}


def _one_for_each_part(name: str, splits: Sequence[str]) -> dict[str, str]:
    """Part to the hub's split: the first of those that mean the same part."""
    chosen: dict[str, str] = {}
    for split in splits:
        part = SPLIT_ALIASES.get(split)
        if part is not None and chosen.setdefault(part, split) != split:
            _logger.warning(
                "%s: %r is the %s part, %r is not used", name, chosen[part], part, split
            )
    return chosen


def _is_missing(target: Any) -> bool:
    return target is None or (isinstance(target, (int, float)) and not target >= 0)
