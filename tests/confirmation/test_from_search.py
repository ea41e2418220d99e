"""A model made of the search's own: chosen on validation images, nothing trained, tested once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from biotune_optuna.cli import cli
from biotune_optuna.confirmation.calibrate import calibrations
from biotune_optuna.confirmation.confirm import confirm, help_confirm, train_winner
from biotune_optuna.confirmation.from_search import greedy
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.record import Confirmation, trainings
from biotune_optuna.confirmation.shared import Sharing
from biotune_optuna.confirmation.winner import export_winner
from biotune_optuna.errors import StudyError
from biotune_optuna.export import load_exported
from biotune_optuna.finetune.calibration import tempered
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.report.bill import NOTHING, bill
from biotune_optuna.report.html import write_report
from biotune_optuna.report.status import format_status, study_status
from biotune_optuna.report.view import as_view
from biotune_optuna.report.words import verdict
from biotune_optuna.schema import LOOKS_KEY, TrialRecord
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.setup import Setup, prepare
from biotune_optuna.study.study import TuningStudy, study_of
from tests.kit.cli import RATES, TINY, fails
from tests.kit.studies import tiny_spec

PLAN = ConfirmPlan(from_search=True, members=3)


@pytest.fixture(scope="module")
def setup(cache_dir: Path) -> Setup:
    """A study in which several models are better together than the best alone."""
    return prepare(tiny_spec(n_seeds=1, seed=3), device="cpu", cache_dir=cache_dir)


@pytest.fixture(scope="module")
def first(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of six trials, all of whose models are kept."""
    folder = tmp_path_factory.mktemp("searched")
    study = study_of(setup, storage=open_storage(f"sqlite:///{folder}/study.db"), name="s")
    study.search(6, keep_models=6)
    return folder


@pytest.fixture
def searched(first: Path, setup: Setup, tmp_path: Path) -> TuningStudy:
    shutil.copytree(first, tmp_path / "own")
    url = f"sqlite:///{tmp_path}/own/study.db"
    return study_of(setup, storage=open_storage(url), name="s")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: Any, **__: Any) -> None:
        raise AssertionError("something is trained")

    monkeypatch.setattr(Trainer, "fit", fit)


def test_greedy_takes_what_lowers_the_cross_entropy() -> None:
    labels = np.array([0, 1, 0, 1])
    right, wrong = np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[0.2, 0.8], [0.8, 0.2]])
    one = np.stack([right[0], right[1], wrong[0], right[1]])  # each is wrong where
    two = np.stack([right[0], wrong[1], right[0], right[1]])  # the other one is right
    bad = np.stack([wrong[0], wrong[1], wrong[0], wrong[1]])
    assert greedy([bad, one, two], labels, 2) == [1, 2]
    good = np.stack([right[0], right[1], right[0], right[1]])
    assert greedy([bad, one, good], labels, 3) == [2, 2, 2], "one may be added again"


@pytest.mark.usefixtures("untrained")
def test_the_model_is_the_mean_of_chosen_models_and_is_tested_once(
    searched: TuningStudy, tmp_path: Path
) -> None:
    result = confirm(searched, PLAN)
    setup, models = searched.setup, searched.models
    library = models.best()
    kept = [models.get(trial) for trial in library]
    probs = [one.probabilities for one in kept if one is not None]
    assert len(probs) == 6
    picks = greedy(probs, setup.source.labels[setup.splits.val], 3)
    order = list(dict.fromkeys(picks))
    assert result.from_search == tuple(library[i].number for i in order)
    assert result.members == len(order)
    weights = [picks.count(i) for i in order]
    assert result.weights == (tuple(weights) if len(set(weights)) > 1 else ())
    assert result.chosen == f"trial {library[order[0]].number}"
    assert [look["what"] for look in searched.study.user_attrs[LOOKS_KEY]] == [
        "models of the search"
    ]
    assert Confirmation.of(searched.study.user_attrs).to_dict() == result.to_dict()
    assert not result.rivals
    assert not result.final_training
    assert all(one.seconds == 0 for one in trainings(searched.study.user_attrs).values())
    assert confirm(searched, from_search=True, plan=PLAN) == result
    assert len(searched.study.user_attrs[LOOKS_KEY]) == 1, "the test is not looked at again"
    help_confirm(searched, PLAN, Sharing.of(searched.study) or pytest.fail("a study of its own"))

    members = []
    for i in order:
        model = kept[i]
        assert model is not None
        setup.trainer.put(model.changed)
        members.append(setup.trainer.predict(setup.splits.test))
    expected = np.average(members, axis=0, weights=weights)
    labels = setup.source.labels[setup.splits.test]
    assert result.model_test is not None
    recall = [np.mean(expected.argmax(1)[labels == c] == c) for c in np.unique(labels)]
    assert result.model_test.score == pytest.approx(np.mean(recall))
    folder = export_winner(searched, tmp_path / "model")
    loaded = load_exported(folder, device="cpu")
    assert 1 + len(loaded.members) == len(order)
    assert loaded.weights == result.weights
    trusted = calibrations(searched, result)
    assert result.calibration is not None
    assert result.calibration.temperature == trusted["members"].temperature
    assert loaded.calibration == trusted["members" if len(order) > 1 else "single"]
    rows = loaded.predict([setup.source.load(int(i)) for i in setup.splits.test])
    np.testing.assert_allclose(
        np.stack([row.probabilities for row in rows]),
        tempered(expected, trusted["members"].temperature),
        atol=1e-5,
    )


@pytest.mark.usefixtures("untrained")
def test_everything_says_that_validation_chose_and_nothing_was_trained(
    searched: TuningStudy, tmp_path: Path
) -> None:
    confirm(searched, PLAN)
    view = as_view(searched.study)
    found = verdict(view)
    assert "of the search predict" in found.headline
    assert "nothing was confirmed on fresh seeds" in found.headline
    assert any("The validation score was used for the choice" in one for one in found.sentences)
    assert any("were looked at once, after the choice" in one for one in found.sentences)
    assert bill(view)[-1].part == NOTHING
    status = study_status(searched.study)
    said = format_status(status)
    assert "nothing was confirmed" in said
    assert f"models of the search: trial {view.confirmation.from_search[0]}" in said
    assert NOTHING in said
    assert status["test_looks"] == 1
    report = write_report(searched.study, tmp_path / "report.html").read_text()
    assert "Nothing was trained after the search" in report
    assert "The validation images chose the members as well" in report
    card = (export_winner(searched, tmp_path / "model") / "README.md").read_text()
    assert "Chosen by the validation score" in card
    assert "The test images were looked at once, afterwards." in card
    assert "The same images chose the members" in card


def test_a_model_whose_file_is_gone_is_trained_again_to_the_same_bits(
    searched: TuningStudy,
) -> None:
    result = confirm(searched, PLAN)
    before = train_winner(searched).members
    again = TuningStudy(searched.study, searched.setup)
    shutil.rmtree(searched.models.folder)
    after = train_winner(again).members
    assert len(before) == len(after) == result.members
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)


def test_without_kept_models_it_is_one_clear_line(searched: TuningStudy) -> None:
    shutil.rmtree(searched.models.folder)
    with pytest.raises(StudyError, match="none of the 6 that it names lies in") as caught:
        confirm(searched, from_search=True)
    assert "\n" not in str(caught.value)
    searched.search(6, keep_models=0)
    with pytest.raises(StudyError, match="has kept no models of its trials to choose from; search"):
        confirm(searched, from_search=True)
    assert LOOKS_KEY not in searched.study.user_attrs


def test_a_file_that_does_not_fit_is_passed_over(
    searched: TuningStudy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import dataclasses

    best = searched.models.best()[0]
    get = type(searched.models).get

    def other(self: Any, trial: Any) -> Any:
        found = get(self, trial)
        if found is None or trial.number != best.number:
            return found
        return dataclasses.replace(found, probabilities=found.probabilities[:-1])

    monkeypatch.setattr(type(searched.models), "get", other)
    result = confirm(searched, PLAN)
    assert best.number not in result.from_search
    assert "1 of 6 kept models do not lie" in caplog.text


def test_a_real_confirmation_may_follow_and_a_trial_is_a_trial(
    searched: TuningStudy, tmp_path: Path
) -> None:
    quick = confirm(searched, PLAN)
    name = quick.chosen.replace("trial ", "trial:")
    folder = export_winner(searched, tmp_path / "one", what=name)
    config = json.loads((folder / "members.json").read_text())
    assert (config["members"], "weights" in config) == (3, False), "trained as a confirmation does"
    assert "it was asked for" in (folder / "README.md").read_text()
    plan = ConfirmPlan(top_k=1, n_runs=1, rates=(1e-2,), more_rates=0, members=1)
    result = confirm(searched, plan)
    assert (result.from_search, result.weights) == ((), ())
    assert len(result.candidates) == 1, "chosen models were confirmed by nobody"
    assert "of the search" not in verdict(as_view(searched.study)).headline
    assert TrialRecord(searched.study.trials[0]).kept.digest


def test_the_command_makes_a_model_and_goes_on(home: Path) -> None:
    line = ["tune", "--data", "digits", *TINY, *RATES, "--train-size", "60", "--val-size", "40"]
    line += ["--test-fraction", "0.05", "--device", "cpu", "--plain", "--study", "q", "--quick"]
    result = CliRunner().invoke(cli, [*line, "--trials", "3", "--members", "2"])
    assert result.exit_code == 0, result.output
    assert "Nothing is confirmed or trained again" in result.stderr
    assert "choice: among the models of the search" in result.stderr
    assert "The models of the 3 best trials are kept" in result.stderr
    assert "nothing was confirmed on fresh seeds" in result.stdout
    assert "Members: trial" in result.stdout
    assert NOTHING in result.stdout
    again = CliRunner().invoke(cli, [*line, "--trials", "3", "--members", "2"])
    assert again.exit_code == 0, again.output
    said = CliRunner().invoke(cli, ["status", "--study", "q", "--json"])
    assert json.loads(said.stdout)["test_looks"] == 1
    assert len(list((home / "biotune-artifacts" / "models").rglob("*"))) == 4
    longer = CliRunner().invoke(cli, [*line, "--trials", "4", "--members", "2"])
    assert longer.exit_code == 0, longer.output
    assert "The models of the 4 best trials are kept" in longer.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--keep-models", "0"), "--keep-models 0 keeps none"),
        (("--prefer", "cheap"), "--prefer cheap is a choice among what is confirmed"),
        (("--folds", "3", "--scheme", "kfold"), "keep_models 20 needs models"),
        (("--members", "0"), "members 0 is no whole number"),
    ],
)
def test_what_makes_no_sense_is_said_first(home: Path, options: tuple[str, ...], said: str) -> None:
    line = ("tune", "--data", "digits", *TINY, *RATES, "--trials", "2", "--quick", *options)
    assert said in fails(*line)
    assert not (home / "biotune.db").exists()
