"""Which number of a training says best what it is worth on test images?

    python studies/benchmarks/values.py

Reads the tables of real trainings that have a test (``landscapes.py`` made them) and writes
docs/benchmarks/values.md: for each number the rank correlation with the test score over all
recipes, and the test score of the recipe that it would choose among 28 drawn from the table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from experience import HERE, read_csv
from scipy.stats import spearmanr

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "values.md"
DRAWN = 28
DRAWS = 1000
NO_LOSS = 9.0
"""Cross-entropy of a training that diverged."""

Row = dict[str, str]


def _numbers(cell: str) -> list[float]:
    return [float(x) if x else NO_LOSS for x in cell.split(";")] if cell else []


def _at_best(row: Row, column: str) -> float:
    numbers, best = _numbers(row[column]), int(row["best_epoch"])
    return numbers[best - 1] if 0 < best <= len(numbers) else NO_LOSS


VALUES: dict[str, Callable[[Row], float]] = {
    "best epoch's accuracy": lambda row: float(row["score"]),
    "last epoch's accuracy": lambda row: (_numbers(row["curve"]) or [0.0])[-1],
    "mean of the last three": lambda row: float(np.mean((_numbers(row["curve"]) or [0.0])[-3:])),
    "cross-entropy, best epoch": lambda row: -_at_best(row, "nll"),
    "cross-entropy, temperature fitted": lambda row: -_at_best(row, "fitted"),
    "accuracy − 0.2 × the latter": lambda row: float(row["score"]) - 0.2 * _at_best(row, "fitted"),
}


def measure(path: Path) -> tuple[int, dict[str, tuple[float, float]]]:
    """Recipes of a table; for each value its rank correlation and the test of its choice."""
    rows = [row for row in read_csv(path)[1] if row["seed"] == "0"]
    tested = {r["place"]: float(r["score"]) for r in read_csv(path.parent / "test" / path.name)[1]
              if r["seed"] == "0"}  # fmt: skip
    test = np.array([tested[row["place"]] for row in rows])
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(len(rows))[:DRAWN] for _ in range(DRAWS)]
    found = {}
    for name, value in VALUES.items():
        values = np.array([value(row) for row in rows])
        chosen = [test[some[np.argmax(values[some])]] for some in drawn]
        found[name] = (float(spearmanr(values, test).statistic), float(np.mean(chosen)))
    return len(rows), found


def page(measured: dict[str, tuple[int, dict[str, tuple[float, float]]]]) -> str:
    """The page."""
    tasks = list(measured)
    lines = [
        "# What a trial's value is",
        "",
        "A trial's value is the score of its best epoch on the validation images. These tables ask "
        "whether another",
        "number of the same training says better what the recipe is worth on test images that "
        "nobody looked at.",
        "",
        f"Rank correlation with the test score over all recipes of a table, then the test score of "
        f"the best of {DRAWN} recipes",
        f"drawn from it ({DRAWS:,} draws). Command: `python studies/benchmarks/values.py`.",
        "",
    ]
    for index, what in enumerate(("Rank correlation", f"Test score of the best of {DRAWN}")):
        lines += [f"## {what}", "", "| value | " + " | ".join(tasks) + " | mean |"]
        lines.append("|---|" + "---:|" * (len(tasks) + 1))
        for name in VALUES:
            numbers = [measured[task][1][name][index] for task in tasks]
            cells = [f"{x:.3f}" for x in (*numbers, float(np.mean(numbers)))]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    counts = ", ".join(f"{task} {measured[task][0]}" for task in tasks)
    lines += [f"Recipes: {counts}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Measures all tables and writes the page."""
    paths = sorted((HERE / "test").glob("*.csv"))
    text = page({path.stem: measure(HERE / path.name) for path in paths})
    PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
