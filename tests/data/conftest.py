from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.images import picture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
