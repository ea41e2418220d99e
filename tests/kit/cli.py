"""A command that fails, and a folder of images to fail on."""

from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from biotune_optuna.cli import cli


def tree(root: Path, classes: dict[str, int], size: int = 16) -> Path:
    rng = np.random.default_rng(0)
    for label, count in classes.items():
        (root / label).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return root


def fails(*args: str) -> str:
    """The one line that a failing command prints."""
    result = CliRunner().invoke(cli, list(args))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    *before, last = result.stderr.splitlines()
    assert last.startswith("Error: "), result.output
    assert not any(line.startswith("Error: ") for line in before), result.output
    return last.removeprefix("Error: ")


TINY = ("--model", "test_efficientnet", "--weights", "none", "--image-size", "32", "--epochs", "1")
RATES = ("--lr", "1e-3,3e-2")  # nothing needs to be found out first


def tune(data: Path | str, *args: str) -> str:
    return fails("tune", "--data", str(data), *TINY, *RATES, "--trials", "2", *args)
