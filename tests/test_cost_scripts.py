"""The scripts that measure what a study costs: parts of their page, and the rules for losers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

BENCHMARKS = Path(__file__).parents[1] / "studies" / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Any:
    """Imports a script by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module
        for name in ("_parts", "curves", "experience"):
            sys.modules.pop(name, None)


def test_a_part_replaces_itself_and_leaves_the_others(script: Any, tmp_path: Path) -> None:
    parts, page = script("_parts"), tmp_path / "page.md"
    assert parts.kept(page) == ""
    page.write_text("# Page\n\nText.\n")
    for name, text in (("a", "## A\n\none"), ("b", "## B"), ("a", "## A\n\ntwo\n"), ("b", "## B")):
        parts.put(name, text, page)
    assert page.read_text() == (
        "# Page\n\nText.\n\n<!-- begin a -->\n## A\n\ntwo\n<!-- end a -->\n\n"
        "<!-- begin b -->\n## B\n<!-- end b -->\n"
    )
    assert parts.kept(page).startswith("<!-- begin a -->")
    assert parts.kept(page).endswith("<!-- end b -->\n")


def test_the_rules_are_those_of_optunas_percentile_pruner(script: Any) -> None:
    curves = script("curves")
    rng = np.random.default_rng(0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for rule in ((25, 5, 1), (50, 3, 0), (75, 5, 2)):
        percentile, startup, warmup = rule
        pruner = optuna.pruners.PercentilePruner(
            100.0 - percentile, n_startup_trials=startup, n_warmup_steps=warmup + 1
        )  # which keeps the best per cent, and counts steps from 0
        study = optuna.create_study(direction="maximize", pruner=pruner)
        finished: list[list[float]] = []
        for _ in range(25):
            curve = rng.random(6).round(3).tolist()
            trial, stopped = study.ask(), len(curve)
            for epoch, score in enumerate(curve[:-1], start=1):
                trial.report(score, epoch)
                if trial.should_prune():
                    stopped = epoch
                    break
            assert curves.stops(rule, curve, finished) == stopped
            if stopped == len(curve):
                trial.report(curve[-1], len(curve))
                finished.append(curve)
                study.tell(trial, max(curve))
            else:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        assert len(finished) < 25, "some were stopped"


def test_no_rule_stops_nobody(script: Any) -> None:
    curves = script("curves")
    assert curves.stops(None, [0.0, 0.0], [[1.0, 1.0]] * 20) == 2
    assert curves.stops((50, 3, 0), [], [[1.0]] * 20) == 0
