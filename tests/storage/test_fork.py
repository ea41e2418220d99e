"""A forked process and its parent never share a database connection."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
import pytest

from biotune_optuna.storage.open import open_storage
from biotune_optuna.storage.resilient import ResilientStorage
from tests.kit.processes import in_child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def connections_after_a_fork(path: str, *, in_use: bool) -> None:
    storage = open_storage(f"sqlite:///{path}")
    assert isinstance(storage, ResilientStorage)
    database = storage._database
    assert database is not None
    study = optuna.create_study(storage=storage, study_name="s")
    study.enqueue_trial({"x": 1})
    if in_use:
        database.scoped_session().connection()
    else:
        storage.remove_session()
    child = os.fork()
    if child == 0:
        pool = database.engine.pool
        clean = (pool.checkedin(), pool.checkedout()) == (0, 0)  # type: ignore[attr-defined]
        clean &= not database.scoped_session.registry.has()
        clean &= len(study.get_trials()) == 1
        os._exit(0 if clean else 9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(study.get_trials()) == 1


@pytest.mark.parametrize("in_use", [False, True])
def test_a_child_opens_connections_of_its_own(tmp_path: Path, in_use: bool) -> None:
    assert in_child(_check, str(tmp_path / "s.db"), in_use) == 0


def _check(path: str, in_use: bool) -> None:
    connections_after_a_fork(path, in_use=in_use)
