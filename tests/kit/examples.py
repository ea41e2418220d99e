"""Runs scripts and code blocks as they are printed, on tiny settings.

Every replacement is a regular expression on the source, so that what a reader copies is what is
run, apart from its size.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import sys
from typing import TYPE_CHECKING

import optuna
import pytest
import torch

from biotune_optuna.report import figures

if TYPE_CHECKING:
    from pathlib import Path

TINY_MODEL = 'model="test_efficientnet", weights="none", lr=(1e-3, 3e-2)'
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


def run_script(source: str, cwd: Path, *arguments: str) -> str:
    """Run a script as ``python example.py ARGUMENTS`` would and return what it printed.

    It runs in this process, which has PyTorch loaded already, and leaves nothing behind in it.
    """
    script = cwd / "example.py"
    script.write_text(source)
    known, printed = set(sys.modules), io.StringIO()
    level, numbers = optuna.logging.get_verbosity(), torch.random.get_rng_state()
    figures.all_figures()  # loaded once in a process
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(cwd)
        patch.setenv("BIOTUNE_CACHE", str(cwd / "cache"))
        patch.setattr(sys, "argv", [str(script), *arguments])
        patch.setattr(figures, "_declared", dict(figures._declared))  # one may declare its own
        patch.syspath_prepend(cwd)
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            if end.code:
                pytest.fail(f"it ended with {end.code}:\n{printed.getvalue()}")
        finally:
            optuna.logging.set_verbosity(level)
            torch.random.set_rng_state(numbers)
            for name in set(sys.modules) - known:
                if str(cwd) in str(getattr(sys.modules[name], "__file__", "")):
                    del sys.modules[name]
    return printed.getvalue()
