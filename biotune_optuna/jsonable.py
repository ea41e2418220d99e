"""Values as JSON knows them: NumPy's numbers as Python's, paths as text."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def plain_value(value: Any) -> Any:
    """NumPy scalars as Python's numbers, paths as text, sequences and arrays as tuples of these."""
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


def _path_text(path: os.PathLike[Any]) -> str:
    """Text that is taken for a path wherever a name could stand as well."""
    text = os.fsdecode(path)
    return text if text[:1] in {"/", "~", "."} or Path(text).is_absolute() else f"./{text}"
