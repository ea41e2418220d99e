from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from biotune_optuna.data.sources.image_source import ImageSource, content_hash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of distinct PNG pictures: tree({"cats": 3, "train/dogs": 2})."""

    def write(counts: dict[str, int], *, name: str = "images") -> Path:
        root = tmp_path / name
        seed = 0
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                picture(seed).save(root / folder / f"{number:03d}.png")
                seed += 1
        return root

    return write
