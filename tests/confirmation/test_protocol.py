"""Final trainings that diverge."""

from __future__ import annotations

import optuna
import pytest

from biotune_optuna.confirmation.baseline import run_baseline
from biotune_optuna.confirmation.confirm import _fit_final
from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.recipe import Recipe
from biotune_optuna.study.setup import Setup
from biotune_optuna.study.spec import StudySpec
from biotune_optuna.study.study import TuningStudy
from tests.kit.studies import tiny_spec


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch):
    """Makes the final trainings of some seeds diverge; gives the seeds in the order of training."""
    fit, seen = Trainer.fit, []

    def make(*seeds: int) -> list[int]:
        def explode(self, recipe, train, val=None, *, seed, **options):
            result = fit(self, recipe, train, val, seed=seed, **options)
            if val is None:
                seen.append(seed)
                result.diverged = seed in seeds
            return result

        monkeypatch.setattr(Trainer, "fit", explode)
        return seen

    return make


def test_the_first_final_seed_is_the_one_of_old() -> None:
    spec = tiny_spec()
    assert spec.final_seeds(3)[0] == spec.final_seed
    assert len(set(spec.final_seeds(3))) == 3
    assert StudySpec(model="resnet50", data="digits").final_seed == 2613022947


def test_where_the_final_training_diverges_the_next_seed_is_taken(setup: Setup, diverging) -> None:
    study = TuningStudy(optuna.create_study(direction="maximize"), setup)
    recipe = Recipe.linear_probe(setup.blocks, lr=1e-3)
    plain = _fit_final(study, recipe, 2, None)
    first, second, _ = setup.spec.final_seeds(3)
    seen = diverging(first)
    result = _fit_final(study, recipe, 2, None)
    assert seen == [first, second]
    assert not result.diverged
    assert result.images_backward == 2 * plain.images_backward
    assert study.trained == (recipe.key(), 2)


def test_a_recipe_that_always_diverges_is_neither_tested_nor_exported(setup: Setup) -> None:
    study = TuningStudy(optuna.create_study(direction="maximize"), setup)
    good = Recipe.linear_probe(setup.blocks, lr=1e-3)
    _fit_final(study, good, 1, None)
    with pytest.raises(StudyError, match=r"rate 1e\+06, epochs 2\) diverged on 3 seeds") as caught:
        _fit_final(study, Recipe.full(setup.blocks, lr=1e6), 2, None)
    assert "lower lr" in str(caught.value)
    assert study.trained is None


def test_a_baseline_takes_the_next_seed_too(setup: Setup, diverging) -> None:
    seeds = setup.spec.final_seeds(3)
    seen = diverging(*seeds[:2])
    run_baseline(setup, "linear-probe", n_runs=1)
    assert seen == list(seeds)
    diverging(*seeds)
    assert run_baseline(setup, "linear-probe", n_runs=1).test.value < 1, "tested as it is"


def test_a_rival_that_always_diverges_does_not_stop_a_confirmation(setup: Setup) -> None:
    study = TuningStudy(optuna.create_study(direction="maximize"), setup)
    result = _fit_final(study, Recipe.full(setup.blocks, lr=1e6), 2, None, must_hold=False)
    assert result.diverged
    assert study.trained is None
