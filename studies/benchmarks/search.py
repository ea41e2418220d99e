"""Which searcher finds the best recipe within a budget, when values are noisy?

    python studies/benchmarks/search.py [--seeds 20] [--only paper,default,tpe] [--workers 2]

Closed-form landscapes (see `_landscapes.py`), the same space for all. What counts is the noise-free
value of the genome that each searcher would choose: for Optuna's samplers the one with the best
value observed, for BioTune's default the first of `rank_finished`. Writes docs/benchmarks/search.md.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import sys
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).parent))
from _landscapes import HELD_OUT, TUNED_ON, Landscape, make_space

from biotune_optuna import BioTuneSampler
from biotune_optuna.sampler import rank_finished

if TYPE_CHECKING:
    from collections.abc import Callable

BUDGETS = (20, 50, 140)
DOC = Path(__file__).parents[2] / "docs" / "benchmarks" / "search.md"

SPACE = make_space()
Maker = "Callable[[int], optuna.samplers.BaseSampler]"


def _ours(**options: object) -> Callable[[int], optuna.samplers.BaseSampler]:
    return lambda seed: BioTuneSampler(space=SPACE, seed=seed, **options)  # type: ignore[arg-type]


SEARCHERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "cma-es": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
    "nsga-ii": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "paper": _ours(preset="paper"),
    "default": _ours(),
    "default, not informed": _ours(informed=False),
    "default, not structured": _ours(structured=False),
    "default, no model": _ours(smoothing=False, candidates=1),
    "default, one candidate": _ours(candidates=1),
    "default, no re-evaluation": _ours(reevaluations=0),
    "default, duplicates allowed": _ours(unique=False),
}


def run(task: tuple[str, Landscape, int]) -> tuple[str, str, int, list[float]]:
    """One search; the noise-free value of what it would choose after each budget."""
    name, landscape, seed = task
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng([zlib.crc32(landscape.name.encode()), seed])
    sampler = SEARCHERS[name](seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    chosen = []
    for budget in BUDGETS:
        study.optimize(
            lambda trial: landscape.observe(SPACE.suggest(trial).decode(), rng),
            n_trials=budget - len(study.trials),
        )
        believes = isinstance(sampler, BioTuneSampler) and not name.endswith(("paper", "no model"))
        number = rank_finished(study, SPACE)[0] if believes else study.best_trial.number
        recipe = SPACE.genome(study.trials[number].params).decode()
        chosen.append(landscape.value(recipe))
    return name, landscape.name, seed, chosen


def main() -> None:
    """Runs all searchers and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default=",".join(SEARCHERS), help="searchers, separated by ;")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--group", choices=["tuned", "held-out", "all"], default="all")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    names = [n for n in (args.only.split(";") if ";" in args.only else list(SEARCHERS))]
    if ";" not in args.only and args.only in SEARCHERS:
        names = [args.only]
    groups = {"tuned": TUNED_ON, "held-out": HELD_OUT, "all": (*TUNED_ON, *HELD_OUT)}
    tasks = [
        (name, landscape, seed)
        for name in names
        for landscape in groups[args.group]
        for seed in range(args.seeds)
    ]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        results = pool.map(run, tasks, chunksize=4)
    for name in names:
        rows = np.array([r[3] for r in results if r[0] == name])
        per = " | ".join(
            f"{l.name[:10]} "
            + " ".join(
                f"{v:.4f}"
                for v in np.mean([r[3] for r in results if r[0] == name and r[1] == l.name], axis=0)
            )
            for l in groups[args.group]
        )
        se = rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
        print(f"{name:28s} {rows.mean(axis=0).round(4)} ±{se.round(4)} | {per}", flush=True)


if __name__ == "__main__":
    main()
