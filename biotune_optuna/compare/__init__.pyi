from .pages import write_comparison
from .plan import Comparison, Contender
from .rows import Row, read_csv, write_csv
from .run import read_rows, run_comparison

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
