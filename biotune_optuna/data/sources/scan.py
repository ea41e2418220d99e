"""Reading every image file of a data set once: content hash, damage, links that lead out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from biotune_optuna.data.decode import decode_image, read_bytes
from biotune_optuna.data.identity import content_hash
from biotune_optuna.data.sources.scan_cache import ScanCache
from biotune_optuna.errors import DataError

SKIP_HINT = (
    "skip such images with --skip-bad-images (skip_bad_images=True); biotune check lists all"
)
"""What to do about bad images, for the ends of messages."""


def scan_files(
    files: Sequence[tuple[str, Path]], *, skip_bad_images: bool
) -> tuple[list[int], list[str], list[str]]:
    """Hash and check files; as :func:`scan_images` for those not known from an earlier scan.

    Args:
        files: (name to show, path) of each file.
        skip_bad_images: See :func:`scan_images`.
    """
    cache = ScanCache([path for _, path in files])

    def digest(index: int) -> str:
        shown, path = files[index]
        found = cache.get(path)
        if found is None:
            found = check_and_hash(read_bytes(path, name=shown), shown)
            cache.put(path, found)
        return found

    try:
        return scan_images(len(files), digest, skip_bad_images=skip_bad_images)
    finally:
        cache.save()


def scan_images(
    count: int, digest: Callable[[int], str], *, skip_bad_images: bool
) -> tuple[list[int], list[str], list[str]]:
    """Hash and check images, several at a time.

    Args:
        count: Number of images.
        digest: Returns the content hash of one; raises `DataError` for a bad one.
        skip_bad_images: Leave bad images out instead of refusing the data set.

    Returns:
        Positions of the sound images, their content hashes, one line per image left out.

    Raises:
        DataError: An image is bad and ``skip_bad_images`` is false.
    """

    def scan(index: int) -> str | DataError:
        try:
            return digest(index)
        except DataError as error:
            return DataError(str(error))  # without the traceback, which holds the image

    with ThreadPoolExecutor(worker_count()) as pool:
        found = dict(enumerate(pool.map(scan, range(count))))
    problems = [str(one) for one in found.values() if isinstance(one, DataError)]
    if problems and not skip_bad_images:
        more = f" (and {len(problems) - 1} more bad images)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}; mend or remove it, or {SKIP_HINT}")
    sound = {index: one for index, one in found.items() if isinstance(one, str)}
    return list(sound), list(sound.values()), problems


def check_unchanged(content: bytes | memoryview, digest: str, shown: str) -> None:
    """Refuse what is not what was scanned: splits and pixel cache are keyed by what that was.

    Args:
        content: What was read now.
        digest: Content hash of what was scanned.
        shown: What to call the image.

    Raises:
        DataError: It has changed.
    """
    if content_hash(content) != digest:
        raise DataError(f"image {shown!r} has changed since the data were opened")


def check_and_hash(content: bytes, shown: str) -> str:
    """Return the content hash of an encoded image.

    Raises:
        DataError: It cannot be decoded.
    """
    decode_image(content, name=shown, draft=True)
    return content_hash(content)


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
