"""From rows to what is said: a summary of each task, paired contrasts, mean ranks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from biotune_optuna.compare.rows import BUDGET_SUFFIX, Row
from biotune_optuna.compare.statistics import (
    Effect,
    corrected_t,
    holm,
    mean_interval,
    mean_ranks,
    signed_rank,
)
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from biotune_optuna.compare.plan import Comparison


OF_A_TASK = ("data", "model", "weights", "metric", "classes", "official", "members")
OF_A_REPEAT = ("seed", "train", "val", "pool")

CONFIRMATORY = ("full", "linear-probe")
"""Whom BioTune is tested against; the family of Holm's correction is tasks times these two."""


@dataclass(frozen=True)
class Entry:
    """One method on one task, over its repeats.

    Attributes:
        method: The method.
        score: Mean test score and its 95 % interval.
        together: The same of all members of each repeat's model; None where there is one.
        trainable: Mean share of the parameters that train, in percent.
        passes: Mean image passes, forward and backward.
        seconds: Mean seconds.
        evaluations: Mean number of settings or genomes evaluated.
    """

    method: str
    score: Effect
    together: Effect | None
    trainable: float
    passes: float
    seconds: float
    evaluations: float


@dataclass(frozen=True)
class Contrast:
    """One method against another on one task, paired by repeat.

    Attributes:
        task: The task.
        method: The one.
        against: The other.
        effect: Difference of test scores, positive where ``method`` is better.
        test: The test: ``"corrected t"`` or ``"signed rank"``.
        adjusted: p-value after Holm's correction; NaN outside its family.
    """

    task: str
    method: str
    against: str
    effect: Effect
    test: str
    adjusted: float = math.nan


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: Its name.
        rows: Its rows; none if it has not begun.
        entries: Its methods, best mean first.
    """

    name: str
    rows: tuple[Row, ...]
    entries: tuple[Entry, ...]

    @property
    def own(self) -> tuple[Entry, ...]:
        """Methods by their own protocol."""
        return tuple(e for e in self.entries if not e.method.endswith(BUDGET_SUFFIX))

    @property
    def complete(self) -> tuple[Entry, ...]:
        """Those of `own` that have all repeats."""
        repeats = len({row.repeat for row in self.rows})
        return tuple(e for e in self.own if e.score.n == repeats)

    @property
    def budget(self) -> tuple[Entry, ...]:
        """BioTune and the methods that were given its budget; empty where there are none."""
        chosen = [e for e in self.entries if e.method.endswith(BUDGET_SUFFIX)]
        ours = [e for e in self.entries if e.method == "biotune"]
        ordered = sorted((*chosen, *ours), key=lambda e: -e.score.value)
        return tuple(ordered) if chosen else ()

    @property
    def official(self) -> bool:
        """Whether the test part came with the data; False before the first row."""
        return bool(self.rows and self.rows[0].official)


@dataclass(frozen=True)
class Summary:
    """All that a comparison says.

    Attributes:
        tasks: The tasks.
        confirmatory: The contrasts that were asked beforehand, with Holm's correction.
        others: The remaining contrasts, for orientation.
        ranks: Mean rank over tasks of each method that all of them have in all repeats.
    """

    tasks: tuple[Task, ...]
    confirmatory: tuple[Contrast, ...]
    others: tuple[Contrast, ...]
    ranks: Mapping[str, float]


def summarise(
    rows: Sequence[Row],
    *,
    references: Mapping[str, str] | None = None,
    plan: Comparison | None = None,
) -> Summary:
    """Summarises the rows of a comparison.

    Args:
        rows: Raw results.
        references: For methods that are tested against another one than ``biotune``: the other
            one, and then the contrast is theirs against it. Given, all contrasts form the family
            of Holm's correction, else those against `CONFIRMATORY`.
        plan: What was asked. Its tasks and methods belong to the family even while they have no
            row; without a plan only those that have one do.

    Returns:
        The summary.

    Raises:
        DataError: If methods were tested on different images in one repeat of a task, or its rows
            differ in what all methods of a task have in common.
    """
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    tasks = tuple(_task(name, group) for name, group in sorted(by_task.items()))
    methods = {row.method for row in rows}
    unbegun: list[Task] = []
    if plan is not None:
        methods |= {one.name for one in plan.everyone}
        names = {plan.task_name(spec) for spec in plan.tasks}
        unbegun = [Task(name, (), ()) for name in sorted(names - by_task.keys())]
    contrasts = [c for task in (*tasks, *unbegun) for c in _contrasts(task, references, methods)]
    asked = [c for c in contrasts if references is not None or c.against in CONFIRMATORY]
    adjusted = holm([c.effect.p for c in asked])
    return Summary(
        tasks=tasks,
        confirmatory=tuple(
            replace(c, adjusted=p if not math.isnan(c.effect.p) else math.nan)
            for c, p in zip(asked, adjusted, strict=True)
        ),
        others=tuple(c for c in contrasts if c not in asked),
        ranks=mean_ranks([{e.method: e.score.value for e in task.complete} for task in tasks]),
    )


def _task(name: str, rows: list[Row]) -> Task:
    by_method: dict[str, list[Row]] = defaultdict(list)
    first: dict[int, Row] = {}
    for row in rows:
        by_method[row.method].append(row)
        other = first.setdefault(row.repeat, row)
        _check_likeness(row, rows[0], OF_A_TASK)
        _check_likeness(row, other, OF_A_REPEAT)
        if row.split != other.split:
            raise DataError(
                f"{name}, repeat {row.repeat}: {row.method} was tested on other images "
                f"({row.test}, digest {row.split}) than {other.method} ({other.test}, "
                f"{other.split}); results of one task need the same ones"
            )
    entries = [_entry(method, group) for method, group in by_method.items()]
    ordered = sorted(entries, key=lambda entry: (-entry.score.value, entry.method))
    return Task(name, tuple(sorted(rows)), tuple(ordered))


def _check_likeness(row: Row, other: Row, names: Sequence[str]) -> None:
    """Refuses rows of different protocols under one task's name."""
    for name in names:
        mine, theirs = getattr(row, name), getattr(other, name)
        if mine != theirs:
            raise DataError(
                f"{row.task}: {row.method} in repeat {row.repeat} has {name} {mine!r} and "
                f"{other.method} in repeat {other.repeat} has {theirs!r}; results of one task "
                "need the same one"
            )


def _entry(method: str, rows: list[Row]) -> Entry:
    means = {
        name: float(np.mean([getattr(row, name) for row in rows]))
        for name in ("trainable", "passes", "seconds", "evaluations")
    }
    score = mean_interval([row.score for row in rows], ratio=_ratio(rows))
    several = [row.together for row in rows if row.members > 1]
    together = mean_interval(several, ratio=_ratio(rows)) if several else None
    return Entry(method=method, score=score, together=together, **means)


def _ratio(rows: Sequence[Row]) -> float:
    """n_test / n_train of resampled splits; 0 where only seeds differ."""
    return 0.0 if rows[0].official else float(np.mean([row.ratio for row in rows]))


def _contrasts(
    task: Task, references: Mapping[str, str] | None, methods: set[str]
) -> list[Contrast]:
    """Contrasts of a task; one that other tasks have and this one not yet is there without value.

    It must be: the family of Holm's correction is what was asked, not what has finished.
    """
    own = [e.method for e in task.entries]
    everyone = [*own, *sorted(methods - set(own))]
    references = references or {}
    bases = {"biotune", *references.values()}
    pairs = [
        (one, references[one]) if one in references else ("biotune", one)
        for one in everyone
        if one in references or one not in bases
    ]
    return [_contrast(task, one, other) for one, other in pairs if {one, other} <= methods]


def _contrast(task: Task, method: str, against: str) -> Contrast:
    """Pairs the repeats that both methods have."""
    theirs = {row.repeat: row.score for row in task.rows if row.method == against}
    paired = [row for row in task.rows if row.method == method and row.repeat in theirs]
    differences = [row.score - theirs[row.repeat] for row in paired]
    if task.official:
        return Contrast(task.name, method, against, signed_rank(differences), "signed rank")
    ratio = _ratio(paired or task.rows) if task.rows else 0.0
    effect = corrected_t(differences, ratio=ratio)
    return Contrast(task.name, method, against, effect, "corrected t")
