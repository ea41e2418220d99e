"""The scan cache: which files were read and found sound; a large folder opens quickly again.

A file is recognised by its size, its times and its inode. Any write, rename or replacement changes
the status-change time, which no program can set, so a changed file is always read again; and what
the pixel cache decodes is compared with its hash anyhow.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL

from biotune_optuna.data.cache_dir import default_cache_dir
from biotune_optuna.data.decode import DECODING_VERSION

_logger = logging.getLogger("biotune_optuna.data")

_VERSION = [1, DECODING_VERSION]  # what was sound to another decoding may not be so here
# Below this, reading again is as quick as looking up.
_WORTHWHILE = 1000
# A file may change twice within one tick of its clock.
_TICK_NS = 2_000_000_000


class ScanCache:
    """Content hashes of sound files of one data set, from an earlier reading.

    Args:
        paths: All files of the data set.
        least: Keep nothing of data sets with fewer files.
    """

    def __init__(self, paths: Sequence[Path], *, least: int = _WORTHWHILE) -> None:
        self._file: Path | None = None
        self._known: dict[str, list[Any]] = {}
        self._fresh = False
        self._stamps = {str(path): _stamp(path) for path in paths} if len(paths) >= least else {}
        if self._stamps:
            folder = os.path.commonpath(map(os.path.abspath, self._stamps))
            place = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
            self._file = default_cache_dir() / "scans" / f"{place}.json"
            self._known = _load(self._file)

    def get(self, path: Path) -> str | None:
        """Return the hash of a file that has not changed since, None for any other."""
        stamp = self._stamps.get(str(path))
        entry = self._known.get(str(path))
        if stamp is None or entry is None or entry[:-1] != stamp:
            return None
        return str(entry[-1])

    def put(self, path: Path, digest: str) -> None:
        """Take in the hash of a file that was read and found sound."""
        stamp = self._stamps.get(str(path))
        if stamp is not None and max(stamp[1:3]) < time.time_ns() - _TICK_NS:
            self._known[str(path)] = [*stamp, digest]
            self._fresh = True

    def save(self) -> None:
        """Write what was put in; a cache that cannot be written is done without."""
        if self._file is None or not self._fresh:
            return
        known = {path: entry for path, entry in self._known.items() if path in self._stamps}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._file.parent, suffix=".tmp")
            with os.fdopen(handle, "w", encoding="utf-8") as text:
                json.dump({"version": _VERSION, "pillow": PIL.__version__, "files": known}, text)
            Path(name).replace(self._file)
        except OSError as error:
            _logger.debug("scan cache %s not written: %s", self._file, error)


def _stamp(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _load(file: Path) -> dict[str, list[Any]]:
    """Return what a file holds; nothing if it is damaged or of another version of Pillow."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["version"] != _VERSION or found["pillow"] != PIL.__version__:
            return {}
        entries = found["files"].items()
        return {path: one for path, one in entries if isinstance(one, list) and len(one) == 5}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
