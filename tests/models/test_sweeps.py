"""The sweeps over timm's architectures run and say what they found; ``nox -s sweep`` runs all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.examples import run_script

SWEEPS = Path(__file__).parents[1] / "sweep"


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("block_sweep.py", "| resnet | 1 | 6 | 6 |"),
        ("cut_sweep.py", "| resnet | `test_resnet` | 3 of 3 |"),
    ],
)
def test_a_sweep_writes_its_page(script, line, tmp_path):
    source = (SWEEPS / script).read_text(encoding="utf-8")
    run_script(source, tmp_path, "--filter", "test_resnet", "--table", "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert line in page.splitlines()
    assert f"tests/sweep/{script} --table docs/benchmarks/" in page
