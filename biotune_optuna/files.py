"""Looking files up, and writing them so that nobody ever sees half of one."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from biotune_optuna.errors import BioTuneError, StorageError, StudyError


def check_lookup(path: Path, error: type[BioTuneError] = BioTuneError) -> None:
    """Refuse a path that cannot even be looked up; nothing need be there.

    Afterwards ``is_file`` and its like tell what is there; before, they might raise.

    Args:
        path: The path.
        error: What to raise.

    Raises:
        BioTuneError: If the name is too long or holds a null byte, a folder on the way may not be
            entered, or links lead round in a circle.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as why:
        reason = getattr(why, "strerror", None) or why
        raise error(f"{str(path)!r} cannot be looked up: {reason}; give another path") from None


def check_output(folder: Path) -> None:
    """Make a folder for results, unless it is there, and try whether files can be written to it.

    Args:
        folder: The folder; the ``--out`` of a command.

    Raises:
        StorageError: If it cannot be made or written to.
    """
    probe = folder / f".writable-{secrets.token_hex(6)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"output folder {folder} cannot be written ({error.strerror}); give another --out"
        ) from None


def replace_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file: a reader sees the old one or the new one, whole.

    What UTF-8 cannot hold (bytes of a file name that are no text) is written as an escape.

    A device, such as ``/dev/stdout``, and a pipe are written to, not replaced, and a link is
    followed.

    Args:
        path: The file; its folder must be there. The user's umask sets who may read it.
        text: Its content; line ends are kept.

    Raises:
        OSError: If it cannot be written; an earlier file is as it was.
    """
    path = path.resolve()  # a link stays one; what it leads to is replaced
    if path.exists() and not path.is_file():
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _write_through(path, text)
        return
    temporary = path.with_name(f".{path.name[:100]}-{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            stream.write(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_through(path: Path, text: str) -> None:
    """Write to a device or pipe as it is: renamed over, it would be gone for everybody."""
    # Without waiting for a reader of a pipe, who may never come.
    handle = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
    if hasattr(os, "set_blocking"):
        os.set_blocking(handle, True)
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        stream.write(text)


def replace_file(target: Path, text: str) -> Path:
    """Write a file so that a reader sees the old one or the new one.

    Args:
        target: The file; its folder is made where it is missing.
        text: Its content.

    Returns:
        The file.

    Raises:
        StudyError: If it cannot be written; an earlier file is as it was.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_text(target, text)
    except OSError as error:
        raise StudyError(
            f"{str(target)!r} cannot be written ({error.strerror or error});"
            " give a path in a folder you may write to"
        ) from error
    return target


def csv_cell(text: str) -> str:
    """Return a text as a table's cell that no spreadsheet takes for a formula.

    What begins like one gets an apostrophe in front, unless it is a number.

    Args:
        text: Such as a file's or a class's name.
    """
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
