"""The page of the search benchmark: tables with bootstrap intervals and mean ranks."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from _landscapes import HELD_OUT, NOISE, TUNED_ON
from _real import HERE, RealLandscape, landscapes
from _searchers import COMPARED, SEARCHERS
from _tasks import DEVELOPMENT
from scipy.stats import rankdata

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUDGETS = (20, 28, 50, 140)
RESAMPLES = 2_000
RETRAINED = HERE / "retrained.csv"
RANKED = (
    "The same searches, but all choose the first of `rank_finished`: what is left of the",
    "differences is the search, not the choice.",
)
TREES = ("The same choices as in the first table; their value by half of the model, the trees.",)
SWITCHES = (
    "Columns count evaluations; *two trainings* takes the mean of two for each, at twice the cost.",
)


@dataclass(frozen=True)
class Result:
    """One search.

    Attributes:
        searcher: Which.
        landscape: On what.
        seed: Of the search and of the noise.
        given: Whether every searcher was given the informed starts.
        chosen: Budget -> noise-free value of the genome chosen by the searcher's own rule.
        ranked: Budget -> that of the genome that `rank_finished` chooses.
        trees: As `chosen`, judged by the trees of a real landscape alone.
        made: Digest of what it was made with: table, noise and sampler.
        rates: Learning rate of each block of the last choice, 0 where frozen.
    """

    searcher: str
    landscape: str
    seed: int
    given: bool
    chosen: dict[str, float]
    ranked: dict[str, float]
    trees: dict[str, float]
    made: str
    rates: list[float]

    @property
    def key(self) -> tuple[str, str, int, bool]:
        """What tells it from the others."""
        return self.searcher, self.landscape, self.seed, self.given

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


class Values:
    """Results of some landscapes as arrays: searcher -> (landscape, seed, budget)."""

    def __init__(
        self, results: list[Result], names: list[str], given: bool, rule: str = "chosen"
    ) -> None:
        self.names = names
        chosen = [r for r in results if r.landscape in names and r.given == given]
        self.by: dict[str, NDArray[np.float64]] = {}
        for searcher in SEARCHERS:
            own = {(r.landscape, r.seed): r for r in chosen if r.searcher == searcher}
            seeds = sorted({seed for _, seed in own})
            if own:
                self.by[searcher] = np.array(
                    [
                        [[getattr(own[n, s], rule)[str(b)] for b in BUDGETS] for s in seeds]
                        for n in names
                    ]
                )

    def difference(self, one: str, other: str, at: int, other_at: int) -> tuple[float, ...]:
        """Mean difference with its bootstrap interval: seeds are drawn anew, in pairs."""
        a, b = self.by[one], self.by[other]
        seeds = min(a.shape[1], b.shape[1])
        gaps = a[:, :seeds, BUDGETS.index(at)] - b[:, :seeds, BUDGETS.index(other_at)]
        rng = np.random.default_rng(0)
        drawn = [gaps[:, rng.integers(seeds, size=seeds)].mean() for _ in range(RESAMPLES)]
        low, high = np.quantile(drawn, (0.025, 0.975))
        return float(gaps.mean()), float(low), float(high)

    def ranks(self, searchers: list[str]) -> NDArray[np.float64]:
        """Mean rank of each searcher at each budget, shape (searchers, budgets); 1 is best."""
        seeds = min(self.by[s].shape[1] for s in searchers)
        values = np.stack([self.by[s][:, :seeds] for s in searchers])
        return np.asarray(rankdata(-values, axis=0).mean(axis=(1, 2)))


def page(results: list[Result]) -> str:
    """The whole page as Markdown."""
    real = landscapes()
    names = {r.landscape for r in results}
    developed = [t.name for t in DEVELOPMENT if t.name in names]
    untouched = [one.name for one in real if one.name in names and one.name not in developed]
    lines = [
        "# Which searcher finds the best recipe?",
        "",
        *_introduction(bool(untouched), results),
        "",
    ]
    lines += _retrained([one.name for one in real if one.name in names])
    lines += _tables(results, "Real trainings, untouched tasks", untouched)
    lines += _tables(results, "Real trainings, development tasks", developed)
    lines += _quality([one for one in real if one.name in names])
    for title, group in (
        ("Closed-form landscapes tuned on", TUNED_ON),
        ("Closed-form landscapes held out", HELD_OUT),
    ):
        lines += _tables(results, title, [one.name for one in group if one.name in names])
    lines += [
        "Made by `python studies/benchmarks/search.py --given`; what it ran, the tables say.",
        "",
    ]
    return "\n".join(lines)


def _introduction(untouched: bool, results: list[Result]) -> list[str]:
    gp = [
        "GPSampler has fewer seeds, because its searches take longest: it has no rank, and its",
        "differences are over those seeds.",
    ]
    no_gp = ["GPSampler did not take part."]
    frozen = [
        "The default preset was developed on the development tasks and frozen (commit `59f6eeb`)",
        "before the untouched ones were trained; since then it has changed only for grids, for",
        "genomes that were added by hand, and where nothing new is left near the parents. The",
        "model of the tables has changed: its first form drew good luck in units of the score and",
        "fitted the process to raw values, so that recipes could seem better than any training",
        "was, which flattered the default on the untouched tasks. The present form predicts",
        "held-out recipes better.",
    ]
    developed = [
        "The default preset was developed on these tasks, so they flatter it; untouched ones are",
        "still to come.",
    ]
    return [
        "What each searcher would choose after 20, 28, 50 and 140 evaluations, measured without",
        "noise: Optuna's samplers (default settings) and the paper preset choose the genome with",
        "the best value observed, the default preset the first of `rank_finished`. All search the",
        "same space, base rate included.",
        "",
        "Real tasks are tables of several hundred genomes, each trained by this project's trainer:",
        "half fill the space, half are where the searchers went. A model of each table (trees,",
        "and a Gaussian process on normal scores of ranks) stands for the noise-free value; noise",
        "is drawn as trainings of like recipes show it, bad luck in units of the score, good luck",
        "as a share of the room up to the best training there was. Such a process is what the",
        "default preset fits too, which may favour it: there are tables by the trees alone, and",
        "the last word have choices that were trained for real. Closed-form landscapes have 10",
        f"blocks and a noise of {NOISE}.",
        "",
        *(frozen if untouched else developed),
        "",
        "Intervals are paired bootstrap over seeds (95 %). *Rank* is the mean rank among the",
        "searchers of the same table over landscapes and seeds.",
        *(gp if any(r.searcher == "GPSampler" for r in results) else no_gp),
    ]


def _tables(results: list[Result], title: str, names: list[str]) -> list[str]:
    if not names:
        return []
    lines = [f"## {title}", "", f"{', '.join(names)}.", ""]
    plain = Values(results, names, given=False)
    lines += _table(plain, [s for s in COMPARED if s in plain.by])
    given = Values(results, names, given=True)
    if "default" in given.by:
        lines += ["### All begin with the same informed starts", ""]
        lines += _table(given, [s for s in COMPARED if s in given.by])
    ranked = Values(results, names, given=False, rule="ranked")
    lines += ["### All choose by the model", "", *RANKED, ""]
    lines += _table(ranked, [s for s in COMPARED if s in ranked.by])
    if set(names) <= {path.stem for path in HERE.glob("*.csv")}:
        trees = Values(results, names, given=False, rule="trees")
        lines += ["### Judged by the trees alone", "", *TREES, ""]
        lines += _table(trees, [s for s in COMPARED if s in trees.by])
    others = [s for s in plain.by if s not in COMPARED]
    if others:
        lines += [
            "### One switch at a time",
            "",
            *SWITCHES,
            "",
            *_table(plain, ["default", *others], verdict=False),
        ]
    return lines


def _table(values: Values, searchers: list[str], *, verdict: bool = True) -> list[str]:
    if not searchers:
        return []
    frequent = [s for s in searchers if s != "GPSampler"]
    ranks = dict(zip(frequent, values.ranks(frequent), strict=True))
    lines = [
        f"| searcher | seeds | {' | '.join(f'{b}: value (rank)' for b in BUDGETS)} |",
        "|---|---:|" + "---:|" * len(BUDGETS),
    ]
    for searcher in searchers:
        means = values.by[searcher].mean(axis=(0, 1))
        cells = [f"{mean:.4f}" for mean in means]
        if searcher in ranks:
            cells = [f"{c} ({r:.2f})" for c, r in zip(cells, ranks[searcher], strict=True)]
        lines.append(f"| {searcher} | {values.by[searcher].shape[1]} | {' | '.join(cells)} |")
    if "default" in searchers:
        lines += [""]
        lines += [_verdict(ranks), ""] if verdict else []
        lines += _differences(values, [s for s in searchers if s != "default"])
    return [*lines, ""]


def _verdict(ranks: dict[str, NDArray[np.float64]]) -> str:
    """At which budgets no other searcher has a better mean rank than the default preset."""
    others = np.min([rank for name, rank in ranks.items() if name != "default"], axis=0)
    best = [
        str(b)
        for b, own, rival in zip(BUDGETS, ranks["default"], others, strict=True)
        if own <= rival
    ]
    if len(best) == len(BUDGETS):
        return "The default has the best mean rank at every budget."
    words = f"at {', '.join(best)} evaluations only" if best else "at no budget"
    return f"The default has the best mean rank {words}."


def _differences(values: Values, searchers: list[str]) -> list[str]:
    lines = [
        f"| default minus | {' | '.join(map(str, BUDGETS))} |",
        "|---|" + "---|" * len(BUDGETS),
    ]
    for searcher in searchers:
        gaps = [_interval(values.difference("default", searcher, b, b)) for b in BUDGETS]
        lines.append(f"| {searcher} | {' | '.join(gaps)} |")
    if "paper" in searchers:
        early = _interval(values.difference("default", "paper", 28, 140))
        lines += ["", f"Default after 28 evaluations minus paper after 140: {early}."]
    return lines


def _interval(numbers: tuple[float, ...]) -> str:
    mean, low, high = numbers
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"


def _retrained(names: list[str]) -> list[str]:
    """The last choices trained for real, where ``retrain.py`` has done so."""
    if not RETRAINED.exists():
        return []
    with RETRAINED.open() as file:
        rows = [row for row in csv.DictReader(file) if row["task"] in names]
    if not rows:
        return []
    lines = [
        "## The choices after 140 evaluations, trained for real",
        "",
        "Choices of the first seeds, each trained for real on seeds that no table has seen; mean",
        "validation score with its standard error over choices, and what the model of the task",
        "said of them.",
        "",
        "| task | searcher | choices | trainings of each | trained | model |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for task in sorted({row["task"] for row in rows}):
        for searcher in dict.fromkeys(row["searcher"] for row in rows):
            own = [r for r in rows if r["task"] == task and r["searcher"] == searcher]
            scores = [[float(x) for x in row["scores"].split(";")] for row in own]
            means = np.array([np.mean(one) for one in scores])
            error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else float("nan")
            said = np.mean([float(row["model"]) for row in own])
            lines.append(
                f"| {task} | {searcher} | {len(own)} | {len(scores[0])} | "
                f"{means.mean():.4f} ± {error:.4f} | {said:.4f} |"
            )
    return [*lines, "", *_retrained_differences(rows), ""]


def _retrained_differences(rows: list[dict[str, str]]) -> list[str]:
    """Default minus each other, paired by task and seed; seeds are drawn anew within each task."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        mean = float(np.mean([float(x) for x in row["scores"].split(";")]))
        values.setdefault((row["searcher"], row["task"]), {})[row["seed"]] = mean
    tasks = sorted({row["task"] for row in rows})
    lines = []
    for other in sorted({row["searcher"] for row in rows} - {"default"}):
        gaps = []
        for task in tasks:
            one, two = values.get(("default", task), {}), values.get((other, task), {})
            gaps.append(np.array([one[seed] - two[seed] for seed in sorted(set(one) & set(two))]))
        if not all(len(gap) for gap in gaps):
            continue
        rng = np.random.default_rng(0)
        drawn = [
            float(np.mean([gap[rng.integers(len(gap), size=len(gap))].mean() for gap in gaps]))
            for _ in range(RESAMPLES)
        ]
        low, high = np.quantile(drawn, (0.025, 0.975))
        mean = float(np.mean([gap.mean() for gap in gaps]))
        lines.append(
            f"- default minus {other}, mean over the tasks: {_interval((mean, low, high))}"
        )
    return lines


def _quality(real: list[RealLandscape]) -> list[str]:
    if not real:
        return []
    lines = [
        "## How good the models of the tables are",
        "",
        "Ten-fold cross-validation over recipes; *best tenth* are those with the best tenth of",
        "mean scores, luck included, whose order noise hides.",
        "",
        "| task | trainings | recipes | error (RMSE) | rank correlation | error, best tenth | "
        "rank correlation, best tenth | noise of one training, best level |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in real:
        q = one.quality()
        lines.append(
            f"| {one.name} | {one.table.n_trainings} | {len(one.table.means)} | {q['rmse']:.4f} | "
            f"{q['rank']:.3f} | {q['rmse_best']:.4f} | {q['rank_best']:.3f} | {q['noise']:.4f} |"
        )
    return [*lines, ""]
