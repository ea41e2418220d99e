"""The pages of the second evidence: its full tables, the table of docs/results.md, the README's.

    python studies/benchmarks/evidence.py

Reads `evidence-GROUP.csv` and `peers-GROUP.csv` of studies/ (what `studies/evidence.py` and
`nox -s peers` have written), and writes docs/benchmarks/evidence.md, and the parts "evidence" of
docs/results.md and README.md. Until the report tasks have been measured, the short tables are
those of the first evidence, studies/results.csv, and say so.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _parts import put

from biotune_optuna.compare import Row, read_csv
from biotune_optuna.compare.over_tasks import Difference, Matrix, Rank, differences, ranks
from biotune_optuna.compare.rows import BUDGET_SUFFIX
from biotune_optuna.methods.registry import methods
from biotune_optuna.page.parts import Heading, Markdown, Part, Table, markdown

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "evidence.md"
COMMAND = "Made by `python studies/benchmarks/evidence.py`."
OTHERS = {
    "random": "random search in the same space",
    "paper": "the paper's operators",
    "fastai": "fastai's fine_tune, in the same time",
    "timm-recipe": "a recipe of timm's train.py, in the same time",
    "autogluon": "AutoGluon MultiModal, in the same time",
    # The first evidence trained its probe by steps of the optimiser.
    "linear-probe-sgd": "linear probe by gradient steps, tuned",
}
KNOWN = {*("full", "linear-probe", "lora", "layer-decay", "single-block"), *OTHERS}
FIRST = {"linear-probe": OTHERS["linear-probe-sgd"]}


def words(method: str, own: dict[str, str] | None = None) -> str:
    """What a reader calls a method."""
    name = method.removesuffix(BUDGET_SUFFIX)
    named = OTHERS | (own or {})
    text = named.get(name) or (methods()[name].words if name in methods() else name)
    return f"{text}, as many image passes" if name != method else text


@dataclass(frozen=True)
class Group:
    """Tasks that are told together.

    Attributes:
        title: Their heading.
        rows: Their results.
        names: What methods are called here otherwise.
    """

    title: str
    rows: list[Row]
    names: dict[str, str]

    @property
    def methods(self) -> list[str]:
        """BioTune, then every rival that all tasks have."""
        tasks = {row.task for row in self.rows}
        have = {
            m: {r.task for r in self.rows if r.method == m} for m in (r.method for r in self.rows)
        }
        return ["biotune", *sorted(m for m in have if have[m] == tasks and m != "biotune")]

    @property
    def partial(self) -> list[str]:
        """Rivals that some tasks lack: no table over the tasks has them."""
        return sorted({row.method for row in self.rows} - {*self.methods})

    def matrix(self, kind: str = "delivered") -> Matrix:
        """Scores by repeat; of cross-entropy the negative, so that more is better."""
        sign = -1 if "cross_entropy" in kind else 1
        return Matrix.of(self.rows, self.methods, lambda row: sign * getattr(row, kind))

    def mean(self, method: str, what: str) -> float:
        """Mean of a column over the repeats that all methods have, so that tasks weigh alike."""
        told: dict[str, dict[int, dict[str, float]]] = {}
        names = self.methods
        for row in self.rows:
            if row.method in names:
                one = told.setdefault(row.task, {}).setdefault(row.repeat, {})
                one[row.method] = float(getattr(row, what))
        n = len(names)
        found = [[r[method] for r in task.values() if len(r) == n] for task in told.values()]
        return float(np.mean([np.mean(task) for task in found if task]))


def wrapped(text: str) -> Markdown:
    """A paragraph in lines of a usual length."""
    return Markdown(textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False))


def points(value: float) -> str:
    """A difference of accuracies in points."""
    return f"{100 * value:+z.1f}"


def interval(one: Difference) -> str:
    """Its value with its interval."""
    return f"{points(one.value)} ({points(one.low)} to {points(one.high)})"


def verdict(one: Difference) -> str:
    """What an interval says."""
    return "ahead" if one.low > 0 else "behind" if one.high < 0 else "not shown"


def short(group: Group, *, brief: bool) -> list[Part | Markdown]:
    """The table that a reader sees first.

    Args:
        group: What is told.
        brief: Whether only the best known rivals stand in it, with the search's budget where they
            have had it.
    """
    matrix = group.matrix()
    shown = {one.removesuffix(BUDGET_SUFFIX) for one in matrix.methods} & KNOWN
    shown = {f"{one}{BUDGET_SUFFIX}" for one in shown} & {*matrix.methods} | shown
    shown -= {one.removesuffix(BUDGET_SUFFIX) for one in shown if one.endswith(BUDGET_SUFFIX)}
    ranked = {one.method: one for one in ranks(matrix)}
    passes = group.mean("biotune", "passes")
    lines = []
    for one in sorted(differences(matrix), key=lambda one: -one.value):
        if brief and one.against not in shown:
            continue
        own = group.mean(one.against, "passes")
        cost = f"{passes / own:.1f}" if own else "–"
        lines.append(
            (
                *(words(one.against, group.names), interval(one)),
                *(f"{one.wins} of {len(matrix.tasks)}", verdict(one), cost),
                f"{ranked[one.against].value:.1f}",
            )
        )
    head = ("BioTune against", "points", "better on", "so", "passes", "its mean rank")
    best = ranked["biotune"]
    return [
        Table(head, lines),
        wrapped(
            f"BioTune's mean rank is {best.value:.1f} of {len(matrix.methods)} ({best.low:.1f} to "
            f"{best.high:.1f}). Points: BioTune's macro-accuracy on the test minus the other's, "
            "mean over the sets, with the 95 % interval of a bootstrap over sets and repeats; "
            "ahead or behind where the whole interval is. Passes: BioTune's image passes over "
            "the other's."
        ),
    ]


def about(group: Group) -> str:
    """How much was measured, in a sentence."""
    matrix, first = group.matrix(), group.rows[0]
    counts = sorted({len(scores) for scores in matrix.tasks.values()})
    repeats = "–".join(str(n) for n in (counts[0], counts[-1])[: len(counts)])
    members = f"models of {first.members} members" if first.members > 1 else "single models"
    most = max(row.train for row in group.rows)
    lack = [words(one, group.names) for one in group.partial]
    missing = f" Left out, because some of the sets lack it: {'; '.join(lack)}." if lack else ""
    return (
        f"{len(matrix.tasks)} image sets, at most {most} images to train on and {first.val} to "
        f"validate on, {repeats} repeats, {members}, `{first.model}`.{missing}"
    )


def full(group: Group) -> list[Part | Markdown]:
    """Every table of a group."""
    matrix = group.matrix()
    parts: list[Part | Markdown] = [Heading(group.title), Markdown(about(group))]
    parts += [Heading("Differences over the tasks", 3), _differences(group)]
    parts += [Heading("Mean ranks", 3), _ranks(ranks(matrix), group)]
    parts += [Heading("Each task", 3), *_tasks(group, matrix)]
    cost = [
        (words(m, group.names), *(f"{group.mean(m, w):,.0f}" for w in ("passes", "seconds")))
        for m in matrix.methods
    ]
    return [*parts, Heading("Cost", 3), Table(("method", "image passes", "seconds"), cost)]


def _differences(group: Group) -> Table:
    single = {one.against: one for one in differences(group.matrix("score"))}
    known = all(np.isfinite(row.delivered_cross_entropy) for row in group.rows)
    losses = differences(group.matrix("delivered_cross_entropy")) if known else []
    entropy = {one.against: f"{-one.value:+z.3f}" for one in losses}
    lines = [
        (
            *(words(one.against, group.names), interval(one), points(one.worst)),
            f"{one.wins} : {one.losses}",
            *(f"{p:.3f}" for p in (one.p, one.adjusted)),
            *(points(single[one.against].value), entropy.get(one.against, "–")),
        )
        for one in differences(group.matrix())
    ]
    head = ("BioTune minus", "points", "worst task", "won : lost", "p", "adjusted p")
    return Table((*head, "one member", "cross-entropy"), lines)


def _ranks(found: list[Rank], group: Group) -> Table:
    lines = [
        (
            words(one.method, group.names) if one.method != "biotune" else "BioTune",
            *(f"{one.value:.2f}", f"{one.low:.1f} to {one.high:.1f}", f"{100 * one.first:.0f} %"),
        )
        for one in found
    ]
    return Table(("method", "mean rank", "95 % of the draws", "first in"), lines)


def _tasks(group: Group, matrix: Matrix) -> list[Part | Markdown]:
    data = {row.task: row.data for row in group.rows}
    names = [data[task] for task in matrix.tasks]
    lines = [
        (words(m, group.names) if m != "biotune" else "BioTune", *(f"{x:.3f}" for x in column))
        for m, column in zip(matrix.methods, matrix.means.T, strict=True)
    ]
    lead = matrix.means[:, 0] - matrix.means[:, 1:].max(axis=1)
    lines.append(("BioTune minus the best rival", *(f"{points(x)} points" for x in lead)))
    return [Table(("mean score", *names), lines)]


def groups() -> list[Group]:
    """What has been measured."""
    found = []
    for name, title in (("report", "Report tasks"), ("development", "Development tasks")):
        tables = [ROOT / "studies" / f"{kind}-{name}.csv" for kind in ("evidence", "peers")]
        rows = [row for table in tables if table.exists() for row in read_csv(table)]
        if rows:
            found.append(Group(title, rows, {}))
    return found


def first_evidence() -> Group:
    """The results of the earlier default."""
    return Group("First evidence", read_csv(ROOT / "studies" / "results.csv"), FIRST)


def page(measured: list[Group]) -> str:
    """The page with all tables."""
    head = Markdown(f"""
        # The second evidence

        More tasks, models of several members, and rivals at equal cost.
        [The protocol](protocol.md) says what was decided beforehand. p is Wilcoxon's over the
        tasks, adjusted by Holm's method. {COMMAND}
    """)
    if not measured:
        text = Markdown("Nothing of it has been measured yet.")
        return markdown([head, text])
    return markdown([head, *(part for group in measured for part in full(group))])


def summary(measured: list[Group], *, deep: str, brief: bool = False) -> str:
    """The short table, and of what it is.

    Args:
        measured: What has been measured.
        deep: How the benchmarks' pages are reached from the page.
        brief: Whether only the best known rivals stand in it.
    """
    report = [one for one in measured if one.title == "Report tasks"]
    group = report[0] if report else first_evidence()
    told = (
        f"[All tables]({deep}evidence.md)."
        if report
        else (
            "**These figures are of an earlier default.** Since then the search, the choice of the "
            "winner and the final model, which has five members now, have changed. The new default "
            f"has not been measured yet on data that nothing was tuned on; [the protocol]({deep}"
            f"protocol.md) says how it will be. [All tables of the earlier default]({deep}"
            "heldout.md)."
        )
    )
    measured_on = wrapped(f"Measured on data that nothing was tuned on: {about(group)}")
    return markdown([measured_on, *short(group, brief=brief), wrapped(told)])


def main() -> None:
    """Write all pages."""
    measured = groups()
    PAGE.write_text(page(measured), encoding="utf-8")
    put("evidence", summary(measured, deep="benchmarks/"), ROOT / "docs" / "results.md")
    readme = summary(measured, deep="docs/benchmarks/", brief=True)
    put("evidence", readme, ROOT / "README.md")


if __name__ == "__main__":
    main()
