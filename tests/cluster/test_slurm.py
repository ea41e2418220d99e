"""Debian's Slurm as a cluster of one node, this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from biotune_optuna.schema import ENDED_KEY
from tests.cluster.conftest import Shared, until

pytest.importorskip("submitit")
if not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))) or os.geteuid():
    pytest.skip("needs root, slurmctld, slurmd and munge", allow_module_level=True)

TOTAL = 30


def configuration(folder: Path) -> str:
    host = socket.gethostname()
    return f"""
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort=27017
SlurmdPort=27018
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """Environment variables with which Slurm's commands find the cluster."""
    folder = Path(tempfile.mkdtemp(prefix="biotune-slurm-"))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "slurm.conf").write_text(configuration(folder))
    own = {"SLURM_CONF": str(folder / "slurm.conf")}
    keep = [f"--{name}={folder / f'munge.{name[0]}'}" for name in ("pid-file", "log-file")]
    munged = ["--key-file", str(key), "--socket", str(folder / "munge.sock"), "--foreground"]
    commands = (
        ["munged", *munged, *keep, f"--seed-file={folder / 'seed'}", "--force"],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    )
    servers = []
    for command in commands:
        servers.append(subprocess.Popen(command, env=os.environ | own, stderr=subprocess.DEVNULL))
        time.sleep(1)
    try:
        until(lambda: "idle" in run(own, "sinfo", "--noheader"), 60)
        yield own
    finally:
        for server in reversed(servers):
            server.terminate()
            server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def run(own: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        command, env=os.environ | own, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_an_array_does_the_study_and_a_job_that_is_told_hands_back_its_trial(
    slurm: dict[str, str], shared: Shared
) -> None:
    options = ["--on", "slurm", "--workers", "2", "--gpus-per-worker", "0", "--partition", "main"]
    process = shared.launch(*options, "--time", "2:00:00", "--trials", str(TOTAL), **slurm)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert said.startswith("Slurm has 2 workers as job ")
    number = said.split(" as job ")[1].split(";")[0]
    try:
        until(lambda: shared.finished() >= 2, 300)
        # What Slurm itself does a minute before a job's time is up.
        run(slurm, "scancel", "--signal=USR2", f"{number}_0")
        until(lambda: "_0" in run(slurm, "squeue", "--noheader", "-t", "PD", "-o", "%i"), 60)
        until(lambda: shared.finished() == TOTAL, 400)
        ended = [t.system_attrs.get(ENDED_KEY) for t in shared.trials() if t.state.name == "FAIL"]
        assert set(ended) <= {"stopped", "surplus"}
        assert not [t for t in shared.trials() if t.state.name == "RUNNING"]
    finally:
        run(slurm, "scancel", number)
    told = shared.folder / "biotune-slurm" / f"{number}_0_0_log.err"
    assert "Stopped; everything finished is kept." in told.read_text()
    logs = list((shared.folder / "biotune-slurm").glob("*_log.*"))
    assert {path.name.partition("_log")[0] for path in logs} == {f"{number}_{i}_0" for i in (0, 1)}
    for path in (shared.folder / "biotune-slurm").iterdir():
        assert shared.url.encode() not in path.read_bytes()


def test_a_partition_that_is_not_there_is_named(slurm: dict[str, str], shared: Shared) -> None:
    options = ["--on", "slurm", "--gpus-per-worker", "0", "--partition", "nosuch"]
    process = shared.launch(*options, **slurm)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Error: Slurm did not take the workers: " in said
    assert "invalid partition specified: nosuch" in said
