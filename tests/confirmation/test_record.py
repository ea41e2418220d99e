"""The ledger of a confirmation's trainings fits into any database."""

from __future__ import annotations

import json

import optuna

from biotune_optuna.confirmation.record import add_training, trainings


def test_no_attribute_grows_with_the_number_of_trainings() -> None:
    study = optuna.create_study()
    old = {"full | seed 1": {"score": 0.5}, "full | seed 2": {"score": 0.6}}
    study.set_user_attr("confirm_trainings", old)
    record = {"key": [0.123456789] * 16, "score": 0.7}
    names = [f"trial {number} | seed {seed}" for number in range(70) for seed in range(3)]
    for name in (*names, "full | seed 2"):
        add_training(study, name, record)
    assert trainings(study.user_attrs) == {**old, "full | seed 2": record} | dict.fromkeys(
        names, record
    )
    assert max(len(json.dumps(value)) for value in study.user_attrs.values()) < 1000
    assert trainings({}) == {}
