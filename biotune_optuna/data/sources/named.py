"""Public data sets by name, with the splits they were published with.

The nine data sets of the BioTune paper: eight over torchvision, which reads them from a local
folder or downloads them, and ISIC 2020, which is read from its local folder.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import logging
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from biotune_optuna.data.cache_dir import default_cache_dir
from biotune_optuna.data.sources.arrays import class_names, open_array, open_files
from biotune_optuna.data.sources.image_source import SPLIT_NAMES
from biotune_optuna.data.sources.scan import check_inside, path_of
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource


_logger = logging.getLogger("biotune_optuna.data")

_REACH_SECONDS = 5.0
_STALL_SECONDS = 30.0
# What torchvision raises where files are missing, cut off or empty.
_INCOMPLETE = (RuntimeError, OSError, ValueError, AssertionError, EOFError, IndexError)
_DIGITS = tuple("0123456789")


def split_root(name: str) -> tuple[str, Path | None]:
    """``"NAME:ROOT"`` as the name and the folder, None if there is none."""
    name, colon, root = name.partition(":")
    return name, path_of(root) if colon and root else None


def open_named(name: str, *, skip_bad_images: bool = False) -> ImageSource:
    """Open one of :data:`NAMED`, given as ``NAME`` or ``NAME:ROOT``.

    Args:
        name: The name, and the folder the data are in or are to be downloaded to; default
            ``datasets`` in the cache folder.
        skip_bad_images: Leave out files that are no readable image instead of refusing them.

    Raises:
        DataError: The data are not there and cannot be downloaded.
    """
    name, root = split_root(name)
    folder = default_cache_dir() / "datasets" if root is None else root
    return NAMED[name](name, folder, skip_bad_images)


def obtain(name: str, root: Path, url: str, build: Callable[..., Any]) -> Any:
    """Call a torchvision data set's constructor, first without, then with download.

    Args:
        name: What to call the data in an error.
        root: Folder of the data.
        url: Where they come from; asked first, so that a missing network is noticed in seconds.
        build: The constructor, called with ``download``.

    Raises:
        DataError: The data are not there and cannot be downloaded.
    """
    try:
        return build(download=False)
    except _INCOMPLETE as error:
        _logger.info("%s is not complete in %s: %s", name, root, error)
    try:
        _reach(url)
        root.mkdir(parents=True, exist_ok=True)
        with _stall_limit():
            return build(download=True)
    except _INCOMPLETE as error:
        reason = str(getattr(error, "reason", error)).splitlines()[:1] or [type(error).__name__]
        raise DataError(
            f"{name} is not complete in {str(root)!r} and cannot be downloaded from {url}: "
            f"{reason[0]}; give {name}:FOLDER with the folder that holds it"
        ) from None


def reachable(url: str) -> bool:
    """Whether a server answers, found out within seconds."""
    try:
        _reach(url)
    except OSError:
        return False
    return True


def _reach(url: str) -> None:
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - fixed http(s) addresses
    # Any answer will do, also that HEAD is not allowed.
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=_REACH_SECONDS).close()  # noqa: S310


@contextlib.contextmanager
def _stall_limit() -> Iterator[None]:
    """Torchvision downloads without a time limit; this is the only handle it leaves."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _file_based(kind: str, url: str) -> Callable[..., ImageSource]:
    """Torchvision data sets in three parts that keep each image in a file of its own."""

    def open_it(name: str, root: Path, skip_bad_images: bool) -> ImageSource:
        import torchvision.datasets

        paths: list[Path] = []
        labels: list[int] = []
        parts: list[str] = []
        dataset: Any = None
        maker = getattr(torchvision.datasets, kind)
        for split in SPLIT_NAMES:
            dataset = obtain(name, root, url, functools.partial(maker, root, split=split))
            # Items would come decoded; the files themselves are wanted.
            paths += [Path(path) for path in dataset._image_files]
            for path in paths[-len(dataset._labels) :]:
                check_inside(path, root.resolve(), path.name)
            labels += dataset._labels
            parts += [split] * len(dataset._labels)
        return open_files(
            paths,
            [path.relative_to(root).as_posix() for path in paths],
            name=name,
            # Older releases of torchvision do not know the names of the flowers.
            classes=getattr(dataset, "classes", None)
            or [f"class {number:03d}" for number in range(1, max(labels) + 2)],
            labels=np.asarray(labels, dtype=np.int64),
            splits=parts,
            skip_bad_images=skip_bad_images,
        )

    return open_it


def _array_based(
    kind: str, parts: dict[str, dict[str, Any]], url: str, classes: Sequence[str] | None = None
) -> Callable[..., ImageSource]:
    """Torchvision data sets that keep all images in a few arrays."""

    def open_it(name: str, root: Path, _skip_bad_images: bool) -> ImageSource:
        import torchvision.datasets

        maker = getattr(torchvision.datasets, kind)
        found = [
            obtain(name, root, url, functools.partial(maker, root, **options))
            for options in parts.values()
        ]
        return stack_parts(name, list(parts), found, classes)

    return open_it


def stack_parts(
    name: str, splits: Sequence[str], datasets: Sequence[Any], classes: Sequence[str] | None = None
) -> ImageSource:
    """One source of several torchvision data sets that hold arrays ``data``.

    Args:
        name: Name of the data set.
        splits: The part that each of them is.
        datasets: With ``data`` and ``targets`` or ``labels``.
        classes: Class names; default the data sets' own.
    """
    found = [d.targets if hasattr(d, "targets") else d.labels for d in datasets]
    labels = [np.asarray(one, dtype=np.int64) for one in found]
    return open_array(
        np.concatenate([np.asarray(dataset.data) for dataset in datasets]),
        np.concatenate(labels),
        name=name,
        classes=datasets[0].classes if classes is None else classes,
        splits=np.repeat(splits, [len(held) for held in labels]).tolist(),
    )


def _isic2020(name: str, root: Path, skip_bad_images: bool) -> ImageSource:
    """ISIC 2020's training images, benign or malignant, grouped by patient.

    The test images were published without labels, so the test part is held out of these.
    """
    tables = [*sorted(root.glob("*GroundTruth*.csv")), root / "train.csv"]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        raise DataError(
            f"{name} has no ISIC_2020_Training_GroundTruth.csv or train.csv in {str(root)!r}; "
            f"download it from challenge2020.isic-archive.com and give {name}:FOLDER"
        )
    places = ["train", "jpeg/train", "ISIC_2020_Training_JPEG/train", "ISIC_2020_Training_JPEG", ""]
    folder = next((root / p for p in places if any((root / p).glob("ISIC_*.jpg"))), None)
    if folder is None:
        raise DataError(f"{name}: no ISIC_*.jpg in {str(root)!r} or its folder train")
    try:
        with table.open(encoding="utf-8-sig", newline="") as text:
            rows = list(csv.DictReader(text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: {table.name} cannot be read: {error}") from None
    needed = {"image_name", "patient_id", "benign_malignant"}
    if not rows or not needed <= set(rows[0]):
        raise DataError(f"{name}: {table.name} lacks the columns {', '.join(sorted(needed))}")
    paths = [folder / f"{Path(row['image_name']).name}.jpg" for row in rows]
    for path in paths:
        check_inside(path, root.resolve(), path.name)
    labels, classes = class_names([row["benign_malignant"] for row in rows], len(rows))
    return open_files(
        paths,
        [path.relative_to(root).as_posix() for path in paths],
        name=name,
        classes=classes,
        labels=labels,
        groups=[row["patient_id"] or row["image_name"] for row in rows],
        skip_bad_images=skip_bad_images,
    )


_HALVES: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_NAMED_HALVES: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"

NAMED: dict[str, Callable[[str, Path, bool], ImageSource]] = {
    "flowers102": _file_based("Flowers102", f"{_VGG}/flowers/102/102flowers.tgz"),
    "aircraft": _file_based(
        "FGVCAircraft", f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"
    ),
    "dtd": _file_based("DTD", f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz"),
    "cifar10": _array_based(
        "CIFAR10", _HALVES, "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    ),
    "stl10": _array_based(
        "STL10", _NAMED_HALVES, "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
    ),
    "mnist": _array_based(
        "MNIST",
        _HALVES,
        "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz",
        _DIGITS,
    ),
    "usps": _array_based(
        "USPS",
        _HALVES,
        "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/usps.bz2",
        _DIGITS,
    ),
    "svhn": _array_based(
        "SVHN", _NAMED_HALVES, "http://ufldl.stanford.edu/housenumbers/train_32x32.mat", _DIGITS
    ),
    "isic2020": _isic2020,
}
"""Data sets of the paper's experiments by name."""
