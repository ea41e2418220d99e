"""What an equal budget keeps back for its end, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from biotune_optuna.compare.budget import _Budget
from biotune_optuna.compare.outcome import Outcome
from biotune_optuna.finetune.results import RunResult
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.methods.registry import get_method
from biotune_optuna.recipe import Recipe
from biotune_optuna.study.setup import prepare
from biotune_optuna.study.spec import StudySpec
from tests.kit.studies import tiny_spec

N_TRAIN, N_VAL, TOP_K, RUNS = 60, 20, 2, 3


@dataclass
class Run:
    fold: int | None


def make_budget(budget: int, n_folds: int = 1, preset: str = "default") -> _Budget:
    def images(fold: int | None) -> tuple[Any, Any]:
        share = 1 if fold is None else n_folds
        return np.arange(N_TRAIN // share), np.arange(N_VAL)

    plan: Any = SimpleNamespace(top_k=TOP_K, runs=RUNS)
    runs = [Run(0 if n_folds > 1 else None)]
    spec = SimpleNamespace(search_runs=lambda: runs, preset=preset)
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


def test_a_final_training_that_diverges_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def train(self: _Budget, setting: Any, seed: int, **options: Any) -> RunResult:
        seeds.append(seed)
        return RunResult(
            score=0.5, best_epoch=2, images_forward=10, diverged=seed == spec.final_seed
        )

    spec = StudySpec(model="resnet18", data="digits")
    setup: Any = SimpleNamespace(
        spec=spec,
        splits=SimpleNamespace(train=np.arange(4), val=np.arange(4, 6), test=np.array([6, 7])),
        trainer=SimpleNamespace(predict=lambda _: np.eye(2, dtype=np.float32)),
        source=SimpleNamespace(labels=np.array([0] * 7 + [1])),
        classes=("a", "b"),
    )
    monkeypatch.setattr(_Budget, "_train", train)
    plan: Any = SimpleNamespace(top_k=1, runs=1)
    budget = _Budget(setup, get_method("full"), plan, 100, SimpleNamespace())  # type: ignore[arg-type]
    outcome = budget._confirm([{"lr": 0.1, "epochs": 3}], Outcome())
    assert seeds[1:] == list(spec.final_seeds(2))
    assert (outcome.score, outcome.forward) == (1.0, 30)


def test_the_chosen_setting_is_trained_as_it_was_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, fit = [], Trainer.fit

    def noted(
        self: Trainer, recipe: Recipe, train: Any, val: Any = None, *, seed: int, **options: Any
    ) -> RunResult:
        runs.append((recipe.weight_decay, self.settings.epochs, seed, len(train)))
        return fit(self, recipe, train, val, seed=seed, **options)

    monkeypatch.setattr(Trainer, "fit", noted)
    setup = prepare(tiny_spec(), device="cpu", cache_dir=tmp_path)
    plan: Any = SimpleNamespace(top_k=1, runs=2)
    stop: Any = SimpleNamespace(check=lambda: None)
    budget = _Budget(setup, get_method("full"), plan, 10**9, stop)
    budget._confirm([{"lr": 1e-3, "weight_decay": 0.07, "epochs": 3}], Outcome())
    spec, n = setup.spec, len(setup.splits.train)
    fresh = [(0.07, 3, run.seed, n) for run in spec.confirm_runs(2)]
    assert runs == [*fresh, (0.07, 3, spec.final_seed, n + len(setup.splits.val))]
