"""Reading every image file of a data set once: content hash, damage, links that lead out."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from biotune_optuna.data.decode import check_image, read_bytes
from biotune_optuna.data.sources.image_source import content_hash
from biotune_optuna.data.sources.scan_cache import ScanCache
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "SKIP_HINT",
    "ScannedFile",
    "check_inside",
    "path_of",
    "refuse_or_skip",
    "scan_content",
    "scan_files",
    "worker_count",
]

SKIP_HINT = "skip such images with --skip-bad-images (skip_bad_images=True)"
"""What to do about bad images, for the ends of messages."""

_logger = logging.getLogger("biotune_optuna.data")


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """What was found in one image file.

    Attributes:
        digest: Content hash, "" when the file could not even be read.
        problem: One line that names the file and what is wrong with it, None for a sound image.
    """

    digest: str
    problem: str | None


def scan_files(
    files: Sequence[tuple[str, Path]], *, skip_bad_images: bool, name: str
) -> tuple[list[int], list[str], list[str]]:
    """Hash and check files, several at a time.

    Args:
        files: (name to show, path) of each file.
        skip_bad_images: Leave unreadable images out instead of refusing the data set.
        name: Name of the data set.

    Returns:
        Positions of the sound files, their content hashes, one line per file left out.

    Raises:
        DataError: An image is unreadable and ``skip_bad_images`` is false.
    """
    cache = ScanCache([path for _, path in files])

    def scan(file: tuple[str, Path]) -> ScannedFile:
        shown, path = file
        known = cache.get(path)
        return _scan(shown, path) if known is None else ScannedFile(known, None)

    with ThreadPoolExecutor(worker_count()) as pool:
        scanned = list(pool.map(scan, files))
    for (_, path), found in zip(files, scanned, strict=True):
        if found.problem is None:
            cache.put(path, found.digest)
    cache.save()
    return refuse_or_skip(scanned, skip_bad_images=skip_bad_images, name=name)


def refuse_or_skip(
    scanned: Sequence[ScannedFile], *, skip_bad_images: bool, name: str
) -> tuple[list[int], list[str], list[str]]:
    """Decide on the bad among scanned images; results and errors as :func:`scan_files`."""
    problems = [file.problem for file in scanned if file.problem is not None]
    if problems and not skip_bad_images:
        more = f" (and {len(problems) - 1} more bad images)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}; mend or remove it, or {SKIP_HINT}")
    if problems:
        _logger.warning("%s: left out %d bad images, first: %s", name, len(problems), problems[0])
    sound = [index for index, file in enumerate(scanned) if file.problem is None]
    return sound, [scanned[index].digest for index in sound], problems


def scan_content(content: bytes, shown: str) -> ScannedFile:
    """Hash and check one encoded image."""
    try:
        check_image(content, name=shown)
    except DataError as error:
        return ScannedFile("", str(error))
    return ScannedFile(content_hash(content), None)


def _scan(shown: str, path: Path) -> ScannedFile:
    try:
        return scan_content(read_bytes(path, name=shown), shown)
    except DataError as error:
        return ScannedFile("", str(error))


def check_inside(path: Path, root: Path, shown: str) -> None:
    """Refuse a path that leads out of ``root`` through links or ``..``.

    Args:
        path: The file or folder.
        root: The data folder, already resolved.
        shown: What to call the path.

    Raises:
        DataError: It leads out.
    """
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # a link to itself
        raise DataError(f"{shown!r} is a link that leads nowhere") from None
    if not target.is_relative_to(root):
        raise DataError(
            f"{shown!r} leads out of the data folder to {str(target)!r}; put the file itself there"
        )


def path_of(text: str) -> Path:
    """Return the path that a text names, ``~`` expanded; nothing need be there.

    Raises:
        DataError: No file or folder can be looked up under that name.
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, no such user
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{text!r} cannot be looked up: {reason}") from None
    return path


def worker_count() -> int:
    """Return the number of threads for decoding: the cores this process may use, at most 16."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return max(1, min(16, cores))
