"""A study without a network and what its trials do, for the tests of the worker's loop."""

from __future__ import annotations

import optuna

from biotune_optuna.sampler import BioTuneSampler
from biotune_optuna.study.storage import open_storage


def make(url: str = "memory://", sampler: str = "biotune") -> optuna.Study:
    return optuna.create_study(
        study_name="s",
        storage=open_storage(url),
        direction="maximize",
        sampler=BioTuneSampler(seed=1)
        if sampler == "biotune"
        else optuna.samplers.RandomSampler(seed=1),
        load_if_exists=True,
    )


def objective(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]
