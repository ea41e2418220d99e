"""MariaDB for real, where Debian's package is installed."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import TrialState

from biotune_optuna.errors import StorageError
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.worker import run_trials

pymysql = pytest.importorskip("pymysql")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class MariaDB:
    """A server that keeps its data in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = f"{folder}/sock"
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                f"--datadir={folder}/data",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            check=True,
            capture_output=True,
        )
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [
                *["mariadbd", "--no-defaults", "--user=root", "--skip-networking"],
                *[f"--datadir={self.folder}/data", f"--socket={self.socket}"],
                f"--log-error={self.folder}/log",
            ]
        )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                self.sql("SELECT 1")
            except pymysql.err.OperationalError:
                time.sleep(0.2)
            else:
                return process
        raise AssertionError("mariadbd did not start")

    def sql(self, statement: str) -> Any:
        with pymysql.connect(unix_socket=self.socket, user="root", autocommit=True) as connection:
            cursor = connection.cursor()
            cursor.execute(statement)
            return cursor.fetchall()

    def cut(self) -> None:
        for identity, *_ in self.sql(
            "SELECT id FROM information_schema.processlist WHERE db = 'studies'"
        ):
            self.sql(f"KILL {identity}")

    def restart(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = self._start()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    if not shutil.which("mariadbd"):
        pytest.skip("MariaDB is not installed")
    mariadb = MariaDB(tmp_path_factory.mktemp("mariadb"))
    mariadb.sql("CREATE DATABASE studies")
    yield mariadb
    mariadb.process.kill()
    mariadb.process.wait()


def test_cut_connections_and_crashes_cost_nothing(server: MariaDB) -> None:
    url = f"mysql://root@localhost/studies?unix_socket={server.socket}"

    def disturb(trial: optuna.Trial, moment: int) -> None:
        if trial.number % 4 == moment:
            if trial.number < 8:
                server.cut()
            elif trial.number < 12:
                server.restart()

    def objective(trial: optuna.Trial) -> float:
        disturb(trial, 0)
        x = trial.suggest_float("x", 0, 1)
        disturb(trial, 1)
        trial.report(x, 0)
        disturb(trial, 2)
        trial.set_user_attr("mine", x)
        disturb(trial, 3)
        return x

    study = optuna.create_study(
        study_name="s",
        storage=open_storage(url),
        direction="maximize",
        sampler=BioTuneSampler(seed=1),
    )
    run_trials(study, objective, n_trials=16)
    trials = study.trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 16
    assert all(t.value == t.params["x"] == t.user_attrs["mine"] for t in trials)


def test_read_only_and_errors(server: MariaDB) -> None:
    base = f"@localhost/studies?unix_socket={server.socket}"
    reading = open_storage("mysql://root" + base, read_only=True)
    assert reading.get_all_studies()
    server.sql("CREATE USER 'alice'@'localhost' IDENTIFIED BY 'openSesame'")
    with pytest.raises(StorageError, match="refused the user name or password") as caught:
        open_storage("mysql://alice:closeSesame" + base)
    assert "Sesame" not in str(caught.value)
    with pytest.raises(StorageError, match="does not let this user"):
        open_storage("mysql://alice:openSesame" + base)
