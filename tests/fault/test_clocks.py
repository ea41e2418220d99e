"""Workers whose clocks are ten minutes apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState

from biotune_optuna.storage.open import open_storage
from tests.kit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    postgres = Postgres()
    yield postgres
    postgres.close()


LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


@pytest.mark.skipif(LIBRARY is None, reason="needs Debian's package faketime")
def test_clocks_ten_minutes_apart(server: Postgres, tmp_path: Path) -> None:
    url = server.create_database("clocks")
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[2])}
    workers = []
    for shift in ("-10m", "+10m", "+0m"):
        command = [sys.executable, str(WORKER), url, "12", "20", str(log)]
        clock = {"LD_PRELOAD": str(LIBRARY), "FAKETIME": shift}
        if os.geteuid() == 0:  # as on another host: only leases tell
            away = 'hostname "away$0"; exec "$@"'
            command = [
                *["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"],
                *["sh", "-c", away, shift.strip("+-"), *command],
            ]
        workers.append(subprocess.Popen(command, env=environment | clock))
    assert [worker.wait(400) for worker in workers] == [0, 0, 0]
    trials = optuna.load_study(study_name="s", storage=open_storage(url)).trials
    assert sum(t.state == TrialState.COMPLETE for t in trials) == 12
    assert not [t for t in trials if t.system_attrs.get("biotune:ended") == "lost"]
    started = [x.split()[1] for x in log.read_text().splitlines() if x.startswith("start")]
    assert len(started) == len(set(started)) == 12
    starts = [t.datetime_start for t in trials if t.datetime_start is not None]
    print(f"clocks in the study: {(max(starts) - min(starts)).total_seconds():.0f} s apart")
    assert (max(starts) - min(starts)).total_seconds() > 1000  # the clocks were apart
