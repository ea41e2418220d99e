"""Learns from the tables of real trainings what a search may know of a task it has never seen.

    python studies/benchmarks/experience.py [--tune] [--without TASK …] [--out FILE]

Writes biotune_optuna/evolution/experience.json: which kinds of genome do well (a ridge regression
of the values, one standard deviation of a table being the unit, on features relative to depth),
how far tasks differ from that, and the recipes to begin with, see `starts.py`. Says how well the
values of each table are foretold by what the other tables teach.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import starts
from scipy.stats import norm, rankdata, spearmanr

from biotune_optuna.evolution import experience, surrogate
from biotune_optuna.evolution.domain import Domain
from biotune_optuna.evolution.experience import Experience
from biotune_optuna.evolution.informed import encode
from biotune_optuna.genome import GenomeSpace
from biotune_optuna.recipe import BlockRecipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

HERE = Path(__file__).parent / "landscapes"
OUT = Path(experience.__file__).with_suffix(".json")
RIDGE = 10.0
"""Strength of the ridge, in rows of which every table has a hundred."""
VARIANCES: dict[str, Any] = {
    "linear": 1.0,
    "residual": 0.8,
    "noise": 0.3,
    "lengths": (2.0, 0.5, 1.0),
}
"""By --tune: what makes the values of a table likeliest that is left out. The noise is twice that,
by hand: the trainings of a table share one seed, those of a search do not."""
TUNED = {
    "linear": (0.1, 0.3, 0.6, 1.0),
    "residual": (0.1, 0.2, 0.4, 0.8),
    "noise": (0.15, 0.3, 0.6),
    "lengths": tuple(itertools.product((0.5, 1.0, 2.0), repeat=3)),
}
OBSERVED = (10, 24)
"""Values that are known of a table when the others are foretold."""
ONE_SEED = frozenset(
    f"lite0-{data}" for data in ("trashnet5", "tomato_leaf10", "hymenoptera", "neu_steel")
)
"""Tables of which one seed counts: the package had learned before others were trained."""
REPORTED = frozenset({"lite0-hymenoptera", "lite0-pneumonia"})
"""Tables of images on which the package is judged in the end: it learns nothing from them."""
N_STARTS = 8


@dataclass(frozen=True)
class Known:
    """What a table says.

    Attributes:
        name: Its task.
        logs: Decades from the middle rate, −inf where frozen, shape (N, B).
        scores: Validation score of each training, shape (N,).
        tests: Test score, where the table has one, else the validation score.
        repeat: Which of the seeds.
    """

    name: str
    logs: Vector
    scores: Vector
    tests: Vector
    repeat: NDArray[np.int64]

    @classmethod
    def read(cls, path: Path) -> Known:
        """Reads a table, and its test where there is one."""
        made, rows = read_csv(path)
        rows = [row for row in rows if row["seed"] == "0" or path.stem not in ONE_SEED]
        blocks = range(len(made["blocks"]))
        rates = np.array([[float(r["lr"]) * float(r[f"m{i}"]) for i in blocks] for r in rows])
        with np.errstate(divide="ignore"):
            logs = np.log10(rates) - np.mean(np.log10(made["spec"]["lr"]))
        scores = np.array([float(row["score"]) for row in rows])
        tests = scores
        beside = path.parent / "test" / path.name
        if beside.exists():
            known = {(r["place"], r["seed"]): float(r["score"]) for r in read_csv(beside)[1]}
            tests = np.array([known[row["place"], row["seed"]] for row in rows])
        repeat = np.array([int(row["seed"]) for row in rows])
        return cls(path.stem, logs, scores, tests, repeat)

    @classmethod
    def of_starts(cls) -> list[Known]:
        """The trainings of candidates for starts, a table for each image set."""
        tried: dict[str, list[starts.Tried]] = {}
        for one in starts.read():
            tried.setdefault(f"starts-{one.task}", []).append(one)
        return [
            cls(
                name,
                np.array([one.start.log_rates(starts.N_BLOCKS) for one in rows]),
                np.array([one.validation for one in rows]),
                np.array([one.test for one in rows]),
                np.array([one.seed for one in rows]),
            )
            for name, rows in tried.items()
        ]


def read_csv(path: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The header and the rows of a table."""
    with path.open() as file:
        return json.loads(file.readline().removeprefix("# ")), list(csv.DictReader(file))


def normal_scores(values: Vector) -> Vector:
    """What the ranks of values would be worth in a normal sample: tables become comparable."""
    return np.asarray(norm.ppf((rankdata(values) - 0.5) / len(values)))


def learn(tables: Sequence[Known], **changes: Any) -> Experience:
    """What the tables teach together; each counts the same."""
    inputs = np.vstack([experience.features(one.logs) for one in tables])
    targets = np.concatenate([normal_scores(one.scores) for one in tables])
    shares = np.concatenate([np.full(len(t.scores), 100.0 / len(t.scores)) for t in tables])
    means, scales = inputs.mean(axis=0), inputs.std(axis=0) + 1e-9
    standard = (inputs - means) / scales
    weighted = standard * shares[:, None]
    level = np.average(targets, weights=shares)
    gram = standard.T @ weighted + RIDGE * np.eye(standard.shape[1])
    weights = np.linalg.solve(gram, weighted.T @ (targets - level))
    values: dict[str, Any] = {**VARIANCES, "starts": ()}
    return Experience(
        means=tuple(np.round(means, 5).tolist()),
        scales=tuple(np.round(scales, 5).tolist()),
        weights=tuple(np.round(weights, 5).tolist()),
        tables=tuple(one.name for one in tables),
        **values | changes,
    )


def domain_of(n_blocks: int) -> Domain:
    """The usual space over so many blocks."""
    space = GenomeSpace([BlockRecipe(f"b{i}", 1.0) for i in range(n_blocks)])
    return Domain(space.names, np.zeros(len(space.names), dtype=np.int64), space)


def unit(domain: Domain, logs: Vector) -> Vector:
    """The genes of rates that are told from the middle one, each in [0, 1]."""
    genome = encode(domain.genomes, logs)
    low, high = np.log10(domain.genomes.extra_bounds["lr"])
    return np.array([*genome.values, (np.log10(genome.extras["lr"]) - low) / (high - low)])


def surprise(table: Known, known: Experience, repeats: int = 6) -> float:
    """Mean negative log likelihood of a table's better values, some of the others known."""
    domain = domain_of(table.logs.shape[1])
    genes = np.array([unit(domain, logs) for logs in table.logs])
    first = np.flatnonzero(table.repeat == 0)
    lost = []
    with patch.object(experience, "learned", lambda: known):
        for n, repeat in itertools.product(OBSERVED, range(repeats)):
            drawn = np.random.default_rng([n, repeat]).permutation(first)
            seen, rest = drawn[:n], drawn[n:]
            model = surrogate.fit(domain, genes[seen], -table.scores[seen], np.ones(n))
            assert model is not None
            means, spreads = model.predict(genes[rest])
            good = table.scores[rest] > np.quantile(table.scores[rest], 0.4)
            variance = spreads**2 + model.noise**2
            error = -table.scores[rest] - means
            lost.append(float(np.mean((np.log(variance) + error**2 / variance)[good]) / 2))
    return float(np.mean(lost))


def of_others(table: Known, tables: Sequence[Known]) -> list[Known]:
    """The tables of other images than a table's."""
    own = table.name.partition("-")[2]
    names = {one.name: one.name.partition("-")[2] for one in tables}
    return [t for t in tables if own not in names[t.name] and names[t.name] not in own]


def tune(tables: Sequence[Known]) -> dict[str, Any]:
    """Variances and length scales, one after another, twice."""
    best = dict(VARIANCES)

    def loss(values: dict[str, Any]) -> float:
        known = [learn(of_others(table, tables), **values) for table in tables]
        return float(np.mean([surprise(*pair, 2) for pair in zip(tables, known, strict=True)]))

    for name, options in [*TUNED.items()] * 2:
        best[name] = min(options, key=lambda value: loss({**best, name: value}))
        print(name, best[name], flush=True)
    print(f"{best}: {loss(best):.3f}")
    return best


def foretold(table: Known, others: Sequence[Known]) -> float:
    """Rank correlation of a table's test scores with what the others make expected."""
    known = learn(others)
    cost = known.cost(known.standardised(experience.features(table.logs)))
    return float(spearmanr(-cost, table.tests).statistic)


def read_tables(without: Sequence[str] = ()) -> list[Known]:
    """All tables that may teach but those named."""
    tables = [*map(Known.read, sorted(HERE.glob("*-*.csv"))), *Known.of_starts()]
    return [one for one in tables if one.name not in {*without, *REPORTED}]


def without(*data: str) -> Experience:
    """What the tables of other images teach."""
    tables = [one for one in read_tables() if not any(name in one.name for name in data)]
    tried = [one for one in starts.read() if not any(name in one.task for name in data)]
    return learn(tables, starts=starts.choose(tried, N_STARTS))


def main() -> None:
    """Learns and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--tune", action="store_true", help="also look for variances and scales")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    tables = read_tables(args.without)
    for table in tables:
        told = foretold(table, of_others(table, tables))
        print(f"{table.name}: {len(table.scores)} trainings, foretold {told:.2f}")
    chosen = starts.choose(starts.read(), N_STARTS)
    known = learn(tables, starts=chosen, **(tune(tables) if args.tune else {}))
    for start in known.starts:
        print(start)
    args.out.write_text(json.dumps(known.to_dict(), indent=1) + "\n")


if __name__ == "__main__":
    main()
