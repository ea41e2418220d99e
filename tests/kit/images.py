"""Pictures, sources of images without pixels, and what every split of them must keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from biotune_optuna.data.identity import content_hash
from biotune_optuna.data.sources.image_source import ImageSource

if TYPE_CHECKING:
    from pathlib import Path

    from biotune_optuna.data.splits import Splits


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """A picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_source(
    labels: list[int],
    *,
    classes: list[str] | None = None,
    contents: list[str] | None = None,
    splits: list[str] | None = None,
    groups: list[str] | None = None,
    order: list[int] | None = None,
) -> ImageSource:
    """A source without pixels: all that splits look at."""
    count = len(labels)
    contents = [f"content {i}" for i in range(count)] if contents is None else contents
    order = list(range(count)) if order is None else order
    classes = [f"class{c}" for c in range(max(labels) + 1)] if classes is None else classes

    def read(index: int) -> Image.Image:
        raise AssertionError("splits must not read pixels")

    return ImageSource(
        read,
        name="made",
        classes=classes,
        labels=[labels[i] for i in order],
        ids=[f"{contents[i]}#{i}" for i in order],
        content_hashes=[content_hash(contents[i].encode()) for i in order],
        splits=None if splits is None else [splits[i] for i in order],
        groups=None if groups is None else [groups[i] for i in order],
    )


def digit_folder(root: Path, *, per_class: int = 12, classes: int = 3) -> Path:
    """Real digit images as PNG files, one folder per class."""
    digits = load_digits()
    for label in range(classes):
        folder = root / f"digit-{label}"
        folder.mkdir(parents=True)
        for i in np.flatnonzero(digits.target == label)[:per_class]:
            pixels = np.rint(digits.images[i] * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(folder / f"{i}.png")
    return root


def labels_of(sizes: list[int]) -> list[int]:
    """The labels of as many images of each class."""
    return [label for label, size in enumerate(sizes) for _ in range(size)]


def assert_partition(splits: Splits, source: ImageSource) -> None:
    """Every image in one part, every training image in one fold."""
    parts = np.concatenate([splits.train, splits.val, splits.test])
    assert sorted(parts.tolist()) == list(range(len(source)))
    assert sorted(np.concatenate(splits.folds).tolist()) == sorted(splits.train.tolist())


def names(source: ImageSource, splits: Splits) -> list[list[str]]:
    """The ids of the images in each part and fold, in their order."""
    parts = [splits.train, splits.val, splits.test, *splits.folds]
    return [[source.ids[i] for i in part] for part in parts]
