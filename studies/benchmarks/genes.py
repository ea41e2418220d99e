"""What each mode and training gene is worth by itself, at usual recipes on real images.

Every recipe is trained as it is and once with each value of each gene, on the same images and from
the same seeds, on the training part; the test images are predicted by the last weights.

    python studies/benchmarks/genes.py TASK … --data-root FOLDER … --cache FOLDER

Each training is kept in FOLDER/TASK.jsonl as soon as it is done. The same command goes on where it
stopped; run twice at once, each takes another task. ``--only`` trains some of the genes' values, as
``--only "label_smoothing 0.1" --seeds 3`` trains these more often than the others. When all named
tasks are done the page is written, of all trainings that there are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _tasks import TASKS
from _trainings import cross_entropy, log_probabilities, packed, test_part, unpacked
from filelock import FileLock, Timeout
from scipy.stats import t as student

from biotune_optuna import Recipe
from biotune_optuna.finetune import metrics
from biotune_optuna.page.parts import Heading, Markdown, Table, markdown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from biotune_optuna.study.setup import Setup

    Row = dict[str, Any]

SKEWED = 2.0  # so many times as many images of the largest class as of the smallest


@dataclass(frozen=True)
class Variant:
    """One value of one gene.

    Attributes:
        gene: Its name.
        value: The value, as text.
        training: What the recipe says of its training.
        mode: What of the blocks below the head trains.
        settings: Fields of `TrainSettings`.
        mirrors: Whether it mirrors images.
        balances: Whether it acts on skewed classes alone.
    """

    gene: str
    value: str
    training: dict[str, Any] = field(default_factory=dict)
    mode: str = "full"
    settings: dict[str, Any] = field(default_factory=dict)
    mirrors: bool = False
    balances: bool = False

    @property
    def name(self) -> str:
        """Gene and value."""
        return f"{self.gene} {self.value}"


def _trained(gene: str, *values: Any, **more: Any) -> tuple[Variant, ...]:
    return tuple(Variant(gene, str(value), {gene: value}, **more) for value in values)


BASE = Variant("none", "")
VARIANTS = (
    Variant("norm statistics", "epoch", settings={"norm_statistics": "epoch"}),
    *_trained("augment", "crop", "trivial-noflip"),
    *_trained("augment", "crop-flip", "trivial", mirrors=True),
    *_trained("length", 0.5, 2.0),
    *_trained("label_smoothing", 0.1),
    *_trained("mix", "mixup", "cutmix"),
    *_trained("drop_path", 0.1),
    *_trained("ema", 0.9),
    *_trained("balance", "weights", "sampling", balances=True),
    Variant("mode", "norms", mode="norms"),
    Variant("mode", "low-rank", mode="low-rank"),
)


def recipes(setup: Setup) -> dict[str, Recipe]:
    """Full fine-tuning, half of it, and one middle block, at good rates for the tasks' networks."""
    blocks, middle = setup.blocks, setup.space.base_lr
    n = len(blocks)
    half = [0.0] * (n // 2) + [1.0] * (n - n // 2)
    one = [0.0] * n
    one[(n + 1) // 2], one[-1] = 1.0, 0.5
    decay = setup.space.base_weight_decay
    return {
        "full": Recipe.full(blocks, lr=0.6 * middle, weight_decay=decay),
        "half": Recipe.from_multipliers(blocks, half, lr=0.6 * middle, weight_decay=decay),
        "one block": Recipe.from_multipliers(blocks, one, lr=1.8 * middle, weight_decay=decay),
    }


def varied(recipe: Recipe, variant: Variant) -> Recipe:
    """The recipe with a gene's value."""
    *body, head = recipe.blocks
    changed = (*(dataclasses.replace(b, mode=variant.mode) for b in body), head)
    return dataclasses.replace(recipe, blocks=changed, training=variant.training)


def train(setup: Setup, recipe: Recipe, variant: Variant, seed: int) -> Row:
    """Trains on the training part and tests the last weights."""
    settings = variant.settings
    trainer = setup.trainer.with_settings(**settings) if settings else setup.trainer
    result = trainer.fit(varied(recipe, variant), setup.splits.train, None, seed=seed)
    test = test_part(setup)
    labels = setup.source.labels[test]
    if result.diverged:
        n = len(setup.classes)
        probs = np.full((len(test), n), 1.0 / n)
    else:
        probs = trainer.predict(test)
    logs = log_probabilities(np.log(np.maximum(probs, 1e-30)))
    return {
        "score": metrics.score("macro_accuracy", labels, np.exp(logs), len(setup.classes)),
        "nll": cross_entropy(logs, labels),
        "passes": result.images_forward + result.images_backward,
        "seconds": round(result.seconds, 3),
        "diverged": result.diverged,
        "probs": packed(logs),
    }


def measure(
    name: str, roots: Sequence[Path], cache: Path, seeds: int, variants: Sequence[Variant]
) -> bool:
    """Makes what is missing of a task; False where another process does."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{name}.jsonl"
    try:
        with FileLock(cache / f"{name}.lock", timeout=0):
            setup = TASKS[name].open(roots, cache)
            counts = np.bincount(setup.source.labels[setup.splits.train])
            skewed = counts.max() > SKEWED * counts.min()
            done = {row["key"] for row in read(path) if "probs" in row}
            for seed in range(seeds):
                for kind, recipe in recipes(setup).items():
                    for variant in (BASE, *variants):
                        key = f"{kind} | {variant.name} | {seed}"
                        if key in done or (variant.balances and not skewed):
                            continue
                        row = {"key": key, "recipe": kind, "variant": variant.name, "seed": seed}
                        row |= train(setup, recipe, variant, seed)
                        with path.open("a") as file:
                            file.write(json.dumps(row) + "\n")
                            file.flush()
                            os.fsync(file.fileno())
                        print(f"{name}: {key}: {row['score']:.3f}, {row['nll']:.2f}", flush=True)
    except Timeout:
        return False
    return True


def read(path: Path) -> list[Row]:
    """The rows of a task, the last one of each training; a kill may have left half a line."""
    if not path.exists():
        return []
    text = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(text.rfind(b"\n") + 1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return list({row["key"]: row for row in rows}.values())


@dataclass(frozen=True)
class Effect:
    """A gene's value against the same recipes without it.

    Attributes:
        variant: Gene and value.
        score: Mean difference in tested macro accuracy and half its 95 % interval, in points.
        nll: The same of the cross-entropy, in nats.
        passes: Image passes over those of the recipe without it.
        by_task: Mean difference in accuracy of each task, in points.
        pairs: How many trainings it is of.
        members: As ``score``, of the mean of all seeds' probabilities; None with one seed.
    """

    variant: str
    score: tuple[float, float]
    nll: tuple[float, float]
    passes: float
    by_task: dict[str, float]
    pairs: int
    members: tuple[float, float] | None


def effects(rows: dict[str, list[Row]], labels: dict[str, list[int]]) -> Iterator[Effect]:
    """What each value of each gene changes; a recipe of a task is one of the means' values."""
    for variant in VARIANTS:
        score, nll, passes, by_task, members = [], [], [], {}, []
        for task, of_task in rows.items():
            pairs: dict[str, list[tuple[Row, Row]]] = {}
            plain = {(r["recipe"], r["seed"]): r for r in of_task if r["variant"] == BASE.name}
            for row in of_task:
                if row["variant"] == variant.name:
                    pair = (row, plain[row["recipe"], row["seed"]])
                    pairs.setdefault(row["recipe"], []).append(pair)
            cells = [
                [np.mean([a[key] - b[key] for a, b in of_recipe]) for of_recipe in pairs.values()]
                for key in ("score", "nll")
            ]
            score += cells[0]
            nll += cells[1]
            passes += [a["passes"] / b["passes"] for some in pairs.values() for a, b in some]
            members += [
                _together([a for a, _ in some], labels[task])
                - _together([b for _, b in some], labels[task])
                for some in pairs.values()
                if len(some) > 1 and all("probs" in row for pair in some for row in pair)
            ]
            if pairs:
                by_task[task] = 100 * float(np.mean(cells[0]))
        if score:
            points = _interval(100 * np.array(score))
            yield Effect(
                variant.name,
                points,
                _interval(np.array(nll)),
                float(np.mean(passes)),
                by_task,
                len(passes),
                _interval(100 * np.array(members)) if members else None,
            )


def _together(rows: Sequence[Row], labels: Sequence[int]) -> float:
    """Macro accuracy of the mean of several trainings' probabilities."""
    n = max(labels) + 1
    mean = np.mean([np.exp(unpacked(row["probs"], n)) for row in rows], axis=0)
    return metrics.score("macro_accuracy", np.array(labels), mean, n)


def _interval(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def page(rows: dict[str, list[Row]], labels: dict[str, list[int]], command: str) -> str:
    """The page docs/benchmarks/genes.md."""
    tasks = list(rows)
    lines = [
        [
            one.variant,
            f"{one.score[0]:+.1f} ± {one.score[1]:.1f}",
            f"{one.nll[0]:+.2f} ± {one.nll[1]:.2f}",
            "" if one.members is None else f"{one.members[0]:+.1f} ± {one.members[1]:.1f}",
            f"{one.passes:.2f}",
            str(one.pairs),
            *(f"{one.by_task[t]:+.1f}" if t in one.by_task else "" for t in tasks),
        ]
        for one in effects(rows, labels)
    ]
    return markdown(
        [
            Heading("What modes and training genes are worth", 1),
            Markdown(
                "Three recipes (full fine-tuning, half frozen, one middle block and the head) were "
                "each trained as they are and with one value of one gene, from the same seeds on "
                "the same images; the last weights are tested. Accuracy in points of macro "
                "accuracy on the test images, cross-entropy in nats; ± is half of the 95 % "
                "interval over recipes and tasks. Members: the same of the mean of the "
                "probabilities of all seeds, where there are several. Passes: image passes over "
                "those of the recipe alone. Pairs: trainings with the gene, each beside one "
                "without. Then the tasks' own mean differences in accuracy."
            ),
            Table(
                ["Gene", "Accuracy", "Cross-entropy", "Members", "Passes", "Pairs", *tasks], lines
            ),
            Markdown(
                f"Made by `{command}`; what has more pairs than others, once more with `--only` "
                "and `--seeds 3`."
            ),
        ],
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("tasks", nargs="+", choices=list(TASKS), metavar="TASK")
    parser.add_argument("--data-root", type=Path, nargs="+", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--mirror", action="store_true", help="try mirrored images too")
    parser.add_argument("--only", nargs="+", metavar="VALUE", help="such as 'augment crop'")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args(argv)
    names = [variant.name for variant in VARIANTS]
    for name in args.only or ():
        if name not in names:
            parser.error(f"no gene's value {name!r}; there are {', '.join(names)}")
    variants = [
        variant
        for variant in VARIANTS
        if (variant.name in args.only if args.only else args.mirror or not variant.mirrors)
    ]
    done = [measure(name, args.data_root, args.cache, args.seeds, variants) for name in args.tasks]
    if not all(done):
        print("another process is at work on a task; the page is not written")
        return
    rows = {name: read(args.cache / f"{name}.jsonl") for name in args.tasks}
    labels = {}
    for name in args.tasks:
        setup = TASKS[name].open(args.data_root, args.cache)
        labels[name] = setup.source.labels[test_part(setup)].tolist()
    command = f"python studies/benchmarks/genes.py {' '.join(args.tasks)} --mirror …"
    (args.out / "genes.md").write_text(page(rows, labels, command))


if __name__ == "__main__":
    sys.exit(main())
