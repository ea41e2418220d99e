"""WebDataset shards: tar files that hold, per key, an image and its class.

The tar headers are read once; afterwards every image is read by its position in the file.
"""

from __future__ import annotations

import json
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from biotune_optuna.data.decode import IMAGE_SUFFIXES, decode_image
from biotune_optuna.data.sources.arrays import class_names
from biotune_optuna.data.sources.folder import SPLIT_ALIASES
from biotune_optuna.data.sources.image_source import ImageSource
from biotune_optuna.data.sources.scan import (
    ScannedFile,
    check_inside,
    refuse_or_skip,
    scan_content,
    worker_count,
)
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["open_shards"]


@dataclass(frozen=True, slots=True)
class _Member:
    id: str
    shard: Path
    offset: int
    size: int
    label: int
    split: str

    def read(self) -> bytes:
        try:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise DataError(f"shard {str(self.shard)!r} cannot be read: {error.strerror}") from None


def open_shards(root: Path, *, skip_bad_images: bool = False) -> ImageSource:
    """Open a folder of WebDataset shards.

    Each sample is an image and either a ``.cls`` file with the number of its class or a ``.json``
    file with a field ``label``. The part of a shard is what ``info.json`` says, as timm reads it,
    or else the word train, val(idation) or test in its name; either all shards have one or none.

    Args:
        root: The folder.
        skip_bad_images: Leave out what is no readable image instead of refusing it.

    Raises:
        DataError: No shards, a shard that is no tar file, a sample without class or with two
            images, a shard without part beside others, a bad image.
    """
    if not root.is_dir():
        raise DataError(f"no such folder: {str(root)!r}; give wds/ and a folder of .tar shards")
    shards = sorted(root.glob("*.tar"))
    if not shards:
        raise DataError(f"no .tar shards in {str(root)!r}")
    members: list[_Member] = []
    for shard, split in zip(shards, _splits(root, shards), strict=True):
        check_inside(shard, root.resolve(), str(shard))
        members.extend(_samples(shard, split))

    def scan(member: _Member) -> ScannedFile:
        return scan_content(member.read(), member.id)

    with ThreadPoolExecutor(worker_count()) as pool:
        scanned = list(pool.map(scan, members, chunksize=16))
    sound, digests, problems = refuse_or_skip(
        scanned, skip_bad_images=skip_bad_images, name=str(root)
    )
    labels, classes = class_names(np.array([m.label for m in members], np.int64), len(members))
    kept = [members[index] for index in sound]
    return ImageSource(
        lambda index: decode_image(kept[index].read(), name=kept[index].id),
        name=root.resolve().name,
        classes=classes,
        labels=labels[sound],
        ids=[member.id for member in kept],
        content_hashes=digests,
        splits=[member.split for member in kept],
        skipped=problems,
    )


# Of the archive, and of labels that are no numbers, infinite, or nested without end.
_UNREADABLE = (tarfile.TarError, OSError, ValueError, TypeError, ArithmeticError, RecursionError)


def _samples(shard: Path, split: str) -> Iterator[_Member]:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                stem, _, ending = file.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                # Links and devices in a tar are not followed: only what lies in the shard counts.
                if not member.isreg():
                    continue
                if f".{ending.lower()}" in IMAGE_SUFFIXES:
                    if (first := images.setdefault(key, member)) is not member:
                        raise _two(shard, key, "images", first.name, member.name)
                elif ending in {"cls", "json"}:
                    content = tar.extractfile(member)
                    assert content is not None
                    label = _label(content.read(), ending)
                    if label is not None and labels.setdefault(key, label) != label:
                        raise _two(shard, key, "classes", labels[key], label)
    except _UNREADABLE as error:
        raise DataError(f"shard {str(shard)!r} cannot be read: {error}") from None
    for key, member in images.items():
        if key not in labels:
            raise DataError(f"shard {shard.name!r}: sample {key!r} has no class (.cls or .json)")
        yield _Member(
            f"{shard.name}/{member.name}",
            shard,
            member.offset_data,
            member.size,
            labels[key],
            split,
        )


def _two(shard: Path, key: str, what: str, one: str | int, other: str | int) -> DataError:
    return DataError(
        f"shard {shard.name!r}: sample {key!r} has two {what}, {one!r} and {other!r}; keep one"
    )


def _label(content: bytes, ending: str) -> int | None:
    if ending == "cls":
        return _whole(content.decode())
    found = json.loads(content)
    return _whole(found["label"]) if isinstance(found, dict) and "label" in found else None


def _whole(label: str | float) -> int:
    number = int(label)
    if isinstance(label, float) and label != number:
        raise ValueError(f"label {label} is not a whole number")
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"label {label} is too large")
    return number


def _splits(root: Path, shards: list[Path]) -> list[str]:
    """Return the part of each shard, or "" for all of them."""
    published = _published_splits(root)
    splits = [published.get(shard.name) or _split_of(shard.name) for shard in shards]
    if any(splits) and not all(splits):
        odd = shards[splits.index("")].name
        other = next(shard.name for shard, split in zip(shards, splits, strict=True) if split)
        raise DataError(
            f"shard {odd!r} in {str(root)!r} is of no part, but {other!r} is of one; put train, "
            "val or test into its name, or list it in info.json"
        )
    return splits


def _published_splits(root: Path) -> dict[str, str]:
    """Shard name to part, as ``_info.json`` or ``info.json`` lists them."""
    for name in ("_info.json", "info.json"):
        path = root / name
        if path.is_file():
            try:
                splits = json.loads(path.read_text(encoding="utf-8"))["splits"]
                return {
                    Path(file).name: SPLIT_ALIASES.get(str(split).lower(), "")
                    for split, held in splits.items()
                    for file in held["filenames"]
                }
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{str(path)!r} does not list splits of shards: {error!r}"
                ) from None
    return {}


def _split_of(name: str) -> str:
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_ALIASES]
    return SPLIT_ALIASES[words[0]] if words else ""
