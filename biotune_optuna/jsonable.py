"""Values as JSON knows them: NumPy's numbers as Python's, paths as text; files of JSON."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_LONGEST = 256 << 20


def plain_value(value: Any) -> Any:
    """NumPy scalars as Python's numbers, paths as text, sequences and arrays as tuples of these."""
    import numpy as np  # here: recipes are read, and methods named, without it

    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return _path_text(value)
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(map(plain_value, value))
    return value


def make_plain(record: DataclassInstance) -> None:
    """Make the fields of a frozen dataclass plain, while it is being made."""
    for field in dataclasses.fields(record):
        object.__setattr__(record, field.name, plain_value(getattr(record, field.name)))


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    """Read a text file that somebody else may have made.

    Args:
        path: The file.
        encoding: Of its text.

    Raises:
        OSError: It cannot be read, or is a pipe or device, which would never end.
        ValueError: It is longer than any that this package writes, or no such text.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file")
    if path.stat().st_size > _LONGEST:
        raise ValueError(f"it is longer than {_LONGEST >> 20} MiB")
    return path.read_text(encoding=encoding)


def read_json(path: str | Path) -> Any:
    """Read a JSON file that somebody else may have made.

    Args:
        path: The file.

    Raises:
        OSError: As `read_text`.
        ValueError: As `read_text`; or it is no JSON, or nested too deep.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _path_text(path: os.PathLike[Any]) -> str:
    """Text that is taken for a path wherever a name could stand as well."""
    text = os.fsdecode(path)
    return text if text[:1] in {"/", "~", "."} or Path(text).is_absolute() else f"./{text}"
