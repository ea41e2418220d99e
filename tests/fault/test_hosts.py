"""Two hosts, made of namespaces: one cut off for a minute, one that dies where nobody sees it."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState

from biotune_optuna.sampler.sampler import slot_of
from biotune_optuna.storage.lease import LEASE_SECONDS, read_holder
from biotune_optuna.storage.open import open_storage
from tests.kit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKER = Path(__file__).with_name("worker.py")
SPACE, NEAR, FAR = "biotune-far", "bt-near", "bt-far"
ADDRESS, PORT = "10.77.0.1", 54329


def ip(*arguments: str) -> bool:
    command = shutil.which("ip")
    return (
        command is not None and subprocess.run([command, *arguments], check=False).returncode == 0
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    if os.geteuid() != 0 or not ip("netns", "add", SPACE):
        pytest.skip("network namespaces need root and iproute2")
    try:
        assert ip("link", "add", NEAR, "type", "veth", "peer", "name", FAR)
        assert ip("link", "set", FAR, "netns", SPACE)
        assert ip("addr", "add", f"{ADDRESS}/24", "dev", NEAR)
        assert ip("link", "set", NEAR, "up")
        assert ip("-n", SPACE, "addr", "add", "10.77.0.2/24", "dev", FAR)
        assert ip("-n", SPACE, "link", "set", FAR, "up")
        postgres = Postgres()
        postgres.listen(ADDRESS, PORT, "10.77.0.0/24")
        yield postgres
        postgres.close()
    finally:
        ip("link", "del", NEAR)
        ip("netns", "del", SPACE)


class Workers:
    """Worker processes on either host; none outlives its test."""

    def __init__(self, url: str, log: Path) -> None:
        self.url, self.log = url, log
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_exc: object) -> None:
        for worker in self._started:
            worker.kill()
            worker.wait()

    def start(self, n_trials: int, seconds: float, *, far: bool) -> subprocess.Popen[bytes]:
        self._started.append(_start(self.url, n_trials, seconds, self.log, far=far))
        return self._started[-1]


def _start(
    url: str, n_trials: int, seconds: float, log: Path, *, far: bool
) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(WORKER), url, str(n_trials), str(seconds), str(log)]
    if far:
        shell = 'hostname far; exec "$@"'
        command = [
            *["ip", "netns", "exec", SPACE, "unshare", "--pid", "--fork", "--kill-child"],
            *["--mount-proc", "--uts", "sh", "-c", shell, "sh", *command],
        ]
    root = str(WORKER.parents[2])
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root})


def lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(log: Path, what: str, host: str, count: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while sum(x[0] == what and x[2] == host for x in lines(log)) < count:
        assert time.monotonic() < end, f"no {what} on {host}: {lines(log)}"
        time.sleep(0.1)


def test_a_host_cut_off_for_a_minute_loses_nothing(server: Postgres, tmp_path: Path) -> None:
    name = "cut"
    server.create_database(name)
    url = f"postgresql://postgres@{ADDRESS}:{PORT}/{name}"
    log, n_trials = tmp_path / "log", 60
    with Workers(url, log) as workers:
        both = [workers.start(n_trials, 2.0, far=far) for far in (False, True)]
        wait_for(log, "end", "far", 3)
        wait_for(log, "start", "far", 4)
        assert ip("link", "set", NEAR, "down")
        time.sleep(60)
        assert ip("link", "set", NEAR, "up")
        assert [worker.wait(300) for worker in both] == [0, 0]
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    trials = study.trials
    assert sum(t.state == TrialState.COMPLETE for t in trials) == n_trials
    assert not [t for t in trials if t.system_attrs.get("biotune:ended") == "lost"]
    events = lines(log)
    started = [e[1] for e in events if e[0] == "start"]
    assert len(set(started)) == len(started) == n_trials
    far = [e for e in events if e[2] == "far"]
    gaps = [float(b[4]) - float(a[4]) for a, b in itertools.pairwise(far)]
    print(f"longest pause of the host that was cut off: {max(gaps):.1f} s for a cut of 60 s")
    assert max(gaps) < 100


def test_a_host_that_dies_is_noticed_and_its_slot_filled(server: Postgres, tmp_path: Path) -> None:
    name = "died"
    server.create_database(name)
    url = f"postgresql://postgres@{ADDRESS}:{PORT}/{name}"
    log, here = tmp_path / "log", os.uname().nodename
    # A slot comes back as long as its generation is open, and the first one closes after ten
    # trials, extras included: in the lease's 120 seconds the host that lives must not get there.
    with Workers(url, log) as workers:
        near = workers.start(10_000, 30.0, far=False)
        far = workers.start(10_000, 90.0, far=True)
        wait_for(log, "start", "far", 1)
        wait_for(log, "end", here, 1)
        time.sleep(10)  # the lease has been raised more than once
        assert ip("link", "set", NEAR, "down")  # as with the host's power
        far.kill()
        far.wait()
        assert ip("link", "set", NEAR, "up")
        died = time.monotonic()
        study = optuna.load_study(study_name="s", storage=open_storage(url))
        (lost,) = [
            t
            for t in study.trials
            if t.state == TrialState.RUNNING
            and (holder := read_holder(t.system_attrs)) is not None
            and holder.host == "far"
        ]
        while study.trials[lost.number].state == TrialState.RUNNING:
            assert time.monotonic() - died < 3 * LEASE_SECONDS
            time.sleep(1)
        took = time.monotonic() - died
        print(f"a dead host's trial was failed after {took:.0f} s of {LEASE_SECONDS:.0f} s lease")
        assert study.trials[lost.number].system_attrs["biotune:ended"] == "lost"
        assert took > 0.75 * LEASE_SECONDS  # silence alone, for most of the lease, has told
        # A trial asked for before the loss was seen has another slot; the next one has this.
        begun = sum(x[0] == "start" and x[2] == here for x in lines(log))
        wait_for(log, "start", here, begun + 2)
        slot = slot_of(lost)
        again = [t for t in study.trials if t.number != lost.number and slot_of(t) == slot]
        assert [t.params for t in again] == [lost.params]
        near.terminate()
        assert near.wait(15) == 0
