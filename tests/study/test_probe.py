"""The first answer: a linear probe before the search, kept in the study, and told."""

import json
from pathlib import Path

import numpy as np
import optuna
import pytest
from click.testing import CliRunner

from biotune_optuna.cli import cli
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.recipe import Recipe
from biotune_optuna.report.view import as_view
from biotune_optuna.report.words import probe_sentence
from biotune_optuna.schema import PROBE_KEY
from biotune_optuna.study.probe import FirstAnswer, first_answer, linear_probe
from biotune_optuna.study.setup import Setup, prepare
from biotune_optuna.study.study import TuningStudy
from tests.kit.cli import TINY
from tests.kit.studies import tiny_spec


def test_it_is_the_rival_of_the_same_name(setup: Setup) -> None:
    found = linear_probe(setup)
    seed = setup.spec.search_runs()[0].seed
    recipe = Recipe.fitted_probe(setup.blocks)
    result = setup.trainer.fit(recipe, *setup.splits.run(None), seed=seed)
    assert found.validation.value == pytest.approx(result.score)
    assert found.cost.forward == result.images_forward
    assert found.validation.low <= found.validation.value <= found.validation.high
    assert (found.n_train, found.n_val) == tuple(map(len, setup.splits.run(None)))
    assert len(found.fitted.held_out) == found.n_train


def test_the_test_images_are_not_looked_at(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    real = Trainer.features

    def noted(self: Trainer, idx: np.ndarray) -> np.ndarray:
        seen.update(idx.tolist())
        return real(self, idx)

    monkeypatch.setattr(Trainer, "features", noted)
    linear_probe(setup)
    assert seen
    assert not seen & set(setup.splits.test.tolist())


def test_a_study_keeps_its_answer_and_counts_its_cost(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = TuningStudy(optuna.create_study(direction="maximize"), setup)
    assert probe_sentence(as_view(study.study)) == ""
    answer = first_answer(study)
    view = as_view(study.study)
    n = sum(map(len, setup.splits.run(None)))
    assert view.passes == (n, 0)
    assert f"on {len(setup.splits.val)} validation images" in probe_sentence(view)
    assert "the search must beat that" in probe_sentence(view)
    json.dumps(study.study.user_attrs[PROBE_KEY], allow_nan=False)

    def refuse(*_args: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Trainer, "features", refuse)
    assert first_answer(study) == answer == FirstAnswer.of(study.study.user_attrs)


def test_images_of_one_group_stay_in_one_fold(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def noted(features: object, labels: object, *, groups: object, **options: object) -> object:
        given.append(groups)
        return real(features, labels, groups=groups, **options)

    from biotune_optuna.study import probe as module

    real = module.fit_logistic
    monkeypatch.setattr(module, "fit_logistic", noted)
    setup = prepare(tiny_spec(group_regex=r"(\d\d?)$"), device="cpu", cache_dir=cache_dir)
    linear_probe(setup)
    (groups,) = given
    own = setup.source.groups[setup.splits.train]
    assert len(np.unique(groups)) == len(np.unique(own))


@pytest.mark.parametrize("display", [(), ("--json",)])
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, display: tuple[str, ...]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIOTUNE_CACHE", str(tmp_path / "cache"))
    small = ("--train-size", "30", "--val-size", "20")
    result = CliRunner().invoke(cli, ["probe", "--data", "digits", *TINY, *small, *display])
    assert result.exit_code == 0, result.output
    if display:
        facts = json.loads(result.stdout)
        assert (facts["n_train"], facts["n_val"], facts["forward"]) == (30, 20, 50)
        assert 0 <= facts["validation"]["low"] <= facts["validation"]["value"] <= 1
        return
    assert "macro accuracy, 20 validation images: 0." in result.stdout
    assert "by folds that had not seen them: 0." in result.stdout
