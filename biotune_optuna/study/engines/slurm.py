"""Slurm, through submitit: one array, each of its jobs a worker.

A minute before its time is up, and when it is preempted, a job lets its worker hand back the trial
and is put back into Slurm's queue; so it is when its node fails. A worker that dies by itself is
none of Slurm's business: ``biotune launch`` in the job starts it again. The storage's URL, which
may hold a password, goes with the environment that ``sbatch`` takes along, and into no file.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biotune_optuna.errors import StudyError
from biotune_optuna.storage.urls import ENVIRONMENT
from biotune_optuna.study.engines.base import (
    LAUNCH,
    Job,
    end_workers,
    start_worker,
    url_for_others,
)

if TYPE_CHECKING:
    import subprocess

    import submitit

OPTIONS = frozenset(
    {
        "workers",
        "gpus_per_worker",
        "cpus_per_worker",
        "partition",
        "time",
        "sbatch",
        "logs",
        "dry_run",
    }
)

_SIGNAL_SECONDS = 60  # before the end of its time a job is told; a worker needs 12 at most
_MOST_REQUEUES = 1000
_DEFAULT_SECONDS = 4 * 3600


def start(job: Job) -> int:
    """Submit the array and return; with ``dry_run`` print its script instead."""
    options = job.options
    url = url_for_others(job.storage, "Slurm")
    folder = Path(options.get("logs", "biotune-slurm")).absolute()
    n = int(options.get("workers", 1))
    executor = _executor(folder, _parameters(job, options))
    if options.get("dry_run"):
        executor.parameters["map_count"] = n
        job.say(executor._make_submission_file_text(executor._submitit_command_str, "").rstrip())
        return 0
    os.environ[ENVIRONMENT] = url
    command = [*LAUNCH, "--study", job.study, "--devices", "auto", *job.arguments]
    task = Worker(command, cpus=int(options.get("cpus_per_worker", 1)))
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with executor.batch():
            jobs = [executor.submit(task) for _ in range(n)]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        reason = " ".join(str(error).split())[-300:]
        raise StudyError(f"Slurm did not take the workers: {reason}") from None
    number = jobs[0].job_id.partition("_")[0]
    job.say(
        f"Slurm has {n} workers as job {number}; those it has no room for yet wait in its queue. "
        f"Logs: {folder}; squeue -j {number} shows them, scancel {number} stops them"
    )
    return 0


def _parameters(job: Job, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what submitit calls the options."""
    gpus = float(options.get("gpus_per_worker", 1))
    if not gpus.is_integer():
        raise StudyError(
            f"--gpus-per-worker {gpus:g}: Slurm gives whole GPUs to a job; give 1, or 0 for none"
        )
    further = dict(options.get("sbatch", {}))
    parameters: dict[str, Any] = {
        # A name from a database must not end the line of the script that it stands in.
        "job_name": re.sub(r"[^\w.-]+", "-", f"biotune-{job.study}", flags=re.ASCII),
        "time": int(options.get("time", _DEFAULT_SECONDS)) // 60,
        "cpus_per_task": int(options.get("cpus_per_worker", 1)),
        "signal_delay_s": _SIGNAL_SECONDS,
        "additional_parameters": {"requeue": True} | further,
    }
    if gpus:
        parameters["gpus_per_node"] = int(gpus)
    if options.get("partition"):
        parameters["partition"] = options["partition"]
    return parameters


def _executor(folder: Path, parameters: Mapping[str, Any]) -> submitit.SlurmExecutor:
    try:
        import submitit
    except ImportError:
        raise StudyError(
            "--on slurm needs the package submitit; install it with: "
            "pip install 'biotune-optuna[slurm]'"
        ) from None

    class Executor(submitit.SlurmExecutor):
        """Shows its script on machines without Slurm too."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    python = f"{shlex.quote(sys.executable)} -P"
    executor = Executor(folder, max_num_timeout=_MOST_REQUEUES, python=python)
    executor.update_parameters(**parameters)
    return executor


@dataclass
class Worker:
    """One worker below a job of Slurm's, as submitit calls it.

    Attributes:
        command: Arguments of ``python``.
        cpus: Cores that it has.
    """

    command: list[str]
    cpus: int = 1
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __call__(self) -> int:
        """Run the worker to its end; return 0.

        Raises:
            SystemExit: It ended otherwise.
        """
        environment = {"OMP_NUM_THREADS": str(self.cpus)} | os.environ
        # Slurm sends this one, by which a job is told, to all processes of the job.
        deaf_to = (signal.SIGUSR2,)
        command = [sys.executable, *self.command]
        self.process = start_worker(command, environment, deaf_to=deaf_to)
        # In a thread: the main one may be called away to `checkpoint`, which waits as well.
        waiting = threading.Thread(target=self.process.wait, daemon=True)
        waiting.start()
        waiting.join()
        if self.process.returncode:
            raise SystemExit(self.process.returncode)
        return 0

    def checkpoint(self) -> Any:
        """Let the worker hand back its trial; the job goes on with another one when it is back."""
        from submitit.core.utils import DelayedSubmission

        if self.process is not None:
            end_workers([self.process])
        return DelayedSubmission(Worker(self.command, self.cpus))
