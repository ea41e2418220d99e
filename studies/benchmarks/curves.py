"""What does stopping losers by their learning curves cost, and what does it save?

    python studies/benchmarks/curves.py [--draws 200] [--seeds 10]

Two questions on the stored tables of real trainings (``landscapes.py`` made them), nothing is
trained. First, 28 trainings of a table in random order, with their real curves: a rule stops some,
the best of the others is chosen, and what counts is its accuracy on the test images. Second, whole
searches on the models of the tables, where later genomes follow from earlier values: what counts is
the noise-free value of the recipe that is chosen. There a training's curve is that of the most
alike training in the table, scaled to its end. The rules are Optuna's percentile pruners.

It puts its part into docs/benchmarks/study_cost.md.
"""

from __future__ import annotations

import argparse
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from _parts import put
from _real import HERE, RealLandscape, features, landscapes, rates_of
from _searchers import ours
from experience import read_csv
from numpy.typing import NDArray

from biotune_optuna.sampler.sampler import rank_finished

Vector = NDArray[np.float64]
TRIALS = 28
FEWEST = 90  # trainings of a table that is drawn from
SHARES = (1.0, 0.7, 0.5, 0.35)  # of the epochs
ALLOWED = 0.002
Rule = tuple[float, int, int] | None

RULES: dict[str, Rule] = {
    "none": None,
    "worst quarter": (25, 10, 1),
    "worse half, late": (50, 10, 2),
    "worse half": (50, 10, 1),
    "worse half, from the first epoch": (50, 10, 0),
    "worse half, after 5 trials": (50, 5, 0),
    "all but the best quarter": (75, 5, 0),
}
"""Percentile below which a training stops, the finished trials that it needs first, and the epochs
that none is stopped in."""


@dataclass(frozen=True)
class Curves:
    """Trainings of a table on one seed.

    Attributes:
        name: The task.
        curves: Validation score after each epoch.
        test: Accuracy on the test images.
    """

    name: str
    curves: list[list[float]]
    test: Vector


def read() -> list[Curves]:
    """Tables with a test that are large enough to draw from."""
    found = []
    for path in sorted((HERE / "test").glob("*.csv")):
        rows = [row for row in read_csv(HERE / path.name)[1] if row["seed"] == "0"]
        tested = {r["place"]: r["score"] for r in read_csv(path)[1] if r["seed"] == "0"}
        if len(rows) >= FEWEST:
            test = np.array([float(tested[row["place"]]) for row in rows])
            found.append(Curves(path.stem, [numbers(row["curve"]) for row in rows], test))
    return found


def numbers(cell: str) -> list[float]:
    """A curve; one that diverged at once has the score 0."""
    return [float(x) for x in cell.split(";") if x] or [0.0]


def stops(
    rule: tuple[float, int, int] | None, curve: Sequence[float], others: Sequence[Any]
) -> int:
    """Epoch after which a training ends by a rule, as by `optuna.pruners.PercentilePruner`.

    Args:
        rule: As in ``RULES``.
        curve: Score after each epoch.
        others: Those of the trainings that have finished, not stopped ones.
    """
    if rule is not None and len(others) >= rule[1]:
        for epoch in range(rule[2] + 1, len(curve)):
            there = [other[epoch - 1] for other in others if len(other) >= epoch]
            if there and max(curve[:epoch]) < np.percentile(there, rule[0]):
                return epoch
    return len(curve)


def replay(table: Curves, order: Sequence[int], rule: Rule) -> Vector:
    """Test accuracy of the choice, and epochs trained, of the trainings in an order."""
    finished: list[int] = []
    epochs = 0
    for i in order:
        length = stops(rule, table.curves[i], [table.curves[j] for j in finished])
        epochs += length
        if length == len(table.curves[i]):
            finished.append(i)
    best = max(finished, key=lambda i: max(table.curves[i]))
    return np.array([table.test[best], epochs])


class Shapes:
    """Curves of a table by recipe, for a landscape that knows ends alone."""

    def __init__(self, landscape: RealLandscape) -> None:
        made, rows = read_csv(HERE / f"{landscape.name}.csv")
        n = len(made["blocks"])
        rows = [row for row in rows if row["curve"]]
        rates = np.array([[float(r["lr"]) * float(r[f"m{i}"]) for i in range(n)] for r in rows])
        self._curves = [numbers(row["curve"]) for row in rows]
        self._inputs = features(rates)
        self._scale = self._inputs.std(axis=0) + 1e-9

    def of(self, recipe: Any, end: float) -> list[float]:
        """The curve of the most alike training, scaled to an end."""
        apart = (self._inputs - features(rates_of(recipe))) / self._scale
        curve = self._curves[int(np.argmin((apart**2).sum(axis=1)))]
        return [end * value / max(*curve, 1e-9) for value in curve]


def searched(
    landscape: RealLandscape, shapes: Shapes, rule: Rule, seed: int, *, told: bool
) -> Vector:
    """Noise-free value of a search's choice, and the epochs it trained.

    Args:
        landscape: The task.
        shapes: Its curves.
        rule: As in ``RULES``.
        seed: Of search and noise.
        told: Whether a training that is stopped tells its best score as its value, as one that
            ended by patience does. Else it is PRUNED, and the model knows nothing of it.
    """
    space, epochs = landscape.space, 0
    rng = np.random.default_rng([zlib.crc32(landscape.name.encode()), seed])
    study = optuna.create_study(direction="maximize", sampler=ours()(space, seed))
    finished: list[list[float]] = []

    def objective(trial: optuna.Trial) -> float:
        nonlocal epochs
        recipe = space.suggest(trial).decode()
        curve = shapes.of(recipe, landscape.observe(recipe, rng))
        length = stops(rule, curve, finished)
        epochs += length
        if length == len(curve):
            finished.append(curve)
        elif not told:
            raise optuna.TrialPruned
        return max(curve[:length])

    study.optimize(objective, n_trials=TRIALS)
    number = rank_finished(study, space)[0]
    return np.array([landscape.value(space.genome(study.trials[number].params).decode()), epochs])


def compared(
    measure: Callable[[Rule], Sequence[Vector]], base: Vector
) -> dict[str, tuple[float, float, float]]:
    """For each rule: share of the epochs, mean loss against none, and its standard error."""
    found = {}
    for name, rule in RULES.items():
        here = base if rule is None else np.array(measure(rule))
        loss = base[:, 0] - here[:, 0]
        error = float(loss.std(ddof=1) / np.sqrt(len(loss)))
        found[name] = (float(here[:, 1].sum() / base[:, 1].sum()), float(loss.mean()), error)
        print(name, found[name], flush=True)
    return found


def table(columns: dict[str, dict[str, tuple[float, float, float]]]) -> list[str]:
    """Rules as rows; for each column the share of the epochs and the loss."""
    head = ["| stopped | percentile, trials, epochs |", "|---|---|"]
    for name in columns:
        head = [head[0] + f" {name}: epochs | loss |", head[1] + "---:|---:|"]
    lines = []
    for rule, given in RULES.items():
        told = "" if given is None else "{:g}, {}, {}".format(*given)
        cells = [
            f"{100 * share:.0f} % | {loss:+.4f} ± {error:.4f}"
            for share, loss, error in (column[rule] for column in columns.values())
        ]
        lines.append(f"| {rule} | {told} | " + " | ".join(cells) + " |")
    return [*head, *lines]


def verdict(column: dict[str, tuple[float, float, float]]) -> list[str]:
    """For each share of the epochs the rule that spends no more and loses least."""
    lines = ["| epochs at most | rule that loses least | loss |", "|---:|---|---:|"]
    for most in SHARES:
        fitting = {rule: v for rule, v in column.items() if v[0] <= most + 0.005}
        if not fitting:
            lines.append(f"| {100 * most:.0f} % | none spends so little | |")
            continue
        rule = min(fitting, key=lambda one: fitting[one][1])
        share, loss, error = fitting[rule]
        lines.append(
            f"| {100 * most:.0f} % | {rule} ({100 * share:.0f} %) | {loss:+.4f} ± {error:.4f} |"
        )
    return lines


def conclusion(told: dict[str, tuple[float, float, float]]) -> str:
    """Which rule that saves a third surely loses less than is allowed, by two standard errors."""
    third = {rule: v for rule, v in told.items() if v[0] <= SHARES[1] + 0.005}
    sure = [rule for rule, (_, loss, error) in third.items() if loss + 2 * error < ALLOWED]
    least = min(third, key=lambda rule: third[rule][1])
    return (
        f"Of the rules that leave {100 * SHARES[1]:.0f} % of the epochs or fewer, *{least}*, told,"
        f" loses least. Shown to lose less than {ALLOWED:g}, by two standard errors, is"
        f" {', '.join(f'*{rule}*' for rule in sure) or 'none of them'}."
    )


def main() -> None:
    """Measures and writes the part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    tables = read()
    orders = [
        (one, np.random.default_rng([i]).permutation(len(one.curves))[:TRIALS])
        for one in tables
        for i in range(args.draws)
    ]

    def replayed(rule: Rule) -> list[Vector]:
        return [replay(one, order, rule) for one, order in orders]

    drawn = compared(replayed, np.array(replayed(None)))
    repeated = landscapes()
    shapes = {one.name: Shapes(one) for one in repeated}
    columns = {}
    base: Vector | None = None
    for told, name in ((False, "pruned"), (True, "told")):

        def measure(rule: Rule, told: bool = told) -> list[Vector]:
            return [
                searched(one, shapes[one.name], rule, seed, told=told)
                for one in repeated
                for seed in range(args.seeds)
            ]

        base = np.array(measure(None)) if base is None else base  # the same for both
        columns[name] = compared(measure, base)
    text = part(tables, repeated, args, drawn, columns)
    if not args.no_write:
        put("curves", text)
    print(text)


def part(
    tables: Sequence[Curves],
    repeated: Sequence[RealLandscape],
    args: argparse.Namespace,
    drawn: dict[str, tuple[float, float, float]],
    columns: dict[str, dict[str, tuple[float, float, float]]],
) -> str:
    """The part of the page."""
    n = sum(len(one.curves) for one in tables)
    return "\n".join(
        [
            "## Stopping losers by their learning curves",
            "",
            f"{n} real trainings of {', '.join(one.name for one in tables)}, of at most 8 epochs"
            " with patience 3. "
            f"{TRIALS} of a table in random order, {args.draws} orders each: a training stops where"
            " its best score so far is below a percentile of what the finished ones had at that"
            " epoch (Optuna's `PercentilePruner`). The best of those that ended is chosen. The loss"
            " is in its accuracy on test images that nobody looked at, with its standard error.",
            "",
            *table({"random order": drawn}),
            "",
            *verdict(drawn),
            "",
            "Whole searches are another matter: later genomes follow from earlier values. On"
            f" {', '.join(one.name for one in repeated)}, {args.seeds} searches each, the same"
            " rules. The loss is in the noise-free value of the recipe that the model of the"
            " landscape chooses. *Pruned*: trainings that stop give no value, as Optuna has it, so"
            " the model knows nothing of them. *Told*: their best score so far is their value. A"
            " training's curve is that of the most alike one in the table, scaled to its end.",
            "",
            *table(columns),
            "",
            "Epochs at most, and the rule that loses least, *pruned*:",
            "",
            *verdict(columns["pruned"]),
            "",
            "And *told*:",
            "",
            *verdict(columns["told"]),
            "",
            conclusion(columns["told"]),
            "",
            "Made by `python studies/benchmarks/curves.py"
            f" --draws {args.draws} --seeds {args.seeds}`.",
        ]
    )


if __name__ == "__main__":
    main()
