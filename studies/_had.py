"""Results that another database had: the cells of a comparison that need not be run again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from biotune_optuna.compare import Comparison, read_csv
from biotune_optuna.compare.cells import Board

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def take_over(table: Path, plan: Comparison, storage: BaseStorage) -> None:
    """Write the rows of a table into a storage as finished cells, where these are not there.

    Args:
        table: Results of the same comparison, as `write_csv` wrote them.
        plan: The comparison.
        storage: Where it is to go on.
    """
    rows = {(row.task, row.repeat, row.method): row for row in read_csv(table)}
    boards = {
        name: Board(storage, f"{plan.name}/{name}", plan.identity(spec))
        for name, spec in ((plan.task_name(spec), spec) for spec in plan.tasks)
    }
    for cell in plan.cells():
        row, board = rows.get((cell.task, cell.repeat, cell.contender.name)), boards[cell.task]
        if row and (trial := board.claim_cell(cell)):
            board.finish(trial, row.to_dict(), row.score)
