"""Rivals alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biotune_optuna.confirmation.baseline import export_baseline, run_baseline
from biotune_optuna.errors import BioTuneError, StudyError
from biotune_optuna.export import load_exported
from biotune_optuna.finetune.metrics import score
from biotune_optuna.finetune.results import RunResult
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

    def count(trainer, index, *views):
        looks.append(len(index))
        return predict(trainer, index, *views)

    monkeypatch.setattr(type(setup.trainer), "predict", count)
    stages: list[str] = []

    class Watch:
        def trial_started(self, trial: object) -> None: ...
        def epoch(self, run: object, record: object) -> None: ...
        def stage(self, name: str, detail: str, done: int, total: int) -> None:
            stages.append(name)
            assert done < total == 5 + 2 + 1

    found = run_baseline(setup, "layer-decay", n_runs=2, observer=Watch())
    assert stages == ["rates"] * 5 + ["confirmation"] * 2 + ["final training"]
    assert looks == [len(setup.splits.test)]
    assert found.setting == max(found.graded, key=lambda pair: pair[1])[0]
    assert found.test is not None
    assert found.test.low <= found.test.score <= found.test.high
    n, fresh = len(setup.splits.train), found.contender
    final = (n + len(setup.splits.val)) * max(1, round(sum(fresh.best_epochs) / 2 + 0.01))
    assert (found.cost.backward - final) % n == 0
    assert found.cost.backward > final
    told = json.loads(json.dumps(found.to_dict()))
    assert told["mean"] == fresh.mean
    assert told["grid"][0] == {**found.graded[0][0], "score": found.graded[0][1]}
    assert told["test"] == {
        "value": found.test.score,
        "low": found.test.low,
        "high": found.test.high,
    }


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
    assert [seed for _, seed in runs] == [*[tuning] * 5, *fresh, *spec.final_seeds(1)]


@pytest.mark.parametrize("method", [name for name in methods() if name != "lora"])
def test_every_method_runs_alone(setup: Setup, method: str) -> None:
    found = run_baseline(setup, method, n_runs=1)
    chosen, trainer, splits = get_method(method), setup.trainer, setup.splits
    assert [setting for setting, _ in found.graded] == chosen.settings() * chosen.is_tuned
    labels, tested = setup.source.labels[splits.test], trainer.predict(splits.test)
    assert found.test is not None
    assert found.test.score == pytest.approx(score(found.metric, labels, tested, 10))
    chosen.run(
        trainer,
        np.concatenate([splits.train, splits.val]),
        setting={"weight_decay": setup.space.base_weight_decay, **found.setting},
        seed=setup.spec.final_seeds(1)[0],
        epochs=found.contender.final_epochs,
    )
    assert np.array_equal(trainer.predict(splits.test), tested)


def test_several_members_are_tested_alone_and_together(setup: Setup) -> None:
    single = run_baseline(setup, "full", n_runs=1)
    found = run_baseline(setup, "full", n_runs=1, members=2)
    assert found.test == single.test
    assert single.ensemble is None
    assert found.ensemble is not None
    assert found.ensemble.n == len(setup.splits.test)
    told = found.to_dict()
    assert told["members"]["value"] == found.ensemble.score
    assert told["test"] == single.to_dict()["test"]
    epochs = single.contender.final_epochs
    images = len(setup.splits.train) + len(setup.splits.val)
    assert found.cost.backward == single.cost.backward + epochs * images
    with pytest.raises(StudyError, match="members 0"):
        run_baseline(setup, "full", members=0)


def test_without_a_test_part_the_rest_is_kept(cache_dir: Path) -> None:
    setup = prepare(tiny_spec(test_fraction=0.0), device="cpu", cache_dir=cache_dir)
    found = run_baseline(setup, "linear-probe", n_runs=1)
    assert 0 <= found.contender.mean <= 1
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["test"] is None


def test_what_cannot_be_done_is_said_before_anything_is_trained(setup: Setup) -> None:
    with pytest.raises(StudyError, match="n_runs 0 is too small"):
        run_baseline(setup, "full", n_runs=0)
    with pytest.raises(BioTuneError, match="'prayer'"):
        run_baseline(setup, "prayer")


@pytest.mark.parametrize("method", ["full", "l2-sp"])
def test_a_baselines_model_is_the_one_that_was_tested(
    setup: Setup, tmp_path: Path, method: str
) -> None:
    found = run_baseline(setup, method, n_runs=1, members=2)
    folder = export_baseline(setup, found, tmp_path / "model")
    images = [setup.source.load(int(i)) for i in setup.splits.test]
    labels = setup.source.labels[setup.splits.test]
    for single, test in ((False, found.ensemble), (True, found.test)):
        assert test is not None
        said = load_exported(folder, device="cpu", single=single).predict(images)
        probs = np.stack([one.probabilities for one in said])
        assert score(found.metric, labels, probs, len(setup.classes)) == pytest.approx(test.score)
    card = (folder / "README.md").read_text()
    assert f"{found.ensemble.score:.4f}" in card
    assert ("not all that the method does" in card) == (method == "l2-sp")
