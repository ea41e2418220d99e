"""What an equal budget keeps back for its end, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from biotune_optuna.compare.budget import _Budget, run_budget
from biotune_optuna.finetune.results import RunResult
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.recipe import Recipe
from biotune_optuna.study.setup import prepare
from biotune_optuna.study.stop import StopRequest
from tests.kit.studies import tiny_spec

N_TRAIN, N_VAL, TOP_K, RUNS = 60, 20, 2, 3


@dataclass
class Run:
    fold: int | None


def make_budget(budget: int, n_folds: int = 1, preset: str = "default") -> _Budget:
    def images(fold: int | None) -> tuple[Any, Any]:
        share = 1 if fold is None else n_folds
        return np.arange(N_TRAIN // share), np.arange(N_VAL)

    plan: Any = SimpleNamespace(top_k=TOP_K, runs=RUNS, members=1)
    runs = [Run(0 if n_folds > 1 else None)]
    spec = SimpleNamespace(search_runs=lambda index: runs, preset=preset)
    setup: Any = SimpleNamespace(splits=SimpleNamespace(run=images), spec=spec)
    method, stop = (SimpleNamespace() for _ in range(2))
    return _Budget(setup, method, plan, budget, stop)  # type: ignore[arg-type]


def trial(number: int, value: float, epochs: int, state: TrialState = TrialState.COMPLETE) -> Any:
    """A finished trial of one run; an epoch passes training images twice, the others once."""
    passes = {"forward": epochs * (N_TRAIN + N_VAL), "backward": epochs * N_TRAIN}
    return SimpleNamespace(
        number=number, value=value, state=state, user_attrs={**passes, "runs": [{}]}
    )


def test_the_end_is_reckoned_by_the_best_few_and_not_by_the_average() -> None:
    epoch = 2 * N_TRAIN + N_VAL
    final = 2 * (N_TRAIN + N_VAL)
    trials = [trial(0, 0.9, 10), trial(1, 0.8, 4), *(trial(i, 0.1, 1) for i in range(2, 8))]
    kept = make_budget(0)._kept(trials)
    assert kept == pytest.approx(RUNS * (10 + 4) * epoch + 10 * final)
    alone = make_budget(0)._kept([trial(0, 0.9, 10), trial(1, 0.99, 20, TrialState.PRUNED)])
    assert alone == pytest.approx(RUNS * 2 * 10 * epoch + 10 * final), "so may the second best be"


def test_what_runs_on_folds_ends_on_all_images() -> None:
    on_folds = {"forward": 10 * (N_TRAIN // 2 + N_VAL), "backward": 10 * N_TRAIN // 2}
    halves = [trial(0, 0.9, 10), trial(1, 0.8, 10)]
    for one in halves:
        one.user_attrs |= on_folds
    whole = make_budget(0)._kept([trial(0, 0.9, 10), trial(1, 0.8, 10)])
    assert make_budget(0, n_folds=2)._kept(halves) == pytest.approx(whole)
    all_images = [trial(0, 0.9, 10), trial(1, 0.8, 10)]  # as this search has under the paper's
    assert make_budget(0, n_folds=2, preset="paper")._kept(all_images) == pytest.approx(whole)


@pytest.mark.parametrize(("spare", "spent"), [(0, False), (-1, True)])
def test_another_trial_must_fit_before_the_end(
    spare: int, spent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [trial(0, 0.9, 6), trial(1, 0.8, 6)]
    one = 6 * (2 * N_TRAIN + N_VAL)
    budget = make_budget(0)
    budget.budget = round(3 * one + budget._kept(trials)) + spare
    monkeypatch.setattr("biotune_optuna.compare.budget._finished", lambda _study: trials)
    assert budget._is_spent(None) is spent  # type: ignore[arg-type]


def test_the_chosen_setting_is_trained_as_it_was_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, fit = [], Trainer.fit

    def noted(
        self: Trainer, recipe: Recipe, train: Any, val: Any = None, *, seed: int, **options: Any
    ) -> RunResult:
        result = fit(self, recipe, train, val, seed=seed, **options)
        runs.append((recipe.lr, recipe.weight_decay, self.settings.epochs, seed, len(train)))
        result.diverged = val is None and seed == first  # so that the next seed is taken
        return result

    monkeypatch.setattr(Trainer, "fit", noted)
    setup = prepare(tiny_spec(n_seeds=1), device="cpu", cache_dir=tmp_path)
    plan: Any = SimpleNamespace(top_k=1, runs=2, members=1)
    spec, n = setup.spec, len(setup.splits.train)
    first, second = spec.final_seeds(2)
    found = run_budget(
        setup,
        "full",
        plan,
        budget=1,
        storage=optuna.storages.InMemoryStorage(),
        name="b",
        stop=StopRequest(),
    )
    (searched, *rest) = runs
    how = searched[:3]
    fresh = [(*how, run.seed, n) for run in spec.confirm_runs(2)]
    everything = n + len(setup.splits.val)
    assert rest == [*fresh, (*how, first, everything), (*how, second, everything)]
    assert found.setting == f"lr {how[0]:.3g}, weight_decay {how[1]:.3g}, epochs {how[2]}"
    assert found.evaluations == 1
    assert found.backward > 2 * everything, "both final trainings are charged"
