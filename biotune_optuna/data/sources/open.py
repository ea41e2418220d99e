"""Every way in: whatever names a set of labelled images becomes one :class:`ImageSource`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biotune_optuna.data import left_out
from biotune_optuna.data.sources.arrays import open_array, open_digits, open_sequence
from biotune_optuna.data.sources.folder import open_folder
from biotune_optuna.data.sources.image_source import ImageSource
from biotune_optuna.data.sources.manifest import open_manifest
from biotune_optuna.data.sources.named import NAMED, open_named
from biotune_optuna.data.sources.remote import is_remote, open_remote
from biotune_optuna.data.sources.scan import path_of
from biotune_optuna.data.sources.timm_names import PREFIXES, open_timm
from biotune_optuna.errors import DataError

_logger = logging.getLogger("biotune_optuna.data")


def open_images(
    data: Any, *, labels: Any = None, group_regex: str | None = None, skip_bad_images: bool = False
) -> ImageSource:
    r"""Open labelled images.

    Args:
        data: One of

            - ``"digits"``: scikit-learn's digits, built in;
            - a folder with one folder per class, with or without ``train``, ``val`` and ``test``
              above them;
            - a ``.csv`` file with columns ``path`` and ``label``, and optionally ``split`` and
              ``group``; paths are relative to the file;
            - the name of a public data set: ``flowers102``, ``aircraft``, ``dtd``, ``cifar10``,
              ``stl10``, ``mnist``, ``usps``, ``svhn``, ``isic2020``, each also as ``NAME:ROOT``
              with the folder it is, or is to be, stored in;
            - a URL of such a folder, or of an archive of one, that fsspec understands: ``s3://…``,
              ``gs://…``, ``https://….zip``; copied once a host into the cache;
            - a name that ``timm.data.create_dataset`` reads: ``torch/...`` or ``hfds/...``;
            - an array or tensor of images, a list of paths, or a list of PIL pictures, with
              ``labels``;
            - an :class:`ImageSource`.
        labels: One number or string per image, for images in memory or lists of paths.
        group_regex: Regular expression over the images' names; images with the same first capture
            (or match) are never separated by a split.
        skip_bad_images: Leave out, and list in ``skipped``, what cannot be read instead of refusing
            the data set.

    Returns:
        The images, labels and names.

    Raises:
        DataError: One line that says what is wrong and what would be right.
    """
    source = _open(data, labels, skip_bad_images)
    for note in source.notes:
        _logger.warning("%s: %s", source.name, note)
    if said := left_out.sentence(left_out.summary(source.skipped)):
        _logger.warning("%s: %s", source.name, said)
    return source if group_regex is None else source.with_groups(group_regex)


def _open(data: Any, labels: Any, skip_bad_images: bool) -> ImageSource:
    if not isinstance(data, (str, Path)):
        return _open_in_memory(data, labels, skip_bad_images)
    if labels is not None:
        raise DataError(f"labels are given together with {str(data)!r}, which has its own")
    if not os.fspath(data):
        raise DataError("the name of the data is empty; give a folder, a CSV file or a data set")
    name = str(data)
    if isinstance(data, str) and is_remote(name):
        return open_remote(name, skip_bad_images=skip_bad_images)
    path = path_of(name)
    if isinstance(data, str):
        if name == "digits":
            return open_digits()
        if name.partition(":")[0] in NAMED:
            return open_named(name, skip_bad_images=skip_bad_images)
        if name.lower().startswith(PREFIXES) and not Path(name).exists():
            return open_timm(name, skip_bad_images=skip_bad_images)
    if path.suffix.lower() in {".csv", ".tsv"}:
        return open_manifest(path, skip_bad_images=skip_bad_images)
    if not path.exists():
        raise DataError(
            f"no such folder, CSV file or data set: {name!r}; data sets known by name are digits, "
            f"{', '.join(NAMED)}, and names after torch/ or hfds/"
        )
    if path.is_file():
        raise DataError(
            f"{name!r} is a file, but neither .csv nor .tsv; give a folder with one folder per"
            " class, or a CSV file with the columns path and label (a folder of Parquet files is"
            " read as hfds/FOLDER)"
        )
    return open_folder(path, skip_bad_images=skip_bad_images)


def _open_in_memory(data: Any, labels: Any, skip_bad_images: bool) -> ImageSource:
    if isinstance(data, ImageSource):
        if labels is not None:
            raise DataError(f"labels are given together with {data.name!r}, which has its own")
        return data
    if isinstance(data, np.ndarray) and data.ndim == 1 and data.dtype.kind in "UO":
        data = data.tolist()  # of paths or pictures
    if hasattr(data, "__array_interface__") or hasattr(data, "detach"):
        return open_array(data, labels)
    if isinstance(data, Sequence) and len(data):
        return open_sequence(data, labels, skip_bad_images=skip_bad_images)
    raise DataError(
        f"data of type {type(data).__name__} are not understood; give a folder, a CSV file, a "
        "name, an array or a list of images"
    )
