"""The scripts that measure what a study costs: parts of their page, and the rules for losers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from biotune_optuna.recipe import BlockRecipe, Recipe

BENCHMARKS = Path(__file__).parents[1] / "studies" / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Any:
    """Imports a script by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module
        for name in ("_parts", "curves", "experience", "halved", "known", "shorter"):
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


def test_the_rules_of_a_confirmation_take_whom_they_should(script: Any) -> None:
    shorter = script("shorter")
    values = np.array([0.7, 0.8, 0.6, 0.75])  # full fine-tuning last
    known = shorter.Standing(
        values, believed=values[::-1], doubt=np.full(4, 0.01), rates=1, fresh=values, noise=0.1
    )
    fresh = np.array([[0.7, 0.8, 0.6, 0.75], [0.7, 0.6, 0.6, 0.9], [0.7, 0.6, 0.6, 0.75]])
    assert shorter.unconfirmed(known, fresh) == (0, 0)
    assert shorter.fixed(3, 1)(known, fresh) == (1, 4)
    assert shorter.fixed(3, 3)(known, fresh) == (3, 12)
    assert shorter.fixed(1, 3)(known, fresh) == (3, 6), "full fine-tuning always takes part"
    # Within half a standard error (.071) of .8 is .75; then .825 leads .7 by more than .05.
    assert shorter.raced(0.5)(known, fresh) == (3, 6)
    assert shorter.raced(9.0)(known, fresh) == (3, 12), "nobody is left behind"
    # With the doubt a tenth of the noise, what was believed decides.
    assert shorter.weighed(1)(known, fresh) == (2, 4)


def test_what_two_arms_need_is_trained_once(script: Any) -> None:
    halved = script("halved")

    class Trainer:
        def __init__(self) -> None:
            self.made: list[tuple[int, bool]] = []
            self.holds: Any = None

        def fit(self, recipe: Any, train: Any, val: Any = None, *, seed: int, epochs: Any) -> Any:
            self.made.append((seed, val is None))
            self.holds = seed
            return len(self.made)

        def changed(self) -> Any:
            return self.holds

        def put(self, changed: Any) -> None:
            self.holds = changed

    trainer = Trainer()
    halved.remember(trainer)
    recipe = Recipe.full([BlockRecipe("head", 1.0)], lr=1e-3)
    assert trainer.fit(recipe, [1, 2], [3], seed=1) == 1
    assert trainer.fit(recipe, [1, 2, 3], None, seed=1, epochs=4) == 2
    assert trainer.fit(recipe, [1, 2, 3], None, seed=2, epochs=4) == 3
    assert trainer.fit(recipe, [1, 2], [3], seed=1) == 1
    assert trainer.fit(recipe, [1, 2, 3], None, seed=1, epochs=4) == 2
    assert trainer.holds == 1, "the model is that of the training"
    assert trainer.made == [(1, False), (1, True), (2, True)]
