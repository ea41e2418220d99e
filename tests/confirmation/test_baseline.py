"""Rivals alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biotune_optuna.confirmation.baseline import run_baseline
from biotune_optuna.errors import BioTuneError
from biotune_optuna.finetune.metrics import score
from biotune_optuna.finetune.results import RunResult, epochs_of_final_run
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.methods.registry import get_method, methods
from biotune_optuna.recipe import Recipe
from biotune_optuna.study.setup import Setup, prepare
from tests.kit.studies import tiny_spec


def test_a_baseline_is_tuned_confirmed_and_tested_once(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    predict = type(setup.trainer).predict

    def count(trainer, index):
        looks.append(len(index))
        return predict(trainer, index)

    monkeypatch.setattr(type(setup.trainer), "predict", count)
    stages: list[str] = []

    class Watch:
        def trial_started(self, trial: object) -> None: ...
        def epoch(self, run: object, record: object) -> None: ...
        def stage(self, name: str, detail: str, done: int, total: int) -> None:
            stages.append(name)
            assert done < total == 5 + 2 + 1

    found = run_baseline(setup, "layer-decay", n_runs=2, observer=Watch())
    assert stages == ["settings"] * 5 + ["confirm"] * 2 + ["final training"]
    assert looks == [len(setup.splits.test)]
    best = max(found.grid, key=lambda point: point["score"])
    assert found.setting == {k: v for k, v in best.items() if k != "score"}
    assert found.test.low <= found.test.value <= found.test.high
    n = len(setup.splits.train)
    final = (n + len(setup.splits.val)) * max(1, round(sum(found.best_epochs) / 2 + 0.01))
    assert (found.backward - final) % n == 0
    assert found.backward > final
    assert json.loads(json.dumps(found.to_dict()))["mean"] == found.mean


def test_a_baseline_has_the_searchs_decay_and_fresh_seeds(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, fit = [], Trainer.fit

    def noted(
        self: Trainer, recipe: Recipe, train: Any, val: Any = None, *, seed: int, **options: Any
    ) -> RunResult:
        runs.append((recipe.weight_decay, seed))
        return fit(self, recipe, train, val, seed=seed, **options)

    monkeypatch.setattr(Trainer, "fit", noted)
    run_baseline(setup, "full", n_runs=2)
    assert {decay for decay, _ in runs} == {setup.space.base_weight_decay} != {0.0}
    spec = setup.spec
    tuning, fresh = spec.search_runs()[0].seed, [run.seed for run in spec.confirm_runs(2)]
    assert [seed for _, seed in runs] == [*[tuning] * 5, *fresh, spec.final_seed]


@pytest.mark.parametrize("method", [name for name in methods() if name != "lora"])
def test_every_method_runs_alone(setup: Setup, method: str) -> None:
    found = run_baseline(setup, method, n_runs=1)
    chosen, trainer, splits = get_method(method), setup.trainer, setup.splits
    tried = [{k: v for k, v in point.items() if k != "score"} for point in found.grid]
    assert tried == chosen.settings()
    labels, tested = setup.source.labels[splits.test], trainer.predict(splits.test)
    assert found.test.value == pytest.approx(score(found.metric, labels, tested, 10))
    chosen.run(
        trainer,
        np.concatenate([splits.train, splits.val]),
        setting={"weight_decay": setup.space.base_weight_decay, **found.setting},
        seed=setup.spec.final_seed,
        epochs=epochs_of_final_run(found.best_epochs),
    )
    assert np.array_equal(trainer.predict(splits.test), tested)


def test_without_a_test_part_the_rest_is_kept(cache_dir: Path) -> None:
    setup = prepare(tiny_spec(test_fraction=0.0), device="cpu", cache_dir=cache_dir)
    found = run_baseline(setup, "linear-probe", n_runs=1)
    assert 0 <= found.mean <= 1
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["test"] is None


def test_an_unknown_method_is_named(setup: Setup) -> None:
    with pytest.raises(BioTuneError, match="'prayer'"):
        run_baseline(setup, "prayer")
