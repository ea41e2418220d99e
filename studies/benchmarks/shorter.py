"""How short may a study be? Trials of the search and trainings of the confirmation, against loss.

    python studies/benchmarks/shorter.py [--seeds 8] [--trials 60] [--cache FOLDER]

On models of the tables of real trainings (``landscapes.py`` made them); nothing is trained. A
search is cut off after so many trials, and what it knows by then is confirmed by several rules.
What counts is the noise-free value of the recipe that wins, against the best that any search of the
task has tried, and how many trainings it took. The luck of the fresh seeds is drawn many times.
What a search knows of other tasks it knows without any table of the same images.

Every search is kept in the cache, and the same command goes on where it stopped. It puts a part
into docs/benchmarks/study_cost.md, and one into optimism.md: how far what is reported lies too
high.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import optuna
from _parts import PAGE, put
from _real import RealLandscape, landscapes
from experience import without
from known import Observe, by_model, searched
from numpy.typing import NDArray

from biotune_optuna import Recipe
from biotune_optuna.confirmation.candidates import leading
from biotune_optuna.confirmation.known import counted_runs
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.effort import NORMAL
from biotune_optuna.evolution import experience
from biotune_optuna.sampler.ranking import Belief

if TYPE_CHECKING:
    from biotune_optuna.evolution.experience import Experience

LENGTHS = (8, 12, 16, 20, 24, 28, 40, 60)
DRAWS = 50
OPTIMISM = PAGE.with_name("optimism.md")
BEFORE = 28  # trials of what all is compared with
USUAL = f"{NORMAL.top_k} recipes, {NORMAL.n_runs} seeds"
EARLIER = (60, 28)  # trials and trainings that confirm, of the default before

Vector = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """What a search knows when it ends, and what fresh seeds would say.

    Attributes:
        values: Noise-free value of each contender, full fine-tuning last.
        believed: What the model of the landscape expects of each.
        doubt: The standard deviation of that.
        rates: Trainings that full fine-tuning's rate took.
        fresh: Scores on fresh seeds, shape (draws, 3, contenders).
        noise: Standard deviation of one training of a recipe like the best ones.
    """

    values: Vector
    believed: Vector
    doubt: Vector
    rates: int
    fresh: Vector
    noise: float

    @classmethod
    def of(cls, row: Row, noise: float) -> Standing:
        """Read what `standing` has written."""
        values, believed, doubt, fresh = (
            np.array(row[name]) for name in ("values", "believed", "doubt", "fresh")
        )
        return cls(values, believed, doubt, row["rates"], fresh, noise)


Rule = Callable[[Standing, Vector], tuple[int, int]]
"""Takes one draw of fresh scores; returns who wins, and the trainings on fresh seeds."""


def fixed(top: int, runs: int) -> Rule:
    """The best mean of so many recipes and full fine-tuning, on so many fresh seeds each."""

    def choose(known: Standing, fresh: Vector) -> tuple[int, int]:
        last = len(known.values) - 1
        part = [*range(min(top, last)), last]
        return part[int(fresh[:runs, part].mean(axis=0).argmax())], runs * len(part)

    return choose


def unconfirmed(known: Standing, fresh: Vector) -> tuple[int, int]:
    """The first by the model of the landscape; nothing is trained."""
    del known, fresh
    return 0, 0


def raced(behind: float) -> Rule:
    """Seed by seed; who is behind by so many standard errors of a difference is left."""

    def choose(known: Standing, fresh: Vector) -> tuple[int, int]:
        alive, trained = np.arange(len(known.values)), 0
        for runs in range(1, len(fresh) + 1):
            trained += len(alive)
            means = fresh[:runs, alive].mean(axis=0)
            best = int(alive[means.argmax()])
            alive = alive[means >= means.max() - behind * known.noise * math.sqrt(2 / runs)]
            if len(alive) == 1:
                break
        return best, trained

    return choose


def weighed(runs: int) -> Rule:
    """The mean on fresh seeds, weighed with what the model of the landscape expects."""

    def choose(known: Standing, fresh: Vector) -> tuple[int, int]:
        weight = known.doubt**2 / (known.doubt**2 + known.noise**2 / runs)
        found = weight * fresh[:runs].mean(axis=0) + (1 - weight) * known.believed
        return int(found.argmax()), runs * len(found)

    return choose


RULES: dict[str, Rule] = {
    "none: the model's first": unconfirmed,
    USUAL: fixed(3, 3),
    "3 recipes, 2 seeds": fixed(3, 2),
    "2 recipes, 3 seeds": fixed(2, 3),
    "2 recipes, 2 seeds": fixed(2, 2),
    "3 recipes, 1 seed": fixed(3, 1),
    "3 recipes, up to 3 seeds, left at 1 standard error": raced(1.0),
    "3 recipes, up to 3 seeds, left at half of one": raced(0.5),
    "3 recipes, 3 seeds, weighed with the model": weighed(3),
    "3 recipes, 2 seeds, weighed with the model": weighed(2),
    "3 recipes, 1 seed, weighed with the model": weighed(1),
}


def standing(study: Any, observe: Observe, landscape: RealLandscape) -> Row:
    """What is known when a search ends, as JSON-ready data."""
    plan, space = ConfirmPlan(), landscape.space

    def full(rate: float) -> Recipe:
        return Recipe.full(space.blocks, lr=rate, weight_decay=space.base_weight_decay)

    _, others = counted_runs(study, plan, study.study.trials)
    recipes = [recipe for _, recipe in leading(study, plan.top_k, others)]
    rates = by_model(study, full, observe, plan)
    recipes.append(full(rates[0]))
    believed, doubt = Belief(study.study, space).values([space.encode(one) for one in recipes])
    best = study.study.best_trial
    fresh = [[[observe(one) for one in recipes] for _ in range(3)] for _ in range(DRAWS)]
    return {
        "values": [landscape.value(one) for one in recipes],
        "believed": believed.tolist(),
        "doubt": doubt.tolist(),
        "rates": len(rates),
        "fresh": np.round(fresh, 4).tolist(),
        "search": [best.value, landscape.value(space.genome(best.params).decode())],
    }


@functools.cache
def known_of_others(task: str) -> Experience:
    """What the tables of other images teach; digits are digits, whoever wrote them."""
    images = task.partition("-")[2]
    alike = ("digits", "mnist") if images in ("digits", "mnist") else (images,)
    return without(*alike)


def one_search(landscape: RealLandscape, seed: int, args: argparse.Namespace) -> Row:
    """A search, cut off at every length, from the cache where it is there."""
    path = args.cache / f"{landscape.name}-{seed}-{args.trials}.json"
    if not path.exists():
        known = known_of_others(landscape.name)
        with patch.object(experience, "learned", lambda: known):
            row = _searched(landscape, seed, args.trials)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(row))
        new.replace(path)
        print(landscape.name, seed, flush=True)
    read: Row = json.loads(path.read_text())
    return read


def _searched(landscape: RealLandscape, seed: int, trials: int) -> Row:
    study, observe = searched(landscape, seed, trials)
    found: Row = {}
    for length in [n for n in LENGTHS if n <= trials]:
        cut = optuna.create_study(direction="maximize")
        cut.add_trials(study.study.trials[:length])
        known = SimpleNamespace(study=cut, setup=study.setup)
        found[str(length)] = standing(known, observe, landscape)
    tried = (landscape.space.genome(t.params).decode() for t in study.study.trials)
    return {"best": max(map(landscape.value, tried)), "noise": landscape.noise()} | found


def outcomes(rows: Mapping[str, Sequence[Row]], length: int, rule: Rule) -> tuple[Vector, Vector]:
    """Loss of the winner and trainings after the search: mean of each search's draws."""
    losses, trained = [], []
    for searches in rows.values():
        best = max(row["best"] for row in searches)
        for row in searches:
            known = Standing.of(row[str(length)], row["noise"])
            chosen = [rule(known, fresh) for fresh in known.fresh]
            losses.append(np.mean([best - known.values[who] for who, _ in chosen]))
            trained.append(known.rates + np.mean([count for _, count in chosen]))
    return np.array(losses), np.array(trained)


def part(rows: Mapping[str, Sequence[Row]], args: argparse.Namespace) -> str:
    """The part of the page."""
    lengths = [n for n in LENGTHS if n <= args.trials]
    lines = [
        "## How short a study may be",
        "",
        f"Searches on models of the tables of real trainings ({', '.join(rows)};"
        f" {args.seeds} each), cut off after so many trials, and their confirmation by several"
        f" rules, with {DRAWS} draws of fresh seeds. The contenders are the best recipes and full"
        " fine-tuning at the rate that the model names. *Trainings* are of search and confirmation,"
        f" without the final ones. *Loss*: how far the noise-free value of who wins lies below that"
        f" of the same search with {BEFORE} trials and {USUAL}, mean over the searches with its"
        " standard error. Rules that leave contenders, or weigh, are told the standard deviation of"
        " a training. What a search knows of other tasks it knows without any table of the same"
        " images.",
        "",
        f"| confirmation | {' | '.join(f'{n} trials' for n in lengths)} |",
        f"|---|{'---:|' * len(lengths)}",
    ]
    before, _ = outcomes(rows, min(BEFORE, args.trials), RULES[USUAL])
    found = {name: [outcomes(rows, n, rule) for n in lengths] for name, rule in RULES.items()}
    for name, one in found.items():
        cells = (f"{n + trained.mean():.1f}" for n, (_, trained) in zip(lengths, one, strict=True))
        lines.append(f"| {name}: trainings | {' | '.join(cells)} |")
    for name, one in found.items():
        lines.append(f"| {name}: loss | {' | '.join(_apart(ours - before) for ours, _ in one)} |")
    losses = ", ".join(
        f"{ours.mean():.4f} after {n}" for n, (ours, _) in zip(lengths, found[USUAL], strict=True)
    )
    lines += [
        "",
        f"With {USUAL} the loss itself is {losses} trials, below the best that any search of the"
        " task has tried.",
    ]
    if NORMAL.trials in lengths:
        ours, confirming = found[USUAL][lengths.index(NORMAL.trials)]
        longest, _ = found[USUAL][lengths.index(lengths[-1])]
        count = NORMAL.trials + confirming.mean() + NORMAL.members
        lines += [
            "",
            f"`biotune tune` has {NORMAL.trials} trials where nobody says more, {USUAL} and"
            f" {NORMAL.members} members: {count:.0f} trainings. The earlier default had"
            f" {EARLIER[0]} trials, {EARLIER[1]} trainings to confirm and one final training:"
            f" {sum(EARLIER) + 1}. So it takes {count / (sum(EARLIER) + 1):.0%}. With {USUAL},"
            f" {NORMAL.trials} trials lose {_apart(ours - longest)} against {lengths[-1]}.",
        ]
    return "\n".join([*lines, "", f"Made by `{_command(args)}`."])


def _apart(losses: Vector) -> str:
    error = losses.std(ddof=1) / math.sqrt(len(losses))
    return f"{losses.mean():+.4f} ± {error:.4f}"


def optimism(rows: Mapping[str, Sequence[Row]], args: argparse.Namespace) -> str:
    """The part of the page on optimism."""
    lines = [
        "## On models of real trainings",
        "",
        f"Searches on models of the tables of real trainings ({', '.join(rows)};"
        f" {args.seeds} each), where the value without luck is known. *Too high*: what is reported"
        " minus that value, mean over the searches with its standard error. Reported are the best"
        " value of the search; or the winner's mean on fresh seeds, of three recipes and full"
        f" fine-tuning ({DRAWS} draws). Only the luck of seeds is in it, not that of the validation"
        " images, which is the same for both.",
        "",
        "| trials | best value of the search: too high | mean of 3 fresh seeds: too high |",
        "|---:|---:|---:|",
    ]
    every = [row for searches in rows.values() for row in searches]
    for length in [n for n in LENGTHS if n <= args.trials]:
        search = np.array([np.subtract(*row[str(length)]["search"]) for row in every])
        fresh = np.array([_winners_luck(Standing.of(row[str(length)], 0.0)) for row in every])
        cells = (
            f"{one.mean():+.4f} ± {one.std(ddof=1) / math.sqrt(len(one)):.4f}"
            for one in (search, fresh)
        )
        lines.append(f"| {length} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Made by `{_command(args)}`."])


def _winners_luck(known: Standing) -> float:
    """How far the winner's mean on fresh seeds lies above its value, over the draws."""
    means = known.fresh.mean(axis=1)
    best = means.argmax(axis=1)
    return float((means.max(axis=1) - known.values[best]).mean())


def _command(args: argparse.Namespace) -> str:
    return f"python studies/benchmarks/shorter.py --seeds {args.seeds} --trials {args.trials}"


def main() -> None:
    """Runs the searches that are missing and writes the part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--cache", type=Path, default=Path("shorter"))
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    args.cache.mkdir(parents=True, exist_ok=True)
    known = landscapes()
    for seed in range(args.seeds):  # some of each task soon
        for landscape in known:
            one_search(landscape, seed, args)
    rows = {one.name: [one_search(one, seed, args) for seed in range(args.seeds)] for one in known}
    texts = part(rows, args), optimism(rows, args)
    if not args.no_write:
        put("shorter", texts[0])
        put("shorter", texts[1], OPTIMISM)
    print("\n\n".join(texts))


if __name__ == "__main__":
    main()
