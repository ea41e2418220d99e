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

from biotune_optuna.page.parts import Heading, Items, Markdown, Part, Table, Text, markdown

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUDGETS = (20, 28, 50, 140)
RESAMPLES = 2_000
RETRAINED = HERE / "retrained.csv"
RANKED = """
    The same searches, but all choose the first of `rank_finished`: what is left of the
    differences is the search, not the choice.
"""
TREES = "The same choices as in the first table; their value by half of the model, the trees."
SWITCHES = (
    "Columns count evaluations; *two trainings* takes the mean of two for each, at twice the cost."
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
    closed = [[one.name for one in group if one.name in names] for group in (TUNED_ON, HELD_OUT)]
    return markdown(
        [
            Heading("Which searcher finds the best recipe?", 1),
            *_introduction(bool(untouched), results),
            *_retrained([one.name for one in real if one.name in names]),
            *_tables(results, "Real trainings, untouched tasks", untouched),
            *_tables(results, "Real trainings, development tasks", developed),
            *_quality([one for one in real if one.name in names]),
            *_tables(results, "Closed-form landscapes tuned on", closed[0]),
            *_tables(results, "Closed-form landscapes held out", closed[1]),
            Markdown(
                "Made by `python studies/benchmarks/search.py --given`; the tables say what it ran."
            ),
        ]
    )


FROZEN = """
    The default preset was developed on the development tasks and frozen (commit `59f6eeb`)
    before the untouched ones were trained; since then it has changed only for grids, for
    genomes that were added by hand, and where nothing new is left near the parents. The
    model of the tables has changed: its first form drew good luck in units of the score and
    fitted the process to raw values, so that recipes could seem better than any training
    was, which flattered the default on the untouched tasks. The present form predicts
    held-out recipes better.
"""
DEVELOPED = """
    The default preset was developed on these tasks, so they flatter it; untouched ones are
    still to come.
"""


def _introduction(untouched: bool, results: list[Result]) -> list[Part]:
    gp = (
        "GPSampler has fewer seeds, because its searches take longest: it has no rank, and its\n"
        "differences are over those seeds."
        if any(r.searcher == "GPSampler" for r in results)
        else "GPSampler did not take part."
    )
    return [
        Markdown(f"""
            What each searcher would choose after 20, 28, 50 and 140 evaluations, measured without
            noise: Optuna's samplers (default settings) and the paper preset choose the genome with
            the best value observed, the default preset the first of `rank_finished`. All search the
            same space, base rate included.

            Real tasks are tables of several hundred genomes, each trained by this project's
            trainer: half fill the space, half are where the searchers went. A model of each table
            (trees, and a Gaussian process on normal scores of ranks) stands for the noise-free
            value; noise is drawn as trainings of like recipes show it, bad luck in units of the
            score, good luck as a share of the room up to the best training there was. Such a
            process is what the default preset fits too, which may favour it: there are tables by
            the trees alone, and the last word have choices that were trained for real. Closed-form
            landscapes have 10 blocks and a noise of {NOISE}.
        """),
        Markdown(FROZEN if untouched else DEVELOPED),
        Markdown(
            "Intervals are paired bootstrap over seeds (95 %). *Rank* is the mean rank among the\n"
            f"searchers of the same table over landscapes and seeds.\n{gp}"
        ),
    ]


def _tables(results: list[Result], title: str, names: list[str]) -> list[Part]:
    if not names:
        return []
    plain = Values(results, names, given=False)
    given = Values(results, names, given=True)
    ranked = Values(results, names, given=False, rule="ranked")
    parts = [Heading(title), Markdown(f"{', '.join(names)}."), *_table(plain, _compared(plain))]
    if "default" in given.by:
        parts.append(Heading("All begin with the same informed starts", 3))
        parts += _table(given, _compared(given))
    parts += [Heading("All choose by the model", 3), Markdown(RANKED)]
    parts += _table(ranked, _compared(ranked))
    if set(names) <= {path.stem for path in HERE.glob("*.csv")}:
        trees = Values(results, names, given=False, rule="trees")
        parts += [Heading("Judged by the trees alone", 3), Markdown(TREES)]
        parts += _table(trees, _compared(trees))
    others = [s for s in plain.by if s not in COMPARED]
    if others:
        parts += [Heading("One switch at a time", 3), Markdown(SWITCHES)]
        parts += _table(plain, ["default", *others], verdict=False)
    return parts


def _compared(values: Values) -> list[str]:
    return [searcher for searcher in COMPARED if searcher in values.by]


def _table(values: Values, searchers: list[str], *, verdict: bool = True) -> list[Part]:
    if not searchers:
        return []
    frequent = [s for s in searchers if s != "GPSampler"]
    ranks = dict(zip(frequent, values.ranks(frequent), strict=True))
    rows = []
    for searcher in searchers:
        cells = [f"{mean:.4f}" for mean in values.by[searcher].mean(axis=(0, 1))]
        if searcher in ranks:
            cells = [f"{c} ({r:.2f})" for c, r in zip(cells, ranks[searcher], strict=True)]
        rows.append((searcher, str(values.by[searcher].shape[1]), *cells))
    parts: list[Part] = [
        Table(("searcher", "seeds", *(f"{b}: value (rank)" for b in BUDGETS)), rows)
    ]
    if "default" in searchers:
        if verdict:
            parts.append(Text(_verdict(ranks)))
        parts += _differences(values, [s for s in searchers if s != "default"])
    return parts


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


def _differences(values: Values, searchers: list[str]) -> list[Part]:
    rows = [
        (s, *(_interval(values.difference("default", s, b, b)) for b in BUDGETS)) for s in searchers
    ]
    parts: list[Part] = [Table(("default minus", *map(str, BUDGETS)), rows)]
    if "paper" in searchers:
        early = _interval(values.difference("default", "paper", 28, 140))
        parts.append(Text(f"Default after 28 evaluations minus paper after 140: {early}."))
    return parts


def _interval(numbers: tuple[float, ...]) -> str:
    mean, low, high = numbers
    return f"{mean:+z.4f} ({low:+z.4f} to {high:+z.4f})"


def _retrained(names: list[str]) -> list[Part]:
    """The last choices trained for real, where ``retrain.py`` has done so."""
    if not RETRAINED.exists():
        return []
    with RETRAINED.open() as file:
        rows = [row for row in csv.DictReader(file) if row["task"] in names]
    if not rows:
        return []
    cells = []
    for task in sorted({row["task"] for row in rows}):
        for searcher in dict.fromkeys(row["searcher"] for row in rows):
            own = [r for r in rows if r["task"] == task and r["searcher"] == searcher]
            scores = [[float(x) for x in row["scores"].split(";")] for row in own]
            means = np.array([np.mean(one) for one in scores])
            error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else float("nan")
            said = np.mean([float(row["model"]) for row in own])
            trained = f"{means.mean():.4f} ± {error:.4f}"
            counts = str(len(own)), str(len(scores[0]))
            cells.append((task, searcher, *counts, trained, f"{said:.4f}"))
    return [
        Markdown("""
            ## The choices after 140 evaluations, trained for real

            Choices of the first seeds, each trained for real on seeds that no table has seen; mean
            validation score with its standard error over choices, and what the model of the task
            said of them.
        """),
        Table(
            ("task", "searcher", "choices", "trainings of each", "trained", "model"), cells, words=2
        ),
        Items(_retrained_differences(rows)),
    ]


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
        lines.append(f"default minus {other}, mean over the tasks: {_interval((mean, low, high))}")
    return lines


def _quality(real: list[RealLandscape]) -> list[Part]:
    if not real:
        return []
    found = [(one, one.quality()) for one in real]
    best = (
        "error, best tenth",
        "rank correlation, best tenth",
        "noise of one training, best level",
    )
    return [
        Markdown("""
            ## How good the models of the tables are

            Ten-fold cross-validation over recipes; *best tenth* are those with the best tenth of
            mean scores, luck included, whose order noise hides.
        """),
        Table(
            ("task", "trainings", "recipes", "error (RMSE)", "rank correlation", *best),
            [
                (
                    one.name,
                    str(one.table.n_trainings),
                    str(len(one.table.means)),
                    f"{q['rmse']:.4f}",
                    f"{q['rank']:.3f}",
                    f"{q['rmse_best']:.4f}",
                    f"{q['rank_best']:.3f}",
                    f"{q['noise']:.4f}",
                )
                for one, q in found
            ],
        ),
    ]
