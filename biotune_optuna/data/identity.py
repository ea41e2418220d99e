"""What makes two data sets the same for a study, in one place.

All that a value of a study depends on is in :func:`fingerprint`: which pictures there are, what
they are decoded to, their classes and the order of the classes (a metric may be of "the second
class"), the given parts and the groups. What no value depends on is not: the order of the images,
their names, the groups' names, the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from biotune_optuna.data.decode import DECODING_VERSION

_MARK = "2-"
"""What fingerprints begin with in which the order of the classes counts."""


def content_hash(content: bytes | memoryview) -> str:
    """Hexadecimal 128-bit digest of an image's content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fingerprint(
    content_hashes: Sequence[str],
    labels: Iterable[int],
    classes: Sequence[str],
    splits: Sequence[str] | None,
    groups: Sequence[str] | None,
    *,
    decoding: int = DECODING_VERSION,
) -> str:
    """Digest of all that makes a data set what it is.

    Args:
        content_hashes: Digest per image, of its content.
        labels: Class index per image.
        classes: Class names, in the order of the indices.
        splits: Part per image, None where no parts are given.
        groups: Group per image, None where all stand alone.
        decoding: Version of the decoding.
    """
    parts = [""] * len(content_hashes) if splits is None else splits
    images = [
        [content, classes[label], part]
        for content, label, part in zip(content_hashes, labels, parts, strict=True)
    ]
    members: dict[str, list[list[str]]] = {}
    for group, image in zip(groups or (), images, strict=groups is not None):
        members.setdefault(group, []).append(image)
    # As JSON, no name can be mistaken for two, or for a part.
    text = json.dumps(
        {
            "decoding": decoding,
            "classes": list(classes),
            "images": sorted(images),
            "groups": None if groups is None else sorted(sorted(one) for one in members.values()),
        }
    )
    return _MARK + hashlib.sha256(text.encode()).hexdigest()[:32]


def early_fingerprint(
    content_hashes: Sequence[str],
    labels: Iterable[int],
    classes: Sequence[str],
    splits: Sequence[str] | None,
    groups: Sequence[str] | None,
) -> str:
    """Digest as the first studies stored it: neither order of classes nor decoding is in it.

    Args:
        content_hashes: See :func:`fingerprint`; so are the others.
        labels: See there.
        classes: See there.
        splits: See there.
        groups: See there.
    """
    parts = [""] * len(content_hashes) if splits is None else splits
    names = [classes[label] for label in labels]
    lines = sorted(map("\t".join, zip(content_hashes, names, parts, strict=True)))
    members: dict[str, list[str]] = {}
    for group, content in zip(groups or (), content_hashes, strict=groups is not None):
        members.setdefault(group, []).append(content)
    held = sorted(content_hash("".join(sorted(one)).encode()) for one in members.values())
    text = "\n".join([*sorted(classes), "", *lines, "", *held])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_early(stored: str) -> bool:
    """Say whether a stored fingerprint is of the kind that :func:`early_fingerprint` gives."""
    return not stored.startswith(_MARK)
