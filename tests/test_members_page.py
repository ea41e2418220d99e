"""The benchmark of members: nothing is trained twice, and every row comes from trainings."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).parents[1] / "studies" / "benchmarks"
NAMES = ("_tasks", "_trainings", "_finals", "members")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, home: Path) -> ModuleType:
    """The script with one tiny task, four trials a search and models of one or two members."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    tasks = importlib.import_module("_tasks")
    found = importlib.import_module("members")
    tiny = tasks.Task(
        *("tiny", "test_efficientnet", "digits", 32, 20, 20),
        epochs=1,
        options={"weights": "none", "test_fraction": 0.02},
    )
    monkeypatch.setattr(found, "TASKS", {"tiny": tiny})
    for name, value in {"TRIALS": 4, "TOP": 2, "RUNS": 2, "COUNTS": (1, 5), "FOLDS": (2,)}.items():
        monkeypatch.setattr(found, name, value)
    monkeypatch.setattr(found, "MOST", 5)
    table(found, tiny, home)
    return found


def table(script: ModuleType, task: Any, home: Path) -> None:
    """A table of six genomes as landscapes.py keeps it; its values and predictions are drawn."""
    trainings = importlib.import_module("_trainings")
    setup = task.open([], home / "cache")
    rng = np.random.default_rng(0)
    n_val, n_test = len(setup.splits.val), len(trainings.test_part(setup))
    rows: list[dict[str, Any]] = [{"task": "tiny"}]
    for place in range(6):
        logs = np.log(rng.dirichlet(np.ones(10), n_val + n_test))
        params = {name: float(rng.random()) for name in setup.space.names}
        rows.append(
            {
                "place": place,
                "repeat": 0,
                "params": params | {"lr": float(rng.uniform(1e-3, 3e-2))},
                "score": float(rng.random()),
                "best_epoch": 1,
                "forward": 100,
                "backward": 80,
                "seconds": 1.0,
                "val_probs": [trainings.packed(logs[:n_val])],
                "test_probs": trainings.packed(logs[n_val:]),
            }
        )
    rows.append(rows[1] | {"repeat": 1})
    (home / "tables").mkdir()
    (home / "tables" / "tiny.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert len(script.search_rows(home / "tables" / "tiny.jsonl")) == 6


def test_the_page_comes_from_trainings_that_are_made_once(
    script: ModuleType, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cache = home / "members.md", home / "cache"
    line = ["tiny", "--tables", str(home / "tables"), "--cache", str(cache), "--draws", "2"]
    line += ["--out", str(out)]
    script.main([*line, "--at-most", "3"])
    assert "not done, 3 trainings" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no draw is complete yet"):
        script.main([*line, "--page"])
    assert not out.exists()
    file = cache / "tiny.jsonl"
    with file.open("a") as broken:
        broken.write('{"key": "half a li')
    started = file.read_text()
    script.main([*line[:-4], "--draws", "1", *line[-2:]])
    assert not file.read_text().startswith(started), "half a line was taken away"
    with file.open("a") as going_on:
        going_on.write('{"key": "half a li')
    before = file.read_text()
    script.main([*line, "--page"])
    assert file.read_text() == before, "another process may be writing it"
    assert "tiny (1)" in out.read_text()
    assert "1 of 2 draws" in capsys.readouterr().out
    script.main(line)
    made = [json.loads(row) for row in file.read_text().splitlines()]
    assert len({row["key"] for row in made}) == len(made)
    assert {json.loads(row["key"])[0] for row in made} == {"confirm", "final", "fold"}
    text = out.read_text()
    assert "1 development tasks, each with so many draws: tiny (2)." in text
    for row in (
        "seeds of the winner, 5",
        "folds of the winner, 2",
        "best mean, shrunk, 5",
        "seeds of the winner with mirror and zoom, 1",
        "greedy among the search's own models, 5",
    ):
        assert row in text
    before = file.read_text(), text
    script.main(line)
    assert (file.read_text(), out.read_text()) == before
