"""BioTune against its rivals on many tasks: a resumable matrix, its statistics and its report."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biotune_optuna.compare.pages import write_comparison
    from biotune_optuna.compare.plan import Comparison, Contender
    from biotune_optuna.compare.rows import Row, read_csv, write_csv
    from biotune_optuna.compare.run import read_rows, run_comparison

_HOMES = {
    "Comparison": "plan",
    "Contender": "plan",
    "Row": "rows",
    "read_csv": "rows",
    "read_rows": "work",
    "run_comparison": "work",
    "write_comparison": "pages",
    "write_csv": "rows",
}

__all__ = [
    "Comparison",
    "Contender",
    "Row",
    "read_csv",
    "read_rows",
    "run_comparison",
    "write_comparison",
    "write_csv",
]


def __getattr__(name: str) -> Any:  # training and plotting load when they are needed
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
