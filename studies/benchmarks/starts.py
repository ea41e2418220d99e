"""Which recipes should a search begin with? Candidates, each trained on several image sets.

    python studies/benchmarks/starts.py FOLDER ... [--seeds 2]   # trains what is missing
    python studies/benchmarks/starts.py                          # the page of what is there

FOLDERs hold the development sets of `studies/_sets.py` by name. Every candidate is trained and
tested; the rows go into landscapes/starts.csv, and `experience.py` chooses from them. The command
goes on where it stopped. The page is docs/benchmarks/starts.md.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from biotune_optuna.evolution.experience import Start
from biotune_optuna.finetune import metrics
from biotune_optuna.genome import USUAL_RATES
from biotune_optuna.page.parts import Heading, Markdown, Table, markdown
from biotune_optuna.recipe import Recipe
from biotune_optuna.study.setup import prepare

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "studies"))

from _sets import TASKS, specs  # noqa: E402

TABLE = Path(__file__).parent / "landscapes" / "starts.csv"
PAGE = ROOT / "docs" / "benchmarks" / "starts.md"

EPOCHS = 6
N_BLOCKS = 9
"""Blocks of tf_efficientnet_lite0, the head included."""
MIDDLE = float(np.sqrt(np.prod(USUAL_RATES)))
PROBE, FULL = (1.0, 0.0), (0.0, 1.0)
"""First and last block of a linear probe, and of full fine-tuning."""
EARLIER = (
    *(Start(0.3, 1.0, 0.0, 1.0, -1.0), Start(1.0, 0.0, 0.0, 0.0, 0.5)),
    *(Start(0.15, 1.0, 0.75, 1.0, -1.0), Start(0.75, 1.0, -0.25, 1.0, -0.25)),
    *(Start(0.45, 0.75, 0.0, 0.0, -1.0), Start(0.15, 1.0, 0.75, 1.0, 0.75)),
    *(Start(0.0, 1.0, -0.5, 0.0, -1.0), Start(0.75, 0.75, -0.5, 0.0, 0.0)),
)
"""The starts before these, which models of the tables of trainings had chosen."""
SINGLE = (
    *(Start(d, d, rate, 0.0, 0.0) for d in (0.3, 0.45, 0.6, 0.75, 0.9) for rate in (0.0, 0.25)),
    *(Start(0.6, 0.6, 0.25, 0.0, 0.25), Start(0.75, 0.75, 0.25, 0.0, -0.5)),
    *(Start(d, d, 0.25, 0.0, -0.5) for d in (0.3, 0.45, 0.6, 0.9)),
    *(Start(0.45, 0.45, 0.5, 0.0, 0.0), Start(0.6, 0.6, 0.5, 0.0, 0.0)),
    Start(0.75, 0.75, 0.5, 0.0, -0.5),
)
SEVERAL = (
    *(Start(0.6, 0.75, rate, 0.0, -0.25) for rate in (0.0, 0.25)),
    *(Start(0.3, 0.6, 0.0, 0.0, 0.0), Start(0.45, 0.75, 0.25, 0.0, 0.25)),
    *(Start(0.3, 0.6, 0.25, 0.0, 0.25), Start(0.0, 0.45, 0.0, 0.0, 0.0)),
    *(Start(0.45, 1.0, -0.25, 0.0, -0.25), Start(0.6, 1.0, 0.0, 0.0, 0.0)),
    *(Start(0.3, 1.0, 0.25, 1.0, 0.25), Start(0.75, 1.0, 0.25, 0.0, 0.25)),
    *(Start(*FULL, rate, 0.0, rate) for rate in (-0.5, -0.25, 0.0)),
    Start(*FULL, 0.25, 1.0, 0.25),
)
CANDIDATES = (*EARLIER, *SINGLE, *SEVERAL)
COLUMNS = ("task", "seed", *Start._fields, "validation", "test", "best_epoch", "seconds")


@dataclass(frozen=True)
class Tried:
    """One training of a candidate.

    Attributes:
        task: The image set.
        seed: Seed of the training.
        start: The candidate.
        validation: Score on the validation images at the best epoch.
        test: Score on the test images then.
    """

    task: str
    seed: int
    start: Start
    validation: float
    test: float


def read() -> list[Tried]:
    """The trainings that are there."""
    if not TABLE.exists():
        return []
    with TABLE.open(encoding="utf-8") as file:
        return [
            Tried(
                *(row["task"], int(row["seed"])),
                Start(*(float(row[name]) for name in Start._fields)),
                *(float(row["validation"]), float(row["test"])),
            )
            for row in csv.DictReader(file)
        ]


def values(tried: list[Tried]) -> tuple[list[str], list[Start], np.ndarray[Any, Any]]:
    """Tasks, candidates, and the mean test score of each candidate on each task."""
    tasks = list(dict.fromkeys(one.task for one in tried))
    starts = list(dict.fromkeys(one.start for one in tried))
    found: dict[tuple[str, Start], list[float]] = {}
    for one in tried:
        found.setdefault((one.task, one.start), []).append(one.test)
    means = [[np.mean(found.get((t, s), [np.nan])) for t in tasks] for s in starts]
    return tasks, starts, np.array(means)


def choose(tried: list[Tried], count: int) -> tuple[Start, ...]:
    """Greedily the candidates that together hold the best for each task, the best alone first.

    A probe, full fine-tuning at one rate and a single block are among them.

    Args:
        tried: Trainings.
        count: How many.
    """
    _, starts, scores = values(tried)
    pool = [i for i in range(len(starts)) if np.isfinite(scores[i]).all()]
    kinds = (
        {i for i in pool if starts[i][:2] == PROBE},
        {i for i in pool if starts[i][:2] == FULL and not starts[i].slope},
        {i for i in pool if starts[i].first == starts[i].last},
    )
    best, chosen = np.full(scores.shape[1], -np.inf), list[int]()
    for left in range(count, 0, -1):
        missing = [kind for kind in kinds if not kind & {*chosen}]
        options = sorted(missing[0]) if left <= len(missing) else pool
        rest = [i for i in options if i not in chosen]
        # Where none adds anything, the one that is good everywhere.
        gain = {i: (np.maximum(scores[i], best).mean(), scores[i].mean()) for i in rest}
        chosen.append(max(rest, key=gain.__getitem__))
        best = np.maximum(best, scores[chosen[-1]])
    return tuple(starts[i] for i in chosen)


def train(folders: list[Path], made: Path, seeds: int) -> None:
    """Train what is missing."""
    done = {(one.task, one.seed, one.start) for one in read()}
    if not TABLE.exists():
        TABLE.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    for name in TASKS["development"]:
        wanted = [
            (seed, start)
            for seed in range(1, seeds + 1)
            for start in CANDIDATES
            if (name, seed, start) not in done
        ]
        if not wanted:
            continue
        (spec,) = specs("development", folders, made, epochs=EPOCHS, names=(name,))
        setup = prepare(spec)
        labels = np.asarray(setup.source.labels)[setup.splits.test]
        for seed, start in wanted:
            multipliers = 10.0 ** start.log_rates(len(setup.blocks))
            recipe = Recipe.from_multipliers(
                setup.blocks, multipliers.tolist(), lr=MIDDLE, weight_decay=spec.weight_decay
            )
            found = setup.trainer.fit(recipe, setup.splits.train, setup.splits.val, seed=seed)
            probs = setup.trainer.predict(setup.splits.test)
            n_classes = len(setup.source.classes)
            test = metrics.score(spec.train.metric, labels, probs, n_classes)
            scores = (f"{found.score:.4f}", f"{test:.4f}")
            row = (name, seed, *start, *scores, found.best_epoch, f"{found.seconds:.1f}")
            with TABLE.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(row)
            print(*row, flush=True)


def words(start: Start) -> str:
    """A candidate in words."""
    if start[:2] == PROBE:
        return f"head alone at {start.head:+g}"
    which = "all blocks" if start[:2] == FULL else f"depth {start.first:g} to {start.last:g}"
    if start.first == start.last:
        which = f"one block at depth {start.first:g}"
    slope = f", {start.slope:g} less at its first block" if start.slope else ""
    return f"{which} at {start.rate:+g}{slope}; head at {start.head:+g}"


def page(tried: list[Tried], count: int) -> str:
    """The page."""
    tasks, starts, scores = values(tried)
    chosen = choose(tried, count)
    place = {start: i for i, start in enumerate(starts)}

    def of(some: tuple[Start, ...]) -> np.ndarray[Any, Any]:
        return scores[[place[one] for one in some]].max(axis=0)

    left_out = []
    for t, task in enumerate(tasks):
        others = [one for one in tried if one.task != task]
        left_out.append(of(choose(others, count))[t])
    seeds = len({one.seed for one in tried})
    table = [(words(one), *(f"{x:.3f}" for x in scores[place[one]])) for one in chosen]
    compared = [
        ("the best of these", *(f"{x:.3f}" for x in of(chosen))),
        ("the best of those chosen without the set", *(f"{x:.3f}" for x in left_out)),
        ("the best of the earlier starts", *(f"{x:.3f}" for x in of(EARLIER))),
        ("the best of all candidates", *(f"{x:.3f}" for x in np.nanmax(scores, axis=0))),
    ]
    gain = 100 * float(np.mean(np.array(left_out) - of(EARLIER)))
    order = np.argsort(-np.nanmean(scores, axis=1))
    every = [(words(starts[i]), *(f"{x:.3f}" for x in scores[i])) for i in order]
    head = Markdown(f"""
        # What a search begins with

        The first trials of a search are recipes that did well elsewhere. They were chosen from
        {len(starts)} candidates. Each was trained on each of {len(tasks)} development sets with
        `tf_efficientnet_lite0`, on {seeds} seeds, for at most {EPOCHS} epochs on 200 images.
        Chosen are {count} that together hold the best for each set: one after another, the one
        that adds most to the mean over the sets. A probe, full fine-tuning and a single block are
        always among them.

        Rates are in decades from the middle of the search's range, {MIDDLE:.4f}. A depth is 0 for
        the first block, 1 for the last one below the head. Numbers are mean macro-accuracy on test
        images.
    """)
    beside = Markdown(f"""
        The highest of several noisy numbers flatters, and that in each row. Chosen on the other
        sets alone, the best start is on average {gain:+.1f} points above the best of the earlier
        starts, which models of tables of trainings had chosen.
    """)
    return markdown(
        [
            *(head, Heading("Chosen"), Table(("recipe", *tasks), table)),
            *(Heading("Beside others"), beside, Table(("", *tasks), compared)),
            *(Heading("All candidates"), Table(("recipe", *tasks), every)),
            Markdown("Made by `python studies/benchmarks/starts.py`."),
        ]
    )


def main() -> None:
    """Train what is missing, where there are folders, and write the page."""
    from experience import N_STARTS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--made", type=Path, default=Path("evidence-data"))
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    if args.folders:
        train(args.folders, args.made, args.seeds)
    PAGE.write_text(page(read(), N_STARTS), encoding="utf-8")


if __name__ == "__main__":
    main()
