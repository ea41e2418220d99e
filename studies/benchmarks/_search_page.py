"""The page of the search benchmark: tables with bootstrap intervals and mean ranks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from _real import RealLandscape, landscapes
from _searchers import BY_MODEL, SEARCHERS
from scipy.stats import rankdata

from biotune_optuna.page.parts import Heading, Markdown, Part, Table, Text, markdown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BUDGETS = (14, 20, 28, 50)
SLOW = frozenset({"GPSampler", "HEBO", "SMAC3", "AutoSampler"})
"""Those whose searches take longest: fewer seeds, so that they have no rank."""
RESAMPLES = 2_000


@dataclass(frozen=True)
class Result:
    """One search.

    Attributes:
        searcher: Which.
        landscape: On what.
        seed: Of the search and of the noise.
        given: Whether it was given the informed starts.
        chosen: Budget -> noise-free value of the genome chosen by the searcher's own rule.
        trees: As `chosen`, judged by the trees of the landscape alone.
        made: Digest of what it was made with: table, noise and sampler.
    """

    searcher: str
    landscape: str
    seed: int
    given: bool
    chosen: dict[str, float]
    trees: dict[str, float]
    made: str

    @property
    def key(self) -> tuple[str, str, int, bool]:
        """What tells it from the others."""
        return self.searcher, self.landscape, self.seed, self.given

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


class Values:
    """Results as arrays: searcher -> (landscape, seed, budget).

    Args:
        results: Of all searches.
        names: The landscapes.
        given: Whether those that can be given the informed starts have them.
        rule: The results' attribute that counts.
    """

    def __init__(
        self, results: Sequence[Result], names: list[str], given: bool, rule: str = "chosen"
    ) -> None:
        self.names = names
        self.by: dict[str, NDArray[np.float64]] = {}
        for searcher in SEARCHERS:
            own = [r for r in results if r.searcher == searcher]
            own = [r for r in own if r.given == (given and searcher != BY_MODEL)]
            values = {(r.landscape, r.seed): getattr(r, rule) for r in own}
            seeds = sorted({seed for _, seed in values})
            if values:
                self.by[searcher] = np.array(
                    [[[values[n, s][str(b)] for b in BUDGETS] for s in seeds] for n in names]
                )

    def difference(self, other: str) -> list[str]:
        """Default minus another at each budget, mean and 95 % interval.

        Seeds are drawn anew in pairs, within each landscape.
        """
        ours, theirs = self.by[BY_MODEL], self.by[other]
        seeds = min(ours.shape[1], theirs.shape[1])
        gaps = ours[:, :seeds] - theirs[:, :seeds]
        rng = np.random.default_rng(0)
        drawn = np.array(
            [
                np.mean([gap[rng.integers(seeds, size=seeds)] for gap in gaps], axis=(0, 1))
                for _ in range(RESAMPLES)
            ]
        )
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        mean = gaps.mean(axis=(0, 1))
        return [
            f"{m:+z.4f} ({a:+z.4f} to {b:+z.4f})" for m, a, b in zip(mean, low, high, strict=True)
        ]

    def ranks(self) -> dict[str, NDArray[np.float64]]:
        """Mean rank of each searcher but the slow ones at each budget; 1 is best."""
        names = [name for name in self.by if name not in SLOW]
        seeds = min(self.by[name].shape[1] for name in names)
        values = np.stack([self.by[name][:, :seeds] for name in names])
        return dict(zip(names, rankdata(-values, axis=0).mean(axis=(1, 2)), strict=True))


INTRODUCTION = """
    What each searcher would choose after 14, 20, 28 and 50 evaluations, measured without noise. The
    default preset chooses the first of `rank_finished`; all others choose the genome with the best
    value observed. All search the same space, base rate included. What the default knows of other
    tasks it knows without any table of the same images.

    A landscape is a table of a hundred to five hundred genomes, each trained by this project's
    trainer: a third over the whole space, a third of few blocks, a third where searchers go (in
    the oldest four tables: half over the space, half where searchers went). A model of each table
    (trees, and a Gaussian process on normal scores of ranks) stands for the noise-free value. Noise
    is drawn as trainings of like recipes show it: bad luck in units of the score, good luck as a
    share of the room up to the best training there was. Such a process is what the default fits
    too, which may favour it: so the same choices are judged by the trees alone as well, and
    [real searches](real_search.md) have the last word.

    Intervals are paired bootstrap over seeds (95 %). *Rank* is the mean rank over landscapes and
    seeds among the searchers of the same table. Searchers without a rank have fewer seeds, because
    their searches take longest.
"""


MADE = """
    Made by `python studies/benchmarks/search.py --only …`; the tables say which searchers took part
    and from how many seeds. HEBO, SMAC3 and OptunaHub's AutoSampler can take part where they are
    installed.
"""


def page(results: Sequence[Result]) -> str:
    """The whole page as Markdown."""
    names = sorted({r.landscape for r in results})
    own = Values(results, names, given=False)
    return markdown(
        [
            Heading("Which searcher finds the best recipe?", 1),
            Markdown(INTRODUCTION),
            Heading("Each as it is"),
            *_table(own),
            Heading("All begin with the same informed starts"),
            *_table(Values(results, names, given=True)),
            Heading("Each as it is, judged by the trees alone"),
            *_table(Values(results, names, given=False, rule="trees")),
            Heading("Landscape by landscape, after 28 evaluations"),
            *_by_landscape(own),
            *_quality(landscapes(names)),
            Markdown(MADE),
        ]
    )


def _table(values: Values) -> list[Part]:
    ranks = values.ranks()
    rows = []
    for searcher, found in values.by.items():
        cells = [f"{mean:.4f}" for mean in found.mean(axis=(0, 1))]
        if searcher in ranks:
            cells = [f"{c} ({r:.2f})" for c, r in zip(cells, ranks[searcher], strict=True)]
        rows.append((searcher, str(found.shape[1]), *cells))
    parts: list[Part] = [
        Table(("searcher", "seeds", *(f"{b}: value (rank)" for b in BUDGETS)), rows)
    ]
    if BY_MODEL in values.by and len(values.by) > 1:
        parts.append(Text(_verdict(ranks)))
        rows = [(other, *values.difference(other)) for other in values.by if other != BY_MODEL]
        parts.append(Table(("default minus", *map(str, BUDGETS)), rows))
    return parts


def _verdict(ranks: dict[str, NDArray[np.float64]]) -> str:
    """At which budgets no other searcher has a better mean rank than the default preset."""
    others = np.min([rank for name, rank in ranks.items() if name != BY_MODEL], axis=0)
    best = [str(b) for i, b in enumerate(BUDGETS) if ranks[BY_MODEL][i] <= others[i]]
    if len(best) == len(BUDGETS):
        return "The default has the best mean rank at every budget."
    words = f"at {', '.join(best)} evaluations only" if best else "at no budget"
    return f"The default has the best mean rank {words}."


def _by_landscape(values: Values) -> list[Part]:
    at = BUDGETS.index(28)
    means = {name: found[:, :, at].mean(axis=1) for name, found in values.by.items()}
    rows = [
        (landscape, *(f"{found[i]:.4f}" for found in means.values()))
        for i, landscape in enumerate(values.names)
    ]
    return [Table(("landscape", *means), rows)]


def _quality(real: Sequence[RealLandscape]) -> list[Part]:
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
