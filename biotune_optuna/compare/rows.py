"""Raw results: one row a cell, kept as a compact CSV table from which everything is rendered."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

from biotune_optuna.errors import DataError
from biotune_optuna.files import replace_file
from biotune_optuna.jsonable import read_text

BUDGET_SUFFIX = "@budget"
"""Ends the name of a method that was given the search's total budget."""


@dataclass(frozen=True, kw_only=True)
class _Where:
    """What was tuned, on which images, by which method.

    Attributes:
        task: Name of the task: data and model.
        data: The data set.
        model: The architecture.
        weights: Where the pre-trained weights came from.
        metric: Metric of all scores.
        classes: Number of classes.
        train: Training images.
        val: Validation images.
        test: Test images.
        pool: Images outside the test part, of which those to train and validate on are drawn;
            where the test part is drawn too, without a validation part that came with the data.
        official: 1 where the data come with a test part, so that repeats differ in their seeds; 0
            where each repeat is a fresh split.
        repeat: Number of the repeat, from 0.
        seed: Its study seed.
        split: What the test part holds, as a short digest: paired rows have the same.
        method: Name of the method.
    """

    task: str
    data: str
    model: str
    weights: str
    metric: str
    classes: int
    train: int
    val: int
    test: int
    pool: int
    official: int
    repeat: int
    seed: int
    split: str
    method: str

    @property
    def ratio(self) -> float:
        """Test images over all others: what part of the data two repeats test on alike."""
        return self.test / self.pool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a contender reached in one cell and what it cost.

    Attributes:
        score: Score on the test images, after the one final training.
        validation: Mean validation score of the chosen setting on fresh seeds.
        trainable: Share of the parameters that train, in percent.
        forward: Image passes forward, of everything that led to the model.
        backward: Image passes backward.
        seconds: Wall time of the same.
        evaluations: Settings or genomes that were evaluated.
        setting: What was chosen.
        members: Final trainings of it, on different seeds.
        together: Score of the mean of their probabilities on the same test images; NaN with one.
            The cost is that of all.
        cross_entropy: Of the one model on the test images, in nats; NaN where it was not kept.
        together_cross_entropy: The same of all members.
    """

    score: float
    validation: float
    trainable: float
    forward: int
    backward: int
    seconds: float
    evaluations: int
    setting: str
    members: int = 1
    together: float = nan
    cross_entropy: float = nan
    together_cross_entropy: float = nan

    @property
    def passes(self) -> int:
        """Image passes, forward and backward."""
        return self.forward + self.backward

    @property
    def delivered(self) -> float:
        """Score of the model that a user gets: of all members together."""
        return self.together if self.members > 1 else self.score

    @property
    def delivered_cross_entropy(self) -> float:
        """Its cross-entropy."""
        return self.together_cross_entropy if self.members > 1 else self.cross_entropy

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON-ready data, rounded to what a table needs."""
        data = dataclasses.asdict(self)
        for name, digits in _DIGITS.items():
            data[name] = round(data[name], digits)
        if self.members == 1:
            del data["members"]
        return {k: v for k, v in data.items() if k not in _MAY_LACK or isfinite(v)}


@dataclass(frozen=True, kw_only=True, order=True)
class Row(Outcome, _Where):
    """What one method reached in one repeat of one task: its columns, then those of `Outcome`."""


_FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Row)}
_MAY_LACK = ("members", "together", "cross_entropy", "together_cross_entropy")
"""Columns that a table has where some row says something by them."""
_DIGITS = {"trainable": 4, "seconds": 2} | dict.fromkeys(
    ("score", "validation", "together", "cross_entropy", "together_cross_entropy"), 6
)


def write_csv(rows: Iterable[Row], path: str | Path) -> Path:
    """Write rows as CSV, sorted, so that equal results are equal files.

    Args:
        rows: The rows.
        path: File to write.

    Raises:
        StudyError: If it cannot be written.
    """
    text = io.StringIO()
    order = sorted(rows, key=lambda row: (row.task, row.repeat, row.method))
    told = {name for row in order for name in row.to_dict()}
    columns = [name for name in _FIELDS if name in told or name not in _MAY_LACK]
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in order)
    return replace_file(Path(path), text.getvalue())


def read_csv(path: str | Path) -> list[Row]:
    """Read what `write_csv` wrote.

    Args:
        path: The file.

    Raises:
        DataError: If it is not there, lacks a column, holds something else than a number, or has
            two rows for one method in one repeat.
    """
    try:
        text = read_text(path, "utf-8-sig")
    except (OSError, ValueError) as error:
        is_text = not isinstance(error, UnicodeDecodeError)
        reason = getattr(error, "strerror", None) or (error if is_text else "it is no UTF-8 text")
        raise DataError(f"results {str(path)!r} cannot be read: {reason}") from None
    reader = csv.DictReader(io.StringIO(text))
    there = reader.fieldnames or ()
    missing = [n for n in _FIELDS if n not in there and n not in _MAY_LACK]
    if missing:
        raise DataError(f"results {str(path)!r} lack the column {missing[0]!r}")
    found: dict[tuple[str, int, str], tuple[int, Row]] = {}
    for number, record in enumerate(reader, 2):
        row = _row(path, number, record)
        first, _ = found.setdefault((row.task, row.repeat, row.method), (number, row))
        if first != number:
            raise DataError(
                f"results {str(path)!r}, line {number}: {row.method} in repeat {row.repeat} of "
                f"{row.task} is on line {first} already; keep one of the two"
            )
    return [row for _, row in found.values()]


def _row(path: str | Path, number: int, record: dict[str, Any]) -> Row:
    values: dict[str, Any] = {}
    for name, kind in _FIELDS.items():
        if name not in record:
            continue
        text = record[name]
        try:
            values[name] = {"int": int, "float": float}.get(kind, str)(text)
        except (ValueError, TypeError):
            raise DataError(
                f"results {str(path)!r}, line {number}: {name} {text!r} is no number"
            ) from None
    wrong = {name: "a finite number" for name in ("score", "seconds") if not isfinite(values[name])}
    wrong |= {name: "at least 1" for name in ("test", "pool") if values[name] < 1}
    counts = ("repeat", "forward", "backward", "seconds", "evaluations")
    wrong |= {name: "at least 0" for name in counts if values[name] < 0}
    for name, right in wrong.items():
        raise DataError(
            f"results {str(path)!r}, line {number}: {name} {values[name]} must be {right}"
        )
    return Row(**values)
