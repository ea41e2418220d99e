"""Every timm architecture through ``model_blocks``; minutes."""

import subprocess
import sys
from pathlib import Path

import timm

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "benchmarks" / "blocks.md"


def test_every_architecture_keeps_the_rules_and_the_page_says_so(tmp_path):
    table = tmp_path / "blocks.md"
    command = [sys.executable, str(HERE / "block_sweep.py"), "--table", str(table)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, page = table.read_text(encoding="utf-8"), PAGE.read_text(encoding="utf-8")
    assert len(timm.list_models()) > 1000
    if f"timm {timm.__version__}," in page:
        assert found == page
