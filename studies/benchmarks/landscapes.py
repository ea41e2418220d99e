"""Trains hundreds of genomes for real and keeps every value, for the search benchmark.

Half of the genomes of a task fill the space (scrambled Sobol points), half are those that the
compared searchers came to on the real task, so that both the plain and the plateau are known. A
few genomes are trained again on further seeds: how much luck is in one value.

    python studies/benchmarks/landscapes.py TASK … --data-root FOLDER [--part 0/2]

Every training is appended to a file in the cache as soon as it is done, and is never repeated: the
same command goes on where it stopped, and several parts may run at once; when they have ended, the
command without ``--part`` adds what only the whole can tell and writes the table to
studies/benchmarks/landscapes/TASK.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import timm
import torch
from _searchers import COMPARED, SEARCHERS
from _tasks import TASKS, Task
from filelock import FileLock
from scipy.stats import qmc

import biotune_optuna

if TYPE_CHECKING:
    from biotune_optuna.genome import Genome
    from biotune_optuna.study.setup import Setup

HERE = Path(__file__).parent / "landscapes"
SOBOL = 208
TRAJECTORY = 28  # evaluations of each compared searcher
REPEATED = 48  # genomes trained on further seeds
REPEATS = 3  # further seeds


class Evaluations:
    """All trainings of a task, in a file that several processes append to."""

    def __init__(self, setup: Setup, path: Path) -> None:
        self.setup = setup
        self.path = path
        self.known: dict[str, dict[str, object]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads what other processes have added."""
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                row = json.loads(line)
                self.known[row["key"]] = row

    def score(self, genome: Genome, seed: int, origin: str) -> float:
        """The validation score of a genome trained with a seed; trained only once."""
        key = f"{json.dumps(genome.params, sort_keys=True)} {seed}"
        if key not in self.known:
            self.refresh()
        if key not in self.known:
            self._add(self._train(genome, seed) | {"key": key, "origin": origin, "seed": seed})
        return float(self.known[key]["score"])  # type: ignore[arg-type]

    def _train(self, genome: Genome, seed: int) -> dict[str, object]:
        recipe = genome.decode()
        train, val = self.setup.splits.run(None)
        result = self.setup.trainer.fit(recipe, train, val, seed=1_000 + seed)
        return {
            "lr": recipe.lr,
            "multipliers": list(recipe.multipliers.values()),
            "score": result.score,
            "curve": [epoch.score for epoch in result.epochs],
            "seconds": round(result.seconds, 2),
        }

    def _add(self, row: dict[str, object]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.known[str(row["key"])] = row


def space_filling(setup: Setup) -> list[Genome]:
    """Scrambled Sobol points of the genome space, the base rate on its log scale."""
    space = setup.space
    warnings.filterwarnings("ignore", message=".*balance properties.*")
    points = qmc.Sobol(len(space.names), rng=0).random(SOBOL)
    genomes = []
    for point in points:
        params = dict(zip(space.names, point.tolist(), strict=True))
        low, high = space.extra_bounds["lr"]
        params["lr"] = float(low * (high / low) ** params["lr"])
        genomes.append(space.genome(params))
    return genomes


def trajectory(name: str, evaluations: Evaluations) -> None:
    """A search on the real task; a genome's n-th evaluation has the n-th seed."""
    space = evaluations.setup.space
    seen: dict[str, int] = {}

    def objective(trial: optuna.Trial) -> float:
        genome = space.suggest(trial)
        key = json.dumps(genome.params, sort_keys=True)
        seen[key] = seen.get(key, -1) + 1
        return evaluations.score(genome, seen[key], name)

    study = optuna.create_study(direction="maximize", sampler=SEARCHERS[name](space, 0))
    study.optimize(objective, n_trials=TRAJECTORY)


def collect(setup: Setup, path: Path, part: int, parts: int) -> None:
    """Evaluates this process's share of the genomes."""
    evaluations = Evaluations(setup, path)
    jobs: list[tuple[str, Genome | None, int]] = []
    for i, genome in enumerate(space_filling(setup)):
        jobs.append(("sobol", genome, 0))
        if i < REPEATED // 2:
            jobs += [("sobol", genome, seed) for seed in range(1, REPEATS + 1)]
    jobs += [(name, None, 0) for name in COMPARED]
    started = time.monotonic()
    for i, (origin, genome, seed) in enumerate(jobs):
        if i % parts != part:
            continue
        if genome is None:
            trajectory(origin, evaluations)
        else:
            evaluations.score(genome, seed, origin)
        if i % 20 < parts:
            minutes = (time.monotonic() - started) / 60
            print(f"{path.stem}: job {i + 1} of {len(jobs)}, {minutes:.1f} min", flush=True)
    if part == 0:
        repeat_the_best(evaluations)


def repeat_the_best(evaluations: Evaluations) -> None:
    """Trains the best genomes on further seeds: noise where it matters."""
    evaluations.refresh()
    first = [row for row in evaluations.known.values() if row["seed"] == 0]
    first.sort(key=lambda row: (-float(row["score"]), str(row["key"])))  # type: ignore[arg-type]
    for row in first[: REPEATED // 2]:
        params = json.loads(str(row["key"]).rpartition(" ")[0])
        for seed in range(1, REPEATS + 1):
            evaluations.score(evaluations.setup.space.genome(params), seed, str(row["origin"]))


def write_table(task: Task, setup: Setup, path: Path) -> Path:
    """All evaluations as a compact CSV with a header that says how they were made."""
    spec = setup.spec.to_dict()
    spec["data"], spec["weights"] = task.data, task.pretrained_on or "ImageNet, pip package"
    made = {
        "task": task.name,
        "blocks": [block.name for block in setup.blocks],
        "spec": spec,
        "versions": {
            "biotune_optuna": biotune_optuna.__version__,
            "optuna": optuna.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    n = len(setup.blocks)
    columns = ["origin", "seed", "lr", *(f"m{i}" for i in range(n)), "score", "seconds", "curve"]
    lines = [f"# {json.dumps(made)}", ",".join(columns)]
    for row in rows:
        cells = [row["origin"], str(row["seed"]), f"{row['lr']:.4g}"]
        cells += [f"{m:.4g}" for m in row["multipliers"]]
        cells += [f"{row['score']:.4f}", f"{row['seconds']:.1f}"]
        cells.append(";".join(f"{score:.3f}" for score in row["curve"]))
        lines.append(",".join(cells))
    target = HERE / f"{task.name}.csv"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(lines) + "\n")
    return target


def main() -> None:
    """Collects the evaluations of the named tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(TASKS)}; none: nothing is done")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--cache", type=Path, default=Path("landscape-cache"))
    parser.add_argument("--part", default="0/1", help="this process's share, as 0/2")
    parser.add_argument(
        "--write-only", action="store_true", help="write the table of what is there"
    )
    args = parser.parse_args()
    if unknown := set(args.tasks) - set(TASKS):
        parser.error(f"no such task: {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    part, parts = (int(number) for number in args.part.split("/"))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    for name in args.tasks:
        task = TASKS[name]
        setup = task.open(args.data_root, args.cache)
        path = args.cache / f"{name}.jsonl"
        if not args.write_only:
            collect(setup, path, part, parts)
        if parts == 1 or args.write_only:
            table = write_table(task, setup, path)
            print(f"{table}: {len(table.read_text().splitlines()) - 2} trainings", flush=True)


if __name__ == "__main__":
    main()
