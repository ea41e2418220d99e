"""Where decoded pixels, downloads and notes about files are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """``$BIOTUNE_CACHE``, else ``biotune-optuna`` in the user's cache folder."""
    given = os.environ.get("BIOTUNE_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "biotune-optuna"
