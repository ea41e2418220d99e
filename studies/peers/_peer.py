"""What every peer needs: the division that `run.py` wrote, the time, and a file of predictions.

This runs in a peer's own environment, which has NumPy and not this package.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = tuple[list[str], NDArray[np.int64]]
"""Files and labels."""
Setting = dict[str, Any]
"""What a training is tuned by; ``epochs`` among it."""
Predict = Callable[[Sequence[str]], NDArray[np.floating]]
"""From files to probabilities, shape (n, classes)."""


@dataclass(frozen=True)
class Task:
    """A division, and what it is to be used for.

    Attributes:
        folder: Where it lies; ``weights.safetensors`` are the network's without its classifier.
        model: timm's name of the network.
        classes: Names of the classes.
        size: Side of the images to train on.
        mean: What the weights expect of each channel.
        std: The same.
        crop_pct: Share of the side that the centre crop keeps.
        interpolation: How images are resized.
        seconds: Time for everything.
        members: Final trainings.
        seed: Seed of the repeat.
    """

    folder: Path
    model: str
    classes: list[str]
    size: int
    mean: list[float]
    std: list[float]
    crop_pct: float
    interpolation: str
    seconds: float
    members: int
    seed: int

    @classmethod
    def read(cls, folder: Path) -> Task:
        """Read what `run.py` wrote."""
        return cls(folder=folder, **json.loads((folder / "task.json").read_text()))

    @property
    def weights(self) -> str:
        """The file of the pre-trained weights."""
        return str(self.folder / "weights.safetensors")

    def part(self, *names: str) -> Images:
        """Images of some parts; those of the test have the label -1."""
        with (self.folder / "images.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["part"] in names]
        labels = [int(row["label"] or -1) for row in rows]
        return [str(self.folder / row["file"]) for row in rows], np.array(labels)


def spend(
    task: Task,
    settings: Sequence[Setting],
    train: Callable[[Images, Images, Setting, int], Predict],
) -> tuple[list[Predict], Setting, float, int]:
    """Try settings on the validation images while time allows, then train members on all images.

    The first setting is always tried, and the members always trained. What a training takes is
    estimated from those before, as so much for each image and epoch. Chosen is the best setting
    whose members still fit, or where none does the shortest.

    Args:
        task: The task.
        settings: Settings in the order in which they are tried.
        train: Trains on images, is shown other images (those trained on, too, in the end), and
            returns the model.

    Returns:
        The members, the setting that was chosen, its validation score, and how many were tried.
    """
    begun = time.perf_counter()
    fit, val, everything = task.part("train"), task.part("val"), task.part("train", "val")
    tried: list[tuple[float, Setting]] = []
    unit = 0.0  # seconds for each image and epoch

    def left() -> float:
        return task.seconds - (time.perf_counter() - begun)

    def members_take(setting: Setting) -> float:
        return unit * task.members * setting["epochs"] * len(everything[0])

    def best() -> tuple[float, Setting] | None:
        fits = [one for one in tried if members_take(one[1]) <= left()]
        return max(fits, key=lambda one: one[0], default=None)

    for setting in settings:
        so_far = best()
        end = max(members_take(one) for one in (setting, so_far[1] if so_far else setting))
        if tried and unit * setting["epochs"] * len(fit[0]) + end > left():
            continue  # a shorter one may still fit
        start = time.perf_counter()
        model = train(fit, val, setting, task.seed)
        found = macro_accuracy(val[1], model(val[0]))
        took = time.perf_counter() - start
        unit = max(unit, took / (setting["epochs"] * len(fit[0])))
        tried.append((found, setting))
        print(f"{setting}: {found:.4f} in {took:.0f} s", flush=True)
    score, chosen = best() or min(tried, key=lambda one: one[1]["epochs"])
    members = [train(everything, val, chosen, task.seed + 1 + k) for k in range(task.members)]
    return members, chosen, score, len(tried)


def macro_accuracy(labels: NDArray[np.int64], probs: NDArray[np.floating]) -> float:
    """Mean recall of the classes that are there."""
    right = probs.argmax(axis=1) == labels
    return float(np.mean([right[labels == one].mean() for one in np.unique(labels)]))


def main(name: str, run: Callable[[Task], tuple[list[Predict], Setting, float, int]]) -> None:
    """Run a peer on the folder that is given, and write ``NAME.npz`` and ``NAME.json`` into it."""
    task = Task.read(Path(sys.argv[1]))
    begun = time.perf_counter()
    members, setting, score, tried = run(task)
    seconds = time.perf_counter() - begun  # a search's look at the test images is not charged
    test, _ = task.part("test")
    probs = [np.asarray(member(test), dtype=np.float64) for member in members]
    np.savez(task.folder / f"{name}.npz", single=probs[0], together=np.mean(probs, axis=0))
    told = {"setting": setting, "validation": score, "tried": tried, "seconds": seconds}
    (task.folder / f"{name}.json").write_text(json.dumps(told))
