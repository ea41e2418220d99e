"""Which trainings end early, and that they do so again when a study is resumed."""

from __future__ import annotations

import dataclasses
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.cli.spec import make_spec
from biotune_optuna.confirmation.known import evaluated_again
from biotune_optuna.finetune.results import EpochRecord, RunResult
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.finetune.trainer import StopTraining, Trainer
from biotune_optuna.recipe import Recipe
from biotune_optuna.sampler.sampler import BioTuneSampler, slot_of
from biotune_optuna.schema import TrialRecord
from biotune_optuna.study.losers import Others, others_of
from biotune_optuna.study.objective import Objective
from biotune_optuna.study.setup import Setup
from biotune_optuna.study.spec import StudySpec
from biotune_optuna.study.study import TuningStudy
from tests.kit.studies import tiny_spec

EPOCHS = 5


def ended(number: int, scores: list[float], stopped: str = "finished") -> FrozenTrial:
    trial = optuna.trial.create_trial(
        value=max(scores),
        user_attrs={"runs": [{"score": max(scores), "stopped": stopped}]},
        intermediate_values=dict(enumerate(scores, start=1)),
    )
    trial.number = number
    return trial


def test_a_training_below_the_median_is_behind() -> None:
    others = others_of([ended(i, [0.1 * i, 0.1 * i, 0.5]) for i in range(10)])  # median .45
    assert others.beat([0.44])
    assert others.beat([0.44, 0.44])
    assert not others.beat([0.46, 0.2]), "its best counts"
    assert others.beat([0.1, 0.1, 0.49])
    assert not others.beat([0.0, 0.0, 0.0, 0.0]), "nobody has come so far"
    assert others.beat([float("nan"), 0.2])


def test_ten_trainings_must_have_ended_by_themselves() -> None:
    trials = [ended(i, [0.5, 0.6], "patience") for i in range(9)]
    assert not others_of(trials).beat([0.0, 0.0])
    for stopped in ("behind", "diverged"):
        assert not others_of([*trials, ended(9, [0.1, 0.1], stopped)]).beat([0.0, 0.0])
    assert others_of([*trials, ended(9, [0.5, 0.6])]).beat([0.0, 0.0])
    assert not Others(()).beat([0.0, 0.0])


def test_who_stops_losers() -> None:
    assert not tiny_spec().stop_losers
    old = tiny_spec().to_dict()
    del old["stop_losers"]
    kept = StudySpec.from_dict(old)
    assert kept.differences(tiny_spec()) == [], "a study that was begun before goes on"
    assert kept.differences(tiny_spec(stop_losers=True)) == ["stop_losers: False, not True"]
    asked = {"preset": "default", "settings": (), "data": "digits", "model": "resnet18"}
    assert make_spec(**asked, stop_losers=True).stop_losers
    assert not make_spec(**asked, stop_losers=None).stop_losers


@pytest.fixture
def racing_to_the_end(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """A setup whose trainings are made up: their scores follow from recipe, seed and epoch."""

    def fit(
        self: Trainer, recipe: Recipe, *_: object, seed: int, on_epoch: Any, **__: Any
    ) -> RunResult:
        level = (seed % 97) / 200 + 0.05 * len(recipe.trainable)
        result = RunResult(score=0.0)
        for epoch in range(1, EPOCHS + 1):
            score = level * epoch / EPOCHS
            result.epochs.append(EpochRecord(epoch, 1.0, score, 0.0))
            result.score, result.best_epoch = score, epoch
            try:
                on_epoch(result.epochs[-1])
            except StopTraining:
                result.stopped = "callback"
                break
        return result

    monkeypatch.setattr(Trainer, "fit", fit)
    train = TrainSettings(epochs=EPOCHS, batch_size=20)
    spec = dataclasses.replace(setup.spec, n_seeds=1, train=train, stop_losers=True)
    return dataclasses.replace(setup, spec=spec)


def searched(setup: Setup, *portions: int) -> optuna.Study:
    """A study whose process ended after each portion of its trials."""
    storage = optuna.storages.InMemoryStorage()
    for n in portions:
        study = optuna.create_study(
            storage=storage,
            study_name="s",
            direction="maximize",
            sampler=BioTuneSampler(space=setup.space, seed=0),
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        study.optimize(Objective(setup), n_trials=n)
    return study


def test_losers_are_complete_with_their_best_score_so_far(racing_to_the_end: Setup) -> None:
    trials = searched(racing_to_the_end, 30).trials
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    runs = [TrialRecord(trial).runs[0] for trial in trials]
    behind = [(t, run) for t, run in zip(trials, runs, strict=True) if run.stopped == "behind"]
    assert behind
    assert not any(run.stopped == "behind" for run in runs[:10])
    for trial, run in behind:
        assert run.epochs < EPOCHS
        assert trial.value == run.score == max(trial.intermediate_values.values())
        assert slot_of(trial).repeat == 0, "what is evaluated again goes on to its end"
    everyone = dataclasses.replace(racing_to_the_end.spec, stop_losers=False)
    whole = searched(dataclasses.replace(racing_to_the_end, spec=everyone), 30).trials
    assert {TrialRecord(trial).runs[0].epochs for trial in whole} == {EPOCHS}


def test_a_resumed_study_stops_the_same_trainings(racing_to_the_end: Setup) -> None:
    whole, parts = (searched(racing_to_the_end, *n).trials for n in ((30,), (3, 9, 11, 7)))
    for one, other in zip(whole, parts, strict=True):
        assert (one.params, one.value) == (other.params, other.value)
        assert one.intermediate_values == other.intermediate_values


def test_a_run_that_was_stopped_counts_in_no_confirmation(setup: Setup) -> None:
    study = TuningStudy(optuna.create_study(direction="maximize"), setup)
    params = dict(setup.space.encode(Recipe.full(setup.blocks, lr=1e-3)).params)
    for seed, stopped in ((1, "finished"), (2, "behind"), (3, "patience")):
        study.study.add_trial(
            optuna.trial.create_trial(
                value=0.5,
                params=params,
                distributions=setup.space.distributions(),
                user_attrs={"runs": [{"fold": None, "seed": seed, "stopped": stopped}]},
            )
        )
        found = [one for _, one, _ in evaluated_again(study, study.study.trials).values()]
        assert found == ([3] if seed == 3 else [])
