"""What the tests of splits share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource
    from biotune_optuna.data.splits import Splits


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
