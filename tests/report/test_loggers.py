"""Trials are logged where people look, and a wrong place is refused."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from biotune_optuna.errors import StudyError
from biotune_optuna.report.loggers import trial_logger


def finished(
    state: TrialState = TrialState.COMPLETE,
) -> tuple[optuna.Study, optuna.trial.FrozenTrial]:
    study = optuna.create_study(direction="maximize", study_name="s")
    study.set_user_attr("biotune", {"spec": {"train": {"metric": "accuracy", "epochs": 3}}})
    study.add_trial(
        create_trial(
            state=state,
            value=0.75 if state == TrialState.COMPLETE else None,
            params={"lr": 0.01},
            distributions={"lr": optuna.distributions.FloatDistribution(0.001, 0.1)},
            intermediate_values={1: 0.5, 2: 0.75, 3: 0.625},
            user_attrs={"frozen": "stem (1 of 3)"},
        )
    )
    return study, study.trials[0]


def test_tensorboard_gets_curves_and_parameters(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trial_logger(f"tensorboard:{tmp_path}/runs", "s")(*finished())
    folder = tmp_path / "runs" / "s" / "trial-0000"
    found = reading.EventAccumulator(str(folder)).Reload()
    curve = [(one.step, one.value) for one in found.Scalars("validation/run 0")]
    assert curve == [(1, 0.5), (2, 0.75), (3, 0.625)]
    assert found.Scalars("hparam/accuracy")[0].value == 0.75


def test_a_trial_that_failed_is_not_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trial_logger(f"tensorboard:{tmp_path}", "s")(*finished(TrialState.FAIL))
    assert not list(tmp_path.iterdir())


def test_mlflow_is_served_by_optunas_callback(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("optuna_integration")
    place = f"sqlite:///{tmp_path}/ml.db"
    study, trial = finished()
    trial_logger(f"mlflow:{place}", "s", "accuracy")(study, trial)
    mlflow.set_tracking_uri(place)
    (run,) = mlflow.search_runs(experiment_names=["s"], output_format="list")
    assert run.data.metrics["accuracy"] == 0.75
    assert float(run.data.params["lr"]) == 0.01


@pytest.mark.parametrize("where", ["tensorboard", "tensorboard:", "paper:here", "runs"])
def test_a_place_that_is_none_is_refused(where: str) -> None:
    with pytest.raises(StudyError, match="is no place; write tensorboard:FOLDER"):
        trial_logger(where, "s")
