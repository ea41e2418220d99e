"""Runs scripts and code blocks as they are printed, on tiny settings.

Every replacement is a regular expression on the source, so that what a reader copies is what is
run, apart from its size.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TINY_MODEL = 'model="test_efficientnet", weights="none"'
TINY_TRAIN = 'n_seeds=1, train=__import__("biotune_optuna").TrainSettings(epochs=1, batch_size=20)'

SMALLER = {
    r'model="(tf_efficientnet_lite0|resnet18|resnet50)"': f"{TINY_MODEL}, {TINY_TRAIN}",
    r"image_size=\d+": "image_size=32",
    r"(image_size=32,\s+)train_size=\d+(, val_size=\d+)?": r"\1train_size=40, val_size=40",
    r"n_trials=\d+": "n_trials=2",
    r"\.show\(\)": ".to_json()",  # needs no browser
    r"^TRIALS = \d+": "TRIALS = 2",
}
"""Makes an example small; not every example has all of it."""


def shrink(source: str, **more: tuple[str, str]) -> str:
    """The source with smaller settings; every one of ``more`` must be found."""
    for pattern, replacement in SMALLER.items():
        source = re.sub(pattern, replacement, source, flags=re.MULTILINE)
    for name, (pattern, replacement) in more.items():
        source, count = re.subn(pattern, replacement, source, flags=re.MULTILINE)
        assert count, f"{name}: {pattern!r} is not in the example any more"
    return source


def run_script(source: str, cwd: Path, *arguments: str, timeout: float = 240) -> str:
    """Runs a script in a process of its own and returns what it printed."""
    script = cwd / "example.py"
    script.write_text(source)
    environment = os.environ | {"BIOTUNE_CACHE": str(cwd / "cache"), "OMP_NUM_THREADS": "1"}
    environment.pop("BIOTUNE_STORAGE", None)
    ran = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert ran.returncode == 0, f"{source}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout
