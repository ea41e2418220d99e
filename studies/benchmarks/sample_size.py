"""How small a difference over the tasks would be seen, by the spread that earlier results had.

    python studies/benchmarks/sample_size.py [TABLE ...]

The tables default to studies/results.csv and studies/development.csv. Writes the part "sample size"
of docs/benchmarks/protocol.md; with tables given it prints the part instead.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from _parts import put

from biotune_optuna.compare import read_csv
from biotune_optuna.compare.over_tasks import Matrix, components, detectable
from biotune_optuna.page.parts import Markdown, Table, markdown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from biotune_optuna.compare import Row

ROOT = Path(__file__).parents[2]
TABLES = [ROOT / "studies" / f"{name}.csv" for name in ("results", "development")]
TASKS, REPEATS = 9, (3, 5, 8, 10)
RIVALS = {
    "full": "full fine-tuning",
    "full@budget": "the same, as many image passes",
    "lora": "LoRA",
    "layer-decay": "layer-wise decay",
    "linear-probe": "linear probe",
}


def part(rows: Sequence[Row]) -> str:
    """The section as Markdown."""
    table = []
    for rival, words in RIVALS.items():
        if rival not in {row.method for row in rows}:
            continue
        matrix = Matrix.of(rows, ("biotune", rival))
        within, between = components(matrix)
        seen = (
            f"{100 * detectable(within, spread, tasks=TASKS, repeats=n):.1f}"
            for n in REPEATS
            for spread in (None, between)
        )
        spreads = (f"{100 * one:.1f}" for one in (within, between))
        table.append((words, str(len(matrix.tasks)), *spreads, *seen))
    seen_with = (f"{n} repeats, {of}" for n in REPEATS for of in ("these tasks", "any tasks"))
    head = ("BioTune minus", "tasks", "within", "between", *seen_with)
    return markdown(
        [
            Markdown(f"""
                ## Sample size

                The least true mean difference, in points, that {TASKS} tasks would show in four of
                five such studies (two-sided, 5 %). *Within* is the standard deviation of the paired
                difference between repeats of a task, *between* that of the true differences of
                tasks. *These tasks* asks whether the mean over just these tasks differs from zero:
                only repeats add error. *Any tasks* takes the tasks as a sample of others.
            """),
            Table(head, table),
            Markdown("Made by `python studies/benchmarks/sample_size.py`."),
        ]
    )


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]]
    text = part([row for table in given or TABLES for row in read_csv(table)])
    if given:
        print(text)
    else:
        put("sample size", text, ROOT / "docs" / "benchmarks" / "protocol.md")
