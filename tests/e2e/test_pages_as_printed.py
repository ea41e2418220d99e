"""Blocks of the pages that a newcomer pastes first, exactly as they are printed; minutes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.kit.examples import run_script

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(3600)  # minutes of an idle core
@pytest.mark.parametrize("page", ["README.md", "docs/sklearn.md"])
def test_blocks_run_as_printed(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 1
    said = run_script("\n".join(blocks), tmp_path)
    score = float(said.split()[-1]) if page == "README.md" else 1.0
    assert score > 0.8
