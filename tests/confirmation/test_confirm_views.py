"""Views at test time: chosen, calibrated, tested, charged and exported with the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import optuna
import pytest

from biotune_optuna.confirmation.calibrate import calibrations
from biotune_optuna.confirmation.confirm import confirm, train_winner
from biotune_optuna.confirmation.plan import ConfirmPlan, check_views
from biotune_optuna.confirmation.record import Confirmation, trainings
from biotune_optuna.confirmation.winner import export_winner
from biotune_optuna.errors import StudyError
from biotune_optuna.export import load_exported
from biotune_optuna.finetune.calibration import tempered
from biotune_optuna.finetune.prefix.shared import mean_probabilities
from biotune_optuna.report.html import write_report
from biotune_optuna.report.view import as_view
from biotune_optuna.report.words import verdict
from biotune_optuna.schema import LOOKS_KEY
from biotune_optuna.study.setup import Setup
from biotune_optuna.study.study import TuningStudy, study_of
from tests.kit.cli import RATES, TINY, fails

ALONE = ConfirmPlan(top_k=1, n_runs=1, rivals=(), members=1)
VIEWED = dataclasses.replace(ALONE, views=("zoom",))
TWO = dataclasses.replace(VIEWED, members=2)


@pytest.fixture
def searched(setup: Setup) -> TuningStudy:
    study = study_of(setup, storage=optuna.storages.InMemoryStorage(), name="v")
    return study.search(2, keep_models=2)


@pytest.mark.parametrize("plan", [VIEWED, TWO], ids=["one member", "two"])
def test_the_model_is_tested_in_its_views_beside_one_training_without(
    searched: TuningStudy, plan: ConfirmPlan, tmp_path: Path
) -> None:
    result = confirm(searched, plan)
    setup = searched.setup
    assert (result.views, result.members) == (("zoom",), plan.members)
    assert Confirmation.of(searched.study.user_attrs).to_dict() == result.to_dict()
    assert len(searched.study.user_attrs[LOOKS_KEY]) == 1
    plain, seen = [], []
    for member in train_winner(searched).members:
        setup.trainer.put(member)
        plain.append(setup.trainer.predict(setup.splits.test))
        seen.append(setup.trainer.predict(setup.splits.test, ("zoom",)))
    labels = setup.source.labels[setup.splits.test]

    def recall(probs: np.ndarray) -> float:
        return float(np.mean([np.mean(probs.argmax(1)[labels == c] == c) for c in set(labels)]))

    together = mean_probabilities(seen)
    assert result.winner_test is not None
    assert result.ensemble is not None
    assert result.winner_test.score == pytest.approx(recall(plain[0]))
    assert result.ensemble.score == pytest.approx(recall(together))
    folder = export_winner(searched, tmp_path / "model")
    loaded = load_exported(folder, device="cpu")
    assert loaded.preprocessing.views == ("zoom",)
    assert result.calibration is not None
    found = loaded.predict([setup.source.load(int(i)) for i in setup.splits.test])
    np.testing.assert_allclose(
        np.stack([row.probabilities for row in found]),
        tempered(together, result.calibration.temperature),
        atol=1e-5,
    )
    card = (folder / "README.md").read_text()
    assert "each image as it is and with its middle enlarged: this model" in card
    assert "shown 2 times" in card
    said = " ".join(verdict(as_view(searched.study)).sentences)
    assert "as it is and with its middle enlarged" in said
    report = write_report(searched.study, tmp_path / "report.html").read_text()
    assert "each image is shown as it is and with its middle enlarged" in report


def test_the_temperature_is_that_of_the_views(searched: TuningStudy) -> None:
    plain = confirm(searched, ALONE)
    before = trainings(searched.study.user_attrs)
    (name,) = before
    other = confirm(searched, VIEWED)
    assert trainings(searched.study.user_attrs) == before, "what was trained is not trained again"
    assert plain.calibration is not None
    assert other.calibration is None, "it was never shown validation images in that view"
    searched.study.set_user_attr(f"confirm_trainings: {name}", {})
    assert calibrations(searched, other) == {}
    fresh = confirm(TuningStudy(searched.study, searched.setup), TWO)
    training = trainings(searched.study.user_attrs)[name]
    assert training.views == ("zoom",)
    n_val = len(searched.setup.splits.val)
    assert training.forward == before[name].forward + 2 * n_val, "the views are charged"
    assert training.score == before[name].score
    assert fresh.calibration is not None
    assert fresh.calibration.temperature != plain.calibration.temperature


def test_models_of_the_search_are_shown_in_views_too(searched: TuningStudy) -> None:
    result = confirm(searched, dataclasses.replace(VIEWED, from_search=True))
    assert result.ensemble is not None
    assert result.calibration is not None
    assert {one.views for one in trainings(searched.study.user_attrs).values()} == {("zoom",)}


def test_what_may_not_be_mirrored_is_not(searched: TuningStudy, home: Path) -> None:
    with pytest.raises(StudyError, match="the view 'mirror' needs a study in which"):
        confirm(searched, dataclasses.replace(ALONE, views=("mirror",)))
    check_views(("mirror",), mirror=True)
    line = ("tune", "--data", "digits", *TINY, *RATES, "--trials", "2", "--views")
    assert "give --mirror" in fails(*line, "zoom,mirror")
    assert "views 'turn' are unknown; choose mirror or zoom, or both" in fails(*line, "turn")
    assert "views 'zoom,zoom' are unknown" in fails(*line, "zoom,zoom")
    assert not (home / "biotune.db").exists()
