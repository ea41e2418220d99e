"""Trials read as plain rows equal what Optuna's own storage reads."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from biotune_optuna.storage.open import open_storage

if TYPE_CHECKING:
    from pathlib import Path


def rows(trials: list[FrozenTrial]) -> list[str]:
    # repr: NaN equals itself in it, -0.0 is not 0.0, and the order of items counts.
    return [
        repr(
            (
                t._trial_id, t.number, t.state, t.values, t.datetime_start, t.datetime_complete,
                t.params, t.distributions, sorted(t.user_attrs.items()),
                sorted(t.system_attrs.items()), sorted(t.intermediate_values.items()),
            )
        )
        for t in trials
    ]  # fmt: skip


def test_all_kinds_of_trials(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    storage = open_storage(url)
    study = optuna.create_study(study_name="s", storage=storage)
    other = optuna.create_study(study_name="t", storage=storage, directions=["minimize"] * 3)
    space = {
        "z": FloatDistribution(1e-7, 1e3, log=True),
        "a": IntDistribution(-5, 5, step=5),
        "c": CategoricalDistribution(["x", None, 3, 0.1, True]),
        "b": FloatDistribution(0, 1, step=0.1),
    }
    values = [0.1 + 0.2, -0.0, 5e-324, math.inf, -math.inf, 1.7976931348623157e308]
    for n, value in enumerate(values):
        study.add_trial(
            create_trial(
                params={"z": 10 ** (n - 3) / 3, "a": 0, "c": [None, 3, True][n % 3], "b": 0.3},
                distributions=space,
                value=value,
                intermediate_values={2: math.nan, 0: math.inf, 10: value},
                user_attrs={"text": "täxt '\\", "nested": {"a": [1, None]}, "": 0},
            )
        )
    other.add_trial(create_trial(values=[1.0, math.inf, -2.5]))
    study.enqueue_trial({"z": 1.0})
    study.ask().suggest_float("w", 0, 1)
    study.tell(study.ask(), state=TrialState.FAIL)
    study.tell(study.ask(), state=TrialState.PRUNED)
    study.ask()
    plain = RDBStorage(url)
    for one in (study, other):
        expected = rows(plain.get_all_trials(one._study_id))
        assert rows(open_storage(url).get_all_trials(one._study_id)) == expected
        assert rows([storage.get_trial(t._trial_id) for t in one.trials]) == expected
        for states in ((TrialState.RUNNING,), (TrialState.FAIL, TrialState.COMPLETE)):
            assert rows(storage.get_all_trials(one._study_id, states=states)) == rows(
                plain.get_all_trials(one._study_id, states=states)
            )
    assert isinstance(study.trials[0].datetime_start, datetime)


def test_what_does_not_exist(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/a.db")
    study = optuna.create_study(study_name="s", storage=storage)
    assert study.trials == []
    with pytest.raises(KeyError):
        storage.get_trial(77)
    with pytest.raises(KeyError):
        storage.get_all_trials(77)


def test_later_changes_of_running_trials_are_seen(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    study = optuna.create_study(study_name="s", storage=open_storage(url))
    reader = optuna.load_study(study_name="s", storage=open_storage(url))
    trials = [study.ask() for _ in range(3)]
    study.tell(trials[2], 1.0)
    assert len(reader.trials) == 3
    trials[0].suggest_float("x", 0, 1)
    study.tell(trials[1], 0.5)
    assert reader.trials[0].params == trials[0].params
    assert reader.trials[1].value == 0.5
