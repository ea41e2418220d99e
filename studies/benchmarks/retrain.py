"""Trains for real what searchers chose on the models of the tasks (``search.py`` first).

    python studies/benchmarks/retrain.py TASK … --data-root FOLDER --cache search-cache.jsonl

Adds to studies/benchmarks/landscapes/retrained.csv, from which ``search.py`` makes its table.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path

import torch
from _real import landscapes
from _search_page import RETRAINED, Result
from _tasks import TASKS

from biotune_optuna import Recipe

SEARCHERS = ("default", "TPESampler", "CmaEsSampler")
FRESH = 5_000  # first seed; the tables end far below
FIELDS = ("task", "searcher", "seed", "model", "scores")


def main() -> None:
    """Trains the choices of the first seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(TASKS)}; none: nothing is done")
    parser.add_argument("--data-root", type=Path, nargs="+", default=[Path("data")])
    parser.add_argument("--cache", type=Path, default=Path("search-cache.jsonl"))
    parser.add_argument("--landscape-cache", type=Path, default=Path("landscape-cache"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trainings", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if not args.cache.exists():
        print(f"{args.cache}: no searches yet; run search.py first")
        return
    results = [Result(**json.loads(line)) for line in args.cache.read_text().splitlines()]
    done = set()
    if RETRAINED.exists():
        with RETRAINED.open() as file:
            done = {(r["task"], r["searcher"], int(r["seed"])) for r in csv.DictReader(file)}
    for name in args.tasks:
        setup = TASKS[name].open(args.data_root, args.landscape_cache)
        (landscape,) = landscapes([name])
        train, val = setup.splits.run(None)
        for result in results:
            key = (name, result.searcher, result.seed)
            wanted = result.landscape == name and not result.given and result.seed < args.seeds
            if not wanted or result.searcher not in SEARCHERS or key in done:
                continue
            base = max(result.rates)
            recipe = Recipe.from_multipliers(
                setup.blocks,
                [rate / base for rate in result.rates],
                lr=base,
                weight_decay=setup.space.base_weight_decay,
            )
            scores = [
                setup.trainer.fit(recipe, train, val, seed=FRESH + i).score
                for i in range(args.trainings)
            ]
            row = (*key, f"{landscape.value(recipe):.4f}", joined(scores))
            add(dict(zip(FIELDS, row, strict=True)))
            done.add(key)
            print(key, joined(scores), flush=True)


def joined(scores: list[float]) -> str:
    """Scores in one cell."""
    return ";".join(f"{score:.4f}" for score in scores)


def add(row: dict[str, object]) -> None:
    """One more line of the table."""
    new = not RETRAINED.exists()
    with RETRAINED.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
