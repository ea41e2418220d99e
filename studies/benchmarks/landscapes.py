"""Trains hundreds of genomes for real and keeps every value: what a search can find, in tables.

A third of a task's 300 genomes is random over the whole space, a third surgical (one, two or three
blocks and the head, all else frozen), a third where searchers go. They take turns, so that the
beginning of a table is a smaller table of the same make. All have the one seed that the trials of
a search have; forty are trained again on two further seeds: how much luck is in one value, and in
that of which kind of recipe. A training is what a trial of a search would be, prefix cache and
early stop included.

    python studies/benchmarks/landscapes.py TASK … --data-root FOLDER … [--chunk 60]

Every training is appended to a file in the cache as soon as it is done, and is never repeated: the
same command goes on where it stopped. The same command may run twice at once: each takes the task
with the fewest trainings that nobody else is at, a chunk at a time. After each chunk the table is
written to studies/benchmarks/landscapes/TASK.csv, and what the test images say, which no choice may
look at, to landscapes/test/TASK.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import timm
import torch
from _genomes import genome_at, jobs, origin
from _tasks import TASKS, Task
from _trainings import cross_entropy, test_part, train, unpacked
from filelock import FileLock, Timeout
from scipy.special import logsumexp

import biotune_optuna
from biotune_optuna import Recipe
from biotune_optuna.errors import BioTuneError
from biotune_optuna.finetune import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from biotune_optuna.study.setup import Setup

HERE = Path(__file__).parent / "landscapes"
CURVES = {"curve": 4, "nll": 4, "fitted": 4, "temperature": 3, "loss": 4}
"""Columns with a number for each epoch, and its digits."""

Row = dict[str, Any]


class Trainings:
    """All trainings of a task, in a file that begins with how they are made.

    Args:
        path: The file, a JSON object a line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made: Row = {}
        self.rows: dict[tuple[int, int], Row] = {}
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        if whole:
            self.made = whole[0]
            self.rows = {(row["place"], row["repeat"]): row for row in whole[1:]}

    def begin(self, made: Row) -> None:
        """Says how the trainings are made, or checks that those that are there were made so."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.made:
            self.path.write_text("")
            self._append(made)
            self.made = made
            return
        self._cut_back()
        for part in ("blocks", "spec", "test_labels", "threads"):
            if self.made[part] != made[part]:
                raise SystemExit(
                    f"{self.path}: its trainings were made with other {part}; give another --cache"
                )

    def add(self, row: Row) -> None:
        """Keeps a training."""
        self._append(row)
        self.rows[row["place"], row["repeat"]] = row

    def _append(self, row: Row) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _cut_back(self) -> None:
        """Takes away a line that a killed process left unfinished."""
        text = self.path.read_bytes()
        with self.path.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)


def describe(task: Task, setup: Setup) -> Row:
    """How a task's trainings are made."""
    spec = setup.spec.to_dict()
    del spec["size_found"]  # tables were made of sizes that were given
    del spec["own_seeds"]  # all trainings of a table have the same seeds
    del spec["stop_losers"]  # and all go on to their end
    spec["data"], spec["weights"] = task.data, task.pretrained_on or "ImageNet, pip package"
    labels = setup.source.labels
    return {
        "task": task.name,
        "blocks": [block.name for block in setup.blocks],
        "spec": json.loads(json.dumps(spec)),
        "images": setup.splits.describe(),
        "classes": list(setup.classes),
        "test_labels": labels[test_part(setup)].tolist(),
        "threads": torch.get_num_threads(),
        "seconds": "processor time of the training, without the test",
        "versions": {
            "biotune_optuna": biotune_optuna.__version__,
            "optuna": optuna.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
    }


def missing_of(trainings: Trainings, again: bool) -> list[tuple[int, int]]:
    """What is left of a task's trainings, in order; ``again``: of genomes already trained."""
    known = trainings.rows
    return [job for job in jobs() if job not in known and (not again or (job[0], 0) in known)]


def collect(
    task: Task, setup: Setup, trainings: Trainings, count: int, again: bool = False
) -> None:
    """Makes the next trainings of a task, in order, so many at most."""
    trainings.begin(describe(task, setup))
    missing = missing_of(trainings, again)
    forecast(task, setup, trainings, len(missing))
    started = time.monotonic()
    for place, repeat in missing[:count]:
        if repeat:
            genome = setup.space.genome(trainings.rows[place, 0]["params"])
        else:
            known = {
                i: (trainings.rows[i, 0]["params"], trainings.rows[i, 0]["score"])
                for i in range(place)
            }
            genome = genome_at(place, setup.space, known)
        row = train(setup, genome, repeat)
        trainings.add({"place": place, "repeat": repeat, "origin": origin(place)} | row)
    minutes = (time.monotonic() - started) / 60
    print(
        f"{task.name}: {len(trainings.rows)} of {len(jobs())} trainings, "
        f"{min(count, len(missing))} in {minutes:.1f} min",
        flush=True,
    )


def forecast(task: Task, setup: Setup, trainings: Trainings, missing: int) -> None:
    """Says how long the rest takes: by the trainings that there are, or by one of the whole."""
    if trainings.rows:
        each = float(np.mean([row["seconds"] for row in trainings.rows.values()]))
        what, how = "a training takes", "about"
    else:
        recipe = Recipe.full(setup.blocks, lr=setup.space.base_lr)
        started = time.process_time()
        setup.trainer.fit(recipe, *setup.splits.run(None), seed=0)
        each = time.process_time() - started
        what, how = "training the whole network takes", "at most"
    print(
        f"{task.name}: {what} {each:.1f} s of processor time; {missing} trainings are left, "
        f"{how} {missing * each / 60:.0f} min of one core",
        flush=True,
    )


def write_table(trainings: Trainings, out: Path) -> None:
    """All trainings as compact CSV with a header that says how they were made."""
    made = trainings.made
    name, n = made["task"], len(made["blocks"])
    header = {key: value for key, value in made.items() if key != "test_labels"}
    columns = ["place", "origin", "seed", "run_seed", "lr", *(f"m{i}" for i in range(n))]
    columns += ["score", "best_epoch", "stopped", "forward", "backward", "seconds", *CURVES]
    ordered = [trainings.rows[job] for job in jobs() if job in trainings.rows]
    lines = [
        [
            *(str(row["place"]), row["origin"], str(row["repeat"]), str(row["run_seed"])),
            *(f"{number:.4g}" for number in (row["lr"], *row["multipliers"])),
            *(f"{row['score']:.4f}", str(row["best_epoch"]), row["stopped"]),
            *(str(row["forward"]), str(row["backward"]), f"{row['seconds']:.1f}"),
            *(";".join(cell(v, digits) for v in row[key]) for key, digits in CURVES.items()),
        ]
        for row in ordered
    ]
    write(out / f"{name}.csv", header, columns, lines)
    columns = ["place", "seed", "score", "nll", "fitted", "last", "last_nll", "last_fitted"]
    lines = [
        [
            *(str(row["place"]), str(row["repeat"])),
            *(cell(v, 4) for v in (*row["test"]["best"], *row["test"]["last"])),
        ]
        for row in ordered
    ]
    write(out / "test" / f"{name}.csv", header, columns, [*lines, *members(trainings)])


def members(trainings: Trainings) -> Iterator[list[str]]:
    """Test of the mean of the probabilities of one genome's trainings, best epochs."""
    labels = np.array(trainings.made["test_labels"])
    n_classes = len(trainings.made["classes"])
    for place in sorted({place for place, repeat in trainings.rows if repeat}):
        seeds = [repeat for one, repeat in sorted(trainings.rows) if one == place]
        own = [trainings.rows[place, repeat].get("test_probs") for repeat in seeds]
        logs = [unpacked(text, n_classes) for text in own if text]
        if not logs:
            continue
        mean = logsumexp(np.stack(logs), axis=0) - np.log(len(logs))
        score = metrics.score("macro_accuracy", labels, np.exp(mean), n_classes)
        numbers = (score, cross_entropy(mean, labels), None, None, None, None)
        yield [str(place), "+".join(map(str, seeds)), *(cell(v, 4) for v in numbers)]


def cell(number: float | None, digits: int) -> str:
    """A number as text; none as nothing."""
    return "" if number is None else f"{number:.{digits}f}"


def write(path: Path, header: Row, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Replaces a table at once, so that nobody reads half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [f"# {json.dumps(header)}", ",".join(columns), *(",".join(line) for line in lines)]
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text("\n".join(text) + "\n")
    new.replace(path)


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Whether this process has a task to itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, blocking=False):
            yield True
    except Timeout:
        yield False


def work(names: Sequence[str], args: argparse.Namespace) -> bool:
    """One chunk of the task with the fewest trainings that is free; False where none is."""
    counts = {name: len(Trainings(args.cache / f"{name}.jsonl").rows) for name in names}
    for name in sorted(names, key=counts.__getitem__):
        with held(args.cache / f"{name}.lock") as mine:
            trainings = Trainings(args.cache / f"{name}.jsonl")
            if not mine or len(trainings.rows) >= min(args.trainings, len(jobs())):
                continue
            if not missing_of(trainings, args.again):
                continue
            setup = TASKS[name].open(args.data_root, args.cache)
            left = args.trainings - len(trainings.rows)
            collect(TASKS[name], setup, trainings, min(args.chunk, left), args.again)
            write_table(trainings, args.out)
            return True
    return False


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(TASKS)}; none: nothing is done")
    parser.add_argument("--data-root", type=Path, nargs="+", default=[Path("data")])
    parser.add_argument("--cache", type=Path, default=Path("landscape-cache"))
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the tables")
    parser.add_argument("--chunk", type=int, default=60, help="trainings before the next task")
    parser.add_argument("--trainings", type=int, default=len(jobs()), help="stop after so many")
    parser.add_argument(
        "--again", action="store_true", help="only other seeds of genomes that are there"
    )
    parser.add_argument(
        "--write-only", action="store_true", help="write the tables of what is there"
    )
    args = parser.parse_args(argv)
    if unknown := set(args.tasks) - set(TASKS):
        parser.error(f"no such task: {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    if min(args.chunk, args.trainings) < 1:
        parser.error("--chunk and --trainings must be 1 or more")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Collects the trainings of the named tasks."""
    args = arguments(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    if args.write_only:
        for name in args.tasks:
            trainings = Trainings(args.cache / f"{name}.jsonl")
            if not trainings.rows:
                sys.exit(f"{args.cache / f'{name}.jsonl'}: no trainings yet")
            write_table(trainings, args.out)
        return
    try:
        while work(args.tasks, args):
            pass
    except BioTuneError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
