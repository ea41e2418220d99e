"""The sweeps over timm's architectures run and say what they found; ``nox -s sweep`` runs all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SWEEPS = Path(__file__).parents[1] / "sweep"


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("block_sweep.py", "| resnet | 1 | 6 | 6 |"),
        ("cut_sweep.py", "| resnet | `test_resnet` | 3 of 3 |"),
    ],
)
def test_a_sweep_writes_its_page(script, line, tmp_path):
    page = tmp_path / "page.md"
    command = [sys.executable, str(SWEEPS / script), "--filter", "test_resnet"]
    done = subprocess.run(
        [*command, "--table", str(page)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert line in page.read_text(encoding="utf-8").splitlines()
    assert f"tests/sweep/{script} --table docs/benchmarks/" in page.read_text(encoding="utf-8")
