"""A comparison as a page: one self-contained HTML file, and Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from biotune_optuna.compare import ablation, figures
from biotune_optuna.compare.rows import write_csv
from biotune_optuna.compare.tables import Summary, summarise
from biotune_optuna.errors import StudyError
from biotune_optuna.files import replace_file
from biotune_optuna.page.html import document
from biotune_optuna.page.parts import Figure, Heading, Part, Table, Text, markdown
from biotune_optuna.page.text import count, duration

if TYPE_CHECKING:
    from biotune_optuna.compare.plan import Comparison
    from biotune_optuna.compare.rows import Row
    from biotune_optuna.compare.statistics import Effect
    from biotune_optuna.compare.tables import Contrast, Entry, Task


_TESTS = {
    "corrected t": "paired t with the correction of Nadeau and Bengio for resampled splits",
    "signed rank": "Wilcoxon's signed rank over seeds",
}


def write_comparison(
    rows: Sequence[Row],
    folder: str | Path,
    *,
    title: str = "Comparison",
    plan: Comparison | None = None,
) -> Path:
    """Write ``report.html``, ``report.md`` and ``results.csv`` of a comparison.

    Factors of an ablation are tested each against its base, and all contrasts form one family.

    Args:
        rows: Raw results, at least one.
        folder: Folder to write into; made where it is missing.
        title: Title of the pages.
        plan: What was asked; its tasks and methods count in Holm's correction before they have a
            result.

    Returns:
        The HTML file.

    Raises:
        StudyError: If there are no rows or the files cannot be written.
    """
    if not rows:
        raise StudyError("the comparison has no finished cell yet; let it run first")
    target = Path(folder)
    factors = sorted({row.method for row in rows} & ablation.FACTORS.keys())
    parts = _parts(rows, ablation.references(factors) if factors else None, plan)
    write_csv(rows, target / "results.csv")
    replace_file(target / "report.md", markdown([Heading(title, 1), *parts]))
    page = document(title, parts, eyebrow="Comparison of methods")
    return replace_file(target / "report.html", page)


def _parts(
    rows: Sequence[Row], references: Mapping[str, str] | None, plan: Comparison | None
) -> list[Part]:
    summary = summarise(rows, references=references, plan=plan)
    parts: list[Part] = []
    if summary.confirmatory:
        parts += _tested(summary, one_family=references is not None)
    for number, task in enumerate(summary.tasks):
        parts += _task(task, number)
    others = [c for c in summary.others if c.effect.n]
    if others:
        parts += [
            Heading("Further paired differences"),
            Text(
                "For orientation: not asked beforehand, so without a p-value. Intervals are not "
                "corrected for their number."
            ),
            _contrast_table(others, tested=False),
        ]
    if len(summary.tasks) > 1 and summary.ranks:
        ranked = sorted(summary.ranks.items(), key=lambda item: (item[1], item[0]))
        parts += [
            Heading("Mean ranks"),
            Text(
                "Mean rank over the tasks by mean test score, 1 the best, of the methods that all "
                "tasks have in all of their repeats. Descriptive: ranks of a few tasks carry no "
                "test."
            ),
            Table(("method", "mean rank"), tuple((m, f"{rank:.2f}") for m, rank in ranked)),
        ]
    return parts


def _tested(summary: Summary, *, one_family: bool) -> list[Part]:
    n = len(summary.confirmatory)
    opponents = " and ".join(sorted({c.against for c in summary.confirmatory}))
    family = "all of them" if one_family else f"each task's with {opponents}, named beforehand"
    kinds = sorted({_TESTS[c.test] for c in summary.confirmatory if c.effect.n})
    parts: list[Part] = [
        Heading("Paired tests"),
        Text(
            "; ".join(["Differences of test scores, paired by repeat, with 95 % intervals", *kinds])
            + f". The adjusted p is Holm's over {n} comparisons: {family}. Without an interval: "
            "too few repeats (of seeds fewer than six), or all differences equal."
        ),
        _contrast_table(summary.confirmatory, tested=True),
    ]
    if kinds:
        caption = "Right of 0 the first is better. Bars are 95 % intervals."
        parts.append(Figure(figures.contrasts_figure(summary.confirmatory), caption, "contrasts"))
    return parts


def _task(task: Task, number: int) -> list[Part]:
    row = task.rows[0]
    repeats = len({r.repeat for r in task.rows})
    kind = (
        "the data's own test part, repeats are seeds"
        if task.official
        else "each repeat a fresh stratified split"
    )
    counted = "1 repeat" if repeats == 1 else f"{repeats} repeats"
    about = (
        f"{row.model} ({row.weights}) on {row.data}: {row.classes} classes, {row.train} images to "
        f"train on, {row.val} to validate, {row.test} to test; {counted}, {kind}. "
        f"Score: {row.metric.replace('_', ' ')}."
    )
    parts: list[Part] = [Heading(task.name), Text(about)]
    if any(e.score.n < repeats for e in task.entries):
        parts.append(Text("Some methods have not run in all repeats yet: see the column."))
    parts.append(_entries(task.own))
    if task.budget:
        parts += [
            Heading("The same total budget", 3),
            Text(
                "Rate, weight decay and epochs of these methods were searched by TPE on the same "
                "validation images, with as many image passes as BioTune took in that repeat, "
                "confirmation and final training included."
            ),
            _entries(task.budget),
        ]
    caption = "Grey dots are repeats; orange methods had BioTune's budget."
    cost = "Image passes of all that led to the tested model: search, tuning, final training."
    return [
        *parts,
        Figure(figures.scores_figure(task), caption, f"scores-{number}"),
        Figure(figures.cost_figure(task), cost, f"cost-{number}"),
    ]


def _entries(entries: Sequence[Entry]) -> Table:
    several = any(e.together for e in entries)
    return Table(
        (
            *("method", "repeats", "test score", "95 % interval"),
            *(("all members", "95 % interval") if several else ()),
            *("trainable", "image passes", "seconds", "tried"),
        ),
        tuple(
            (
                e.method,
                str(e.score.n),
                f"{e.score.value:.4f}",
                _interval(e.score),
                *(_together(e) if several else ()),
                f"{e.trainable:.1f} %",
                count(e.passes),
                duration(e.seconds),
                f"{e.evaluations:.0f}",
            )
            for e in entries
        ),
        strong=0,
    )


def _together(entry: Entry) -> tuple[str, str]:
    """Return what all members of a method's models reach, and its interval."""
    found = entry.together
    return (f"{found.value:.4f}", _interval(found)) if found else ("–", "–")


def _contrast_table(contrasts: Sequence[Contrast], *, tested: bool) -> Table:
    head = ("contrast", "difference", "95 % interval", "repeats")
    rows = []
    for c in contrasts:
        row = (
            f"{c.task}: {c.method} − {c.against}",
            f"{c.effect.value:+z.4f}" if c.effect.n else "–",
            _interval(c.effect, signed=True),
            str(c.effect.n),
        )
        rows.append((*row, _p(c.effect.p), _p(c.adjusted)) if tested else row)
    return Table((*head, "p", "adjusted p") if tested else head, tuple(rows))


def _interval(effect: Effect, *, signed: bool = False) -> str:
    if math.isnan(effect.low):
        return "–"
    form = "+z.4f" if signed else ".4f"
    return f"{effect.low:{form}} to {effect.high:{form}}"


def _p(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"
