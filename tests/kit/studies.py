"""Studies small enough for tests: one of digits and a tiny timm model, one without a network."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
from optuna.study import StudyDirection

from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.spec import StudySpec


def tiny_spec(**changes: Any) -> StudySpec:
    options: dict[str, Any] = {
        "model": "test_efficientnet",
        "data": "digits",
        "weights": "none",
        "image_size": 32,
        "crop_pct": 1.0,
        "train_size": 60,
        "val_size": 40,
        "test_fraction": 0.1,
        "n_seeds": 2,
        "lr": (1e-3, 3e-2),
        "train": TrainSettings(epochs=2, batch_size=20),
    }
    return StudySpec(**(options | changes))


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


def check_first_writer(url: str) -> None:
    """Of eight workers who write one attribute in the same moment, all find what one has written.

    Each has opened the storage by itself; in memory they share it.
    """
    shared = open_storage(url)
    study_id = shared.create_new_study([StudyDirection.MAXIMIZE], "first")
    alone = url == "memory://"
    storages = [shared if alone else open_storage(url) for _ in range(8)]
    barrier = threading.Barrier(len(storages), timeout=60)

    def keep(worker: int) -> list[object]:
        found = []
        for key in map(str, range(10)):
            barrier.wait()
            found.append(storages[worker].keep_study_user_attr(study_id, key, {"by": worker}))
        return found

    with ThreadPoolExecutor(len(storages)) as pool:
        first, *others = pool.map(keep, range(len(storages)))
    assert all(other == first for other in others)
    kept = storages[-1].get_study_user_attrs(study_id)
    assert [kept[str(key)] for key in range(10)] == first


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]
