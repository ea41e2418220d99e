"""Does a confirmation lose anything by what it takes from the search instead of training it?

    python studies/benchmarks/known.py [--seeds 10] [--trials 28]

On models of the tables of real trainings (``landscapes.py`` made them). After a search the base
rate of full fine-tuning is chosen twice: as before, by a training at each of five rates and further
ones at an end; and by `biotune_optuna.confirmation.known.ModelledRates`. What counts is the
noise-free value of full fine-tuning at the rate that is chosen, against its best rate. Then the
re-evaluations that count as runs of a confirmation: how far they lie above the noise-free value,
which runs on fresh seeds do not on average.

The landscape's model has learned from the same tables, so that a new task may do worse. It puts its
part into docs/benchmarks/study_cost.md.
"""

from __future__ import annotations

import argparse
import warnings
import zlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from _parts import put
from _real import RealLandscape, landscapes
from _searchers import ours

from biotune_optuna import Recipe
from biotune_optuna.confirmation.candidates import leading
from biotune_optuna.confirmation.known import ModelledRates, counted_runs
from biotune_optuna.confirmation.plan import ConfirmPlan, further_rate, rates_around
from biotune_optuna.schema import RUNS_KEY

Observe = Callable[[Recipe], float]


def searched(landscape: RealLandscape, seed: int, n_trials: int) -> tuple[Any, Observe]:
    """A search as the confirmation sees it, and what one training of a recipe gives."""
    space = landscape.space
    rng = np.random.default_rng([zlib.crc32(landscape.name.encode()), seed])
    study = optuna.create_study(direction="maximize", sampler=ours()(space, seed))

    def objective(trial: optuna.Trial) -> float:
        value = landscape.observe(space.suggest(trial).decode(), rng)
        trial.set_user_attr(RUNS_KEY, [{"fold": None, "seed": trial.number, "score": value}])
        return value

    study.optimize(objective, n_trials=n_trials)
    setup = SimpleNamespace(space=space, blocks=space.blocks)
    return SimpleNamespace(study=study, setup=setup), lambda one: landscape.observe(one, rng)


def by_grid(full: Callable[[float], Recipe], observe: Observe, plan: ConfirmPlan) -> list[float]:
    """The rates that are trained without a model, the chosen one first."""
    seen = {rate: observe(full(rate)) for rate in plan.rates}
    for _ in range(plan.more_rates):
        if (rate := further_rate(seen)) is None:
            break
        seen[rate] = observe(full(rate))
    return sorted(seen, key=lambda rate: (-seen[rate], rate))


def by_model(
    study: Any, full: Callable[[float], Recipe], observe: Observe, plan: ConfirmPlan
) -> list[float]:
    """The rates that are trained with one, the chosen one first."""
    rates = rates_around(plan.rates, plan.more_rates)
    known = ModelledRates(study, study.study.trials, "full", rates, most=len(plan.rates))
    seen: dict[float, float] = {}
    while (rate := known.further(seen)) is not None:
        seen[rate] = observe(full(rate))
    best = known.best(seen)
    return [best, *(rate for rate in seen if rate != best)]


def measured(landscape: RealLandscape, seed: int, n_trials: int) -> dict[str, Any]:
    """What came of one search."""
    plan, space = ConfirmPlan(), landscape.space
    study, observe = searched(landscape, seed, n_trials)

    def full(rate: float) -> Recipe:
        return Recipe.full(space.blocks, lr=rate, weight_decay=space.base_weight_decay)

    best = max(landscape.value(full(rate)) for rate in rates_around(plan.rates, plan.more_rates))
    found: dict[str, Any] = {"task": landscape.name}
    for name, rates in (
        ("grid", by_grid(full, observe, plan)),
        ("model", by_model(study, full, observe, plan)),
    ):
        found[name] = (best - landscape.value(full(rates[0])), len(rates))
    counted, others = counted_runs(study, plan, study.study.trials)
    for name, trials in (("counted", others), ("if chosen with it", study.study.trials)):
        found[name] = [
            counted[recipe.key()][1].score - landscape.value(recipe)
            for _, recipe in leading(study, plan.top_k, trials)
            if recipe.key() in counted
        ]
    return found


def part(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> str:
    """The part of the page."""
    lines = [
        "## What the confirmation takes from the search",
        "",
        f"Searches of {args.trials} trials on models of the tables of real trainings,"
        f" {args.seeds} on each. The base rate of full fine-tuning is chosen by a training at each"
        " of five rates, and further ones at an end, as before; or by the search's model, which"
        " says what to train. The loss is in the noise-free value of full fine-tuning at the rate"
        " that is chosen, against the best of eleven. The model has learned from the same tables,"
        " so a new task may do worse.",
        "",
        "| task | five rates: loss | trainings | the model's: loss | trainings |",
        "|---|---:|---:|---:|---:|",
    ]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for task in [*tasks, "all"]:
        own = [row for row in rows if task in (row["task"], "all")]
        cells = []
        for name in ("grid", "model"):
            loss, count = np.array([row[name] for row in own]).mean(axis=0)
            cells += [f"{loss:.4f}", f"{count:.1f}"]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    apart = np.array([row["model"][0] - row["grid"][0] for row in rows])
    error = apart.std(ddof=1) / np.sqrt(len(apart))
    return "\n".join(
        [
            *lines,
            "",
            f"The model's loss minus that of five rates: {apart.mean():+.4f}, standard error"
            f" {error:.4f}.",
            "",
            f"A re-evaluation by the search counted as a run of a leading recipe"
            f" {_above(rows, 'counted')}. A run on a fresh seed is 0 above it. Were the recipes"
            f" chosen with these runs, it would be {_above(rows, 'if chosen with it')}: so they are"
            " chosen without.",
            "",
            f"Made by `python studies/benchmarks/known.py --seeds {args.seeds}"
            f" --trials {args.trials}`.",
        ]
    )


def _above(rows: Sequence[dict[str, Any]], name: str) -> str:
    """How often runs counted, and how far they lay above the noise-free value."""
    runs = np.array([one for row in rows for one in row[name]])
    if len(runs) < 2:
        return f"{len(runs)} times in {len(rows)} searches"
    error = runs.std(ddof=1) / np.sqrt(len(runs))
    return (
        f"{len(runs)} times in {len(rows)} searches, on average {runs.mean():+.4f} above the"
        f" noise-free value (standard error {error:.4f})"
    )


def main() -> None:
    """Measures and writes the part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=28)
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    # Without repeated trainings nothing is known of a table's noise.
    known = landscapes()
    rows = []
    for landscape in known:
        rows += [measured(landscape, seed, args.trials) for seed in range(args.seeds)]
        print(landscape.name, rows[-1], flush=True)
    text = part(rows, args)
    if not args.no_write:
        put("known", text)
    print(text)


if __name__ == "__main__":
    main()
