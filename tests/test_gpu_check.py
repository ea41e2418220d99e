"""The check on a GPU: it runs in miniature on a CPU, and its page is made of what it finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "studies" / "benchmarks"
PAGE = ROOT / "docs" / "benchmarks" / "gpu.md"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import _gpu_page

    return _gpu_page


def run(tmp_path: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    out = tmp_path / "gpu.json"
    asked = [sys.executable, str(BENCHMARKS / "gpu.py"), "--out", str(out), "--device", "cpu"]
    said = subprocess.run(
        [*asked, "--small", *options], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    return said, json.loads(out.read_text()) if out.is_file() else {}


def test_parts_run_from_the_tree_and_are_told_on_the_page(tmp_path: Path) -> None:
    file = tmp_path / "gpu.md"
    said, found = run(tmp_path, "--parts", "machine,export,memory", "--page", str(file))
    assert said.returncode == 0, said.stdout + said.stderr
    assert list(found) == ["machine", "export", "memory"]
    assert {check["ok"] for check in found["export"]["checks"]} == {True}
    assert all("error" not in part for part in found.values())
    assert found["machine"]["figures"]["PyTorch"]
    text = file.read_text()
    assert "Not run yet" not in text
    assert (
        "| export: off, exported and used on cpu: probability | 0 | at most 0.001 | holds |" in text
    )


def test_a_part_that_takes_too_long_costs_itself_alone(tmp_path: Path) -> None:
    said, found = run(tmp_path, "--parts", "graphs,machine", "--stretch", "0.05")
    assert said.returncode == 1
    assert found["graphs"]["error"] == "cut off after 2 s"
    assert found["machine"]["figures"]["timm"]
    assert "failed: graphs" in said.stdout


def test_an_unknown_part_is_named(tmp_path: Path) -> None:
    said, _ = run(tmp_path, "--parts", "equal,speed")
    assert said.returncode == 2
    assert "there is no part 'speed'" in said.stderr


def test_the_page_in_the_documentation_says_what_was_run(page: Any) -> None:
    text = PAGE.read_text()
    if "**Not run yet**" in text:
        assert text == page.page({}), "python studies/benchmarks/gpu.py --read none --page …"
        first = text.partition("# The training engine on a GPU\n\n")[2]
        assert first.startswith("**Not run yet**")
    else:
        assert "## Checks" in text


def test_predictions_stand_beside_what_was_found(page: Any) -> None:
    part, figure, predicted, aim = page.EXPECTED[0]
    found = {
        part: {"figures": {figure: [3.5, 3.25, 4.0]}, "checks": [], "seconds": 3},
        "waits": {"checks": [{"name": "a", "value": 0.0, "ok": True, "bound": "at most 0.1"}]},
        "equal": {"error": "cut off after 45 s"},
    }
    text = page.page(found)
    assert f"| {part}: {figure} | {predicted} | {aim} | 3.5 (3.25 to 4) |" in text
    assert "| 0 at most |" in text
    assert "- equal: cut off after 45 s" in text
    unrun = page.page({})
    assert f"| {part}: {figure} | {predicted} | {aim} |  |" in unrun
    assert "## Figures" not in unrun
