"""Status of a study, as data and as text."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from biotune_optuna.clock import Plan, Work
from biotune_optuna.confirmation.timing import Timing
from biotune_optuna.report.status import format_status, study_status
from biotune_optuna.report.view import as_view
from biotune_optuna.report.words import search_totals
from biotune_optuna.schema import HOLDER_KEY, STAGE_KEY
from biotune_optuna.storage.holder import current_holder

START = dt.datetime(2026, 1, 5, 9)


def add(study: optuna.Study, minute: float, state: TrialState, **attrs: Any) -> None:
    value = attrs.pop("value", None)
    trial = create_trial(state=state, value=value, params={}, user_attrs=attrs)
    trial.datetime_start = START + dt.timedelta(minutes=minute - 1)
    trial.datetime_complete = START + dt.timedelta(minutes=minute)
    study.add_trial(trial)


@pytest.fixture
def running() -> optuna.Study:
    study = optuna.create_study(direction="maximize", study_name="flowers")
    study.set_user_attr("biotune", {"spec": {"train": {"metric": "accuracy"}}})
    recipe = {"lr": 0.01, "multipliers": {"stem": 0.0, "mid": 0.0, "head": 3.0}}
    add(
        study,
        2,
        TrialState.COMPLETE,
        value=0.5,
        generation=0,
        seconds=50.0,
        forward=1000,
        backward=600,
    )
    add(
        study,
        4,
        TrialState.COMPLETE,
        value=0.75,
        generation=1,
        seconds=40.0,
        recipe=recipe,
        stderr=0.01,
    )
    add(study, 6, TrialState.PRUNED, value=0.1, generation=1, seconds=10.0)
    add(study, 7, TrialState.FAIL, generation=1)
    trial = study.ask()
    mark = [current_holder().to_str(), "token"]
    study._storage.set_trial_system_attr(trial._trial_id, HOLDER_KEY, mark)
    return study


def test_counts_best_rate_and_cost(running: optuna.Study) -> None:
    status = study_status(running, now=START + dt.timedelta(minutes=8))
    assert status["trials"] == {"complete": 2, "pruned": 1, "fail": 1, "running": 1, "waiting": 0}
    assert (status["finished"], status["goal"], status["generation"]) == (3, None, 1)
    assert status["best"] == {
        "trial": 1,
        "value": 0.75,
        "stderr": 0.01,
        "recipe": "stem to mid frozen; head at 3×; base rate 0.01",
    }
    assert status["trials_per_hour"] == pytest.approx(2 / (6 / 60))
    assert status["seconds_left"] is None
    assert (status["forward"], status["backward"]) == (1000, 600)
    assert status["seconds"] == 4 * 60
    (worker,) = status["workers"]
    assert worker["alive"] is True
    assert worker["holder"] == current_holder().label
    assert json.loads(json.dumps(status)) == status


def test_goal_gives_the_time_left(running: optuna.Study) -> None:
    running.set_user_attr("n_trials", 13)
    status = study_status(running, now=START + dt.timedelta(minutes=8))
    assert status["seconds_left"] == pytest.approx(10 * 180)
    assert "time left   30 min" in format_status(status)


def test_text_is_for_people(running: optuna.Study) -> None:
    text = format_status(study_status(running, now=START + dt.timedelta(minutes=8)))
    lines = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert lines["study"] == "flowers"
    assert lines["trials"] == "3 (2 complete, 1 stopped early, 1 failed or stopped, 1 running)"
    assert lines["result"] == "Best accuracy so far: 75.0 %, by trial 1."
    assert lines["recipe"] == "stem to mid frozen; head at 3×; base rate 0.01 (trial 1)"
    assert lines["rate"] == "20 trials an hour"
    assert lines["cost"] == "4 min 00 s of computing, 1,000 image passes forward, 600 backward"
    assert current_holder().label in lines["workers"]


def test_what_trained_is_told_and_that_kinds_round_differently(running: optuna.Study) -> None:
    add(running, 8, TrialState.COMPLETE, value=0.6, runs=[{"device": "NVIDIA H200, bf16"}] * 2)
    status = study_status(running)
    assert status["search"]["devices"] == {"NVIDIA H200, bf16": 2}
    lines = dict(line.split(maxsplit=1) for line in format_status(status).splitlines())
    assert lines["device"] == "NVIDIA H200, bf16"
    assert search_totals(as_view(running)).sentence.endswith("They ran on NVIDIA H200, bf16.")
    add(running, 9, TrialState.COMPLETE, value=0.6, runs=[{"device": "CPU, float32"}, {}])
    lines = dict(
        line.split(maxsplit=1) for line in format_status(study_status(running)).splitlines()
    )
    both = "NVIDIA H200, bf16 (2 trainings); CPU, float32 (1 training): they round differently"
    assert lines["device"].replace("\u00a0", " ") == both
    said = search_totals(as_view(running)).sentence.replace("\u00a0", " ")
    assert "differently: 2 trainings on NVIDIA H200, bf16; 1 training on CPU, float32." in said


def test_trainings_of_the_search_are_added_up(running: optuna.Study) -> None:
    runs = [
        {"epochs": 10, "cache_hits": 900, "peak_mb": 812.4},
        {"epochs": 7, "cache_hits": 0, "peak_mb": 930.6},
    ]
    add(running, 8, TrialState.COMPLETE, value=0.6, runs=runs)
    add(running, 9, TrialState.PRUNED, value=0.2, runs=runs[1:])
    status = study_status(running)
    assert status["search"] == {
        "trainings": 3,
        "epochs": 24,
        "cached": 900,
        "peak_mb": 930.6,
        "devices": {},
    }
    line = (
        "trainings   3 in the search, 24 epochs, 900 passes from cached prefixes, at most 931 MiB"
    )
    assert line in format_status(status).splitlines()


def test_dead_worker_is_called_dead(running: optuna.Study) -> None:
    trial = next(t for t in running.trials if t.state == TrialState.RUNNING)
    mine = current_holder()
    gone = type(mine)(mine.host, mine.boot_id, mine.pid_namespace, 2**22 + 1, mine.started)
    running._storage.set_trial_system_attr(trial._trial_id, HOLDER_KEY, [gone.to_str(), "t"])
    status = study_status(running)
    assert status["workers"][0]["alive"] is False
    assert ", dead)" in format_status(status)


def test_confirmed_study_names_its_winner(confirmed_study: optuna.Study) -> None:
    status = study_status(confirmed_study)
    assert status["confirmed"] == confirmed_study.user_attrs["confirm"]["winner"]
    assert status["test_looks"] == 3
    assert status["trials_per_hour"] is None
    assert "looked at in 3 tests" in format_status(status)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_empty_study(direction: str) -> None:
    status = study_status(optuna.create_study(direction=direction, study_name="new"))
    assert status["best"] is None
    assert format_status(status).splitlines() == [
        "study       new",
        "trials      0 (none yet)",
        "result      No trial is complete yet.",
        "go on with  biotune report --study new",
    ]


def test_plain_study(plain_study: optuna.Study) -> None:
    status = study_status(plain_study)
    assert status["best"] is not None
    assert status["best"]["recipe"] is None
    assert f"by trial {plain_study.best_trial.number}" in format_status(status)


def test_a_confirmation_under_way_is_told(running: optuna.Study) -> None:
    mark = {"stage": "confirm", "detail": "full, seed 2", "done": 4, "total": 28}
    running.set_user_attr(STAGE_KEY, mark | {"time": "", "holder": current_holder().to_str()})
    clock = Timing(Plan(image_size=64, epochs=5, trials=3), Work(50, 20), full=10.0)
    clock.store(running)
    status = study_status(running)
    assert status["stage"] is not None
    assert status["stage"]["alive"]
    assert status["seconds_left"] is not None
    assert status["seconds_left"] > 60
    told = format_status(status)
    assert "now         confirm 5 of 28: full, seed 2 (" in told
    assert "time left" in told


def test_a_confirmation_whose_process_died_is_not_under_way(running: optuna.Study) -> None:
    mark = {"stage": "confirm", "detail": "full", "done": 4, "total": 28, "holder": "nobody"}
    running.set_user_attr(STAGE_KEY, mark)
    status = study_status(running)
    assert status["stage"] is not None
    assert "confirm 5 of 28: full (someone" in format_status(status)


def test_the_recipe_is_the_winners(confirmed_study: optuna.Study) -> None:
    view = as_view(confirmed_study)
    assert view.winner is not None
    assert str(study_status(view)["recipe"]).startswith(view.winner.describe)
