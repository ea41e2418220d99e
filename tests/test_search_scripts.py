"""The scripts that teach the search, and that measure it for real."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biotune_optuna.evolution import experience as known
from biotune_optuna.evolution.experience import Experience, Start

BENCHMARKS = Path(__file__).parents[1] / "studies" / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Any:
    """Imports a script by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module
        for name in ("experience", "real_search", "starts", "values", "_sets"):
            sys.modules.pop(name, None)


def table(script: Any, name: str, seed: int, best: float, n: int = 120, blocks: int = 7) -> Any:
    """A table in which the head's rate decides, and training the last block helps."""
    rng = np.random.default_rng(seed)
    logs = rng.uniform(-1.0, 1.0, (n, blocks))
    logs[:, :-1][rng.random((n, blocks - 1)) < 0.5] = -np.inf
    scores = 0.6 - 0.1 * (logs[:, -1] - best) ** 2 + 0.1 * np.isfinite(logs[:, -2])
    scores += 0.01 * rng.standard_normal(n)
    return script("experience").Known(name, logs, scores, scores, np.zeros(n, dtype=np.int64))


def test_what_all_tables_share_is_learned(script: Any) -> None:
    learn = script("experience").learn
    tables = [table(script, f"t{i}", i, best) for i, best in enumerate((-0.6, -0.4, -0.2))]
    taught = learn(tables)
    logs = np.full((3, 12), -np.inf)  # a network of another depth
    logs[:, -1] = (-0.4, -0.4, 1.0)
    logs[1, -2] = 0.0
    cost = taught.cost(taught.standardised(known.features(logs)))
    assert cost[1] < cost[0] < cost[2]
    assert script("experience").foretold(tables[1], [tables[0], tables[2]]) > 0.8
    assert Experience.from_dict(json.loads(json.dumps(taught.to_dict()))) == taught


def tried(script: Any, task: str, **scores: float) -> list[Any]:
    """Trainings of five candidates on one image set, each on two seeds around its score."""
    module = script("starts")
    return [
        module.Tried(task, seed, CANDIDATES[name], 0.0, score + (seed - 1.5) / 10)
        for name, score in scores.items()
        for seed in (1, 2)
    ]


CANDIDATES = {
    "probe": Start(1.0, 0.0, 0.0, 0.0, 0.5),
    "full": Start(0.0, 1.0, 0.0, 0.0, 0.0),
    "single": Start(0.5, 0.5, 0.0, 0.0, 0.0),
    "upper": Start(0.5, 1.0, 0.0, 0.0, 0.0),
    "rising": Start(0.0, 1.0, 0.0, 1.0, 0.0),
}


def test_starts_hold_the_best_for_every_set_and_what_the_comparison_needs(script: Any) -> None:
    choose = script("starts").choose
    near = tried(script, "near", probe=0.5, full=0.2, single=0.1, upper=0.9, rising=0.8)
    far = tried(script, "far", probe=0.1, full=0.2, single=0.1, upper=0.1, rising=0.6)
    named = {start: name for name, start in CANDIDATES.items()}
    names = [named[one] for one in choose([*near, *far], 5)]
    assert names[:2] == ["rising", "upper"], "the best everywhere, then what one set lacks"
    assert {*names[2:]} == {"probe", "full", "single"}
    names = [named[one] for one in choose([*near, *far], 4)]
    assert names == ["rising", "probe", "full", "single"]
    lacking = [one for one in far if one.start != CANDIDATES["rising"]]
    assert CANDIDATES["rising"] not in choose([*near, *lacking], 4), "not tried on every set"


def test_the_page_of_starts_tells_what_the_other_sets_would_have_chosen(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("starts")
    monkeypatch.setattr(module, "EARLIER", (CANDIDATES["full"],))
    near = tried(script, "near", probe=0.5, full=0.2, single=0.1, upper=0.9, rising=0.8)
    far = tried(script, "far", probe=0.1, full=0.2, single=0.1, upper=0.1, rising=0.6)
    page = module.page([*near, *far], 4)
    assert "| the best of those chosen without the set | 0.800 | 0.200 |" in page
    assert "| the best of the earlier starts | 0.200 | 0.200 |" in page
    assert "| the best of all candidates | 0.900 | 0.600 |" in page
    assert "on average +30.0 points above" in page


def test_the_page_of_starts_is_what_the_script_makes(script: Any) -> None:
    module = script("starts")
    assert module.PAGE.read_text() == module.page(module.read(), script("experience").N_STARTS)


def test_what_the_package_knows_was_learned_from_the_tables_that_are_there(script: Any) -> None:
    module = script("experience")
    tables = module.read_tables()
    packaged = known.learned()
    assert packaged.tables == tuple(one.name for one in tables)
    again = module.learn(tables, starts=module.starts.choose(module.starts.read(), module.N_STARTS))
    np.testing.assert_allclose(again.weights, packaged.weights, atol=2e-5)
    assert dataclasses.replace(again, weights=packaged.weights) == packaged


def test_the_value_that_foretells_the_test_is_found(script: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    worth = rng.random(60)
    lines = [
        f"{i},0,{0.5 + 1e-3 * (i % 7)},{x:.4f};{x:.4f},0.5;{1 - x:.4f},0.9;0.9,2"
        for i, x in enumerate(worth)
    ]
    (tmp_path / "test").mkdir()
    columns = "place,seed,score,curve,fitted,nll,best_epoch"
    (tmp_path / "a.csv").write_text("\n".join(["# {}", columns, *lines]) + "\n")
    tests = [f"{i},0,{x:.4f}" for i, x in enumerate(worth)]
    (tmp_path / "test" / "a.csv").write_text("\n".join(["# {}", "place,seed,score", *tests]))
    count, found = script("values").measure(tmp_path / "a.csv")
    assert count == 60
    assert found["last epoch's accuracy"][0] == pytest.approx(1)
    assert found["cross-entropy, temperature fitted"][0] == pytest.approx(1)
    best = found["last epoch's accuracy"][1]
    assert best > found["best epoch's accuracy"][1] + 0.2, "which is the same for all"
    assert f"| last epoch's accuracy | {best:.3f} |" in script("values").page({"a": (60, found)})


@pytest.mark.usefixtures("quiet")
def test_a_real_search_chooses_trains_and_tests(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("real_search")
    monkeypatch.setattr(module, "TRIALS", 3)
    monkeypatch.setattr(module, "TRAININGS", 2)
    options = {"weights": "none", "test_fraction": 0.1}
    task = script("_tasks").Task(
        *("tiny", "test_efficientnet", "digits", 32, 60, 40), epochs=1, options=options
    )
    for searcher in ("default", "random", "probe"):
        search = module.Search(task, 1, searcher, tmp_path)
        search.run([], tmp_path, known.learned())
    rows = module.table_of(tmp_path)
    assert [(r["searcher"], r["trials"]) for r in rows] == [
        ("default", 3),
        ("probe", 3),
        ("random", 3),
    ]
    found = json.loads((tmp_path / "tiny-1-default.json").read_text())
    assert found["chosen"] == found["by_model"]
    scores = found["tested"][str(found["chosen"])]["scores"]
    assert len(scores) == 2
    assert rows[0]["one"] == pytest.approx(np.mean(scores), abs=1e-4)
    probe = json.loads((tmp_path / "tiny-1-probe.json").read_text())["trials"]
    assert all(sum(m > 0 for m in t["recipe"]["multipliers"].values()) == 1 for t in probe)
    text = module.page(rows)
    assert f"{rows[0]['one']:.3f}, {rows[0]['three']:.3f}" in text
