"""Studies for the tests of reports and of the dashboard."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from threadpoolctl import threadpool_limits

from biotune_optuna.storage.open import open_storage
from tests.kit.dashboard import N_TRIALS
from tests.kit.lab import SPEC, Lab, confirm, evolve

optuna.logging.set_verbosity(optuna.logging.WARNING)

MakeStudy = Callable[..., optuna.Study]


@pytest.fixture(scope="session")
def lab() -> Lab:
    with threadpool_limits(1):
        return Lab()


@pytest.fixture(scope="session")
def make_study(lab: Lab) -> MakeStudy:
    """Build a study: ``make_study(n, confirmed=..., rival_wins=..., storage=...)``."""

    def make(
        n: int,
        *,
        confirmed: bool = False,
        rival_wins: bool = False,
        storage: str | None = None,
        name: str = "digits-tiny",
    ) -> optuna.Study:
        study = optuna.create_study(direction="maximize", study_name=name, storage=storage)
        study.set_user_attr("biotune", SPEC)
        with threadpool_limits(1):
            evolve(lab, study, n)
            record = confirm(lab, study, rival_wins=rival_wins) if confirmed else None
        if record:
            study.set_user_attr("confirm", record)
            looks = [{"time": record["time"], "what": test["name"]} for test in record["tests"]]
            study.set_user_attr("test_looks", looks)
        return study

    return make


@pytest.fixture(scope="session")
def confirmed_study(make_study: MakeStudy) -> optuna.Study:
    return make_study(40, confirmed=True)


@pytest.fixture
def plain_study() -> optuna.Study:
    """Somebody's own objective under plain Optuna, nothing of ours in it."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1), study_name="own")
    study.optimize(lambda t: (t.suggest_float("x", -3, 3) - 1) ** 2, n_trials=12)
    return study


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory, make_study: Any) -> Path:
    """A study in SQLite, made once."""
    path: Path = tmp_path_factory.mktemp("study") / "study.db"
    study = make_study(N_TRIALS)
    optuna.copy_study(
        from_study_name=study.study_name,
        from_storage=study._storage,
        to_storage=open_storage(f"sqlite:///{path}"),
    )
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture
def url(database: Path, tmp_path: Path) -> str:
    shutil.copy(database, tmp_path / "study.db")
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def study(url: str) -> optuna.Study:
    return optuna.load_study(study_name="digits-tiny", storage=open_storage(url))
