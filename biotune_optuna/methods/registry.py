"""The rivals by name: the files of this folder, other packages' entry points, and `register`."""

from __future__ import annotations

import functools
import importlib
import logging
import pkgutil
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final

from biotune_optuna.errors import BioTuneError

if TYPE_CHECKING:
    from biotune_optuna.methods.base import Method


_log = logging.getLogger("biotune_optuna.methods")

ENTRY_POINTS: Final = "biotune_optuna.methods"
"""Group of the entry points by which an installed package adds rivals; each names a `Method`."""

_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # lists of names have commas, "@budget" is appended
_found: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a rival, which then stands wherever rivals are named or run in this process.

    A package that is installed names its rivals as entry points of the group
    ``biotune_optuna.methods`` instead, and every command knows them.

    Args:
        method: The rival.

    Returns:
        The same.

    Raises:
        BioTuneError: If its name is no name, or another one's.
    """
    if not _NAME.fullmatch(method.name) or method.name == "biotune":
        raise BioTuneError(
            f"method name {method.name!r} is none; give small letters, digits and hyphens"
        )
    if _found.setdefault(method.name, method) is not method:
        raise BioTuneError(f"there is a method {method.name!r} already; give another name")
    return method


def methods() -> dict[str, Method]:
    """Return all rivals by name: the simple ones, the other ones of this package, further ones."""
    _load()
    return dict(_found)


def contender_words(name: str) -> str:
    """Return what a reader calls a contender: ``full fine-tuning``, ``linear probe``, ``trial 3``.

    Args:
        name: Its name; that of a rival is known here.
    """
    known = methods().get(name)
    return known.words.removeprefix("the ") if known else name


def get_method(name: str) -> Method:
    """Look a method up.

    Raises:
        BioTuneError: If there is none of that name.
    """
    known = methods()
    if name not in known:
        raise BioTuneError(f"method {name!r} is not one of {', '.join(known)}")
    return known[name]


@functools.cache
def _load() -> None:
    """Take in the files of this folder: what a confirmation may choose first, then by file."""
    names = [file.name for file in pkgutil.iter_modules([str(Path(__file__).parent)])]
    files = [importlib.import_module(f"{__package__}.{name}") for name in names]
    own = [method for file in files for method in getattr(file, "METHODS", ())]
    for method in sorted(own, key=lambda method: not method.in_confirmation):
        register(method)
    _load_installed()


def _load_installed() -> None:
    """Take in what other packages have."""
    for point in entry_points(group=ENTRY_POINTS):
        try:
            register(point.load())
        except Exception as error:  # noqa: BLE001 - another package's fault must not stop ours
            _log.warning("the method %r of another package is left out: %s", point.name, error)
