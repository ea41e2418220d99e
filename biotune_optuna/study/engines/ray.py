"""Ray: one actor per worker, placed on nodes with room and started again by Ray.

An actor does nothing but run ``biotune worker`` as a process of its own and hand on its lines. When
that process dies the actor dies with it, and Ray starts the actor again, there or on another node.
The study stays in its database: a node that goes takes only the trainings it was at.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from biotune_optuna._version import __version__
from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.sharing import SHARING
from biotune_optuna.storage.urls import ENVIRONMENT
from biotune_optuna.study.engines.base import (
    USER_ERROR,
    Job,
    end_workers,
    start_worker,
    url_for_others,
)
from biotune_optuna.study.stop import StopRequest

OPTIONS = frozenset({"workers", "gpus_per_worker", "cpus_per_worker"})

_RESTARTS = 50  # of one worker, by Ray: nodes go, but what never runs should end
_SHORT_LIFE, _PAUSE = 60.0, 10.0  # seconds: a worker that died so soon is not started at once
_ROOM_SECONDS = 20.0  # after which a worker that Ray has not placed is said to wait
_STOP_SECONDS = 24.0


def start(job: Job) -> int:
    """Run the workers on the cluster until the study has its trials."""
    ray = _ray()
    _connect(ray, job.address)
    try:
        with StopRequest.on_signals(polite_seconds=2 * _STOP_SECONDS) as stop:
            return _Run(ray, job, _url(ray, job)).work(stop)
    finally:
        ray.shutdown()


def _ray() -> Any:
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # workers say alike things, each about its own
    try:
        import ray
    except ImportError:
        raise StudyError(
            "--on ray needs the package ray; install it with: pip install 'biotune-optuna[ray]'"
        ) from None
    return ray


def _connect(ray: Any, address: str) -> None:
    """Join the cluster.

    Raises:
        StudyError: There is none, or one of another version.
    """
    where = f"ray://{address}" if address else "auto"
    try:
        ray.init(where, logging_level="ERROR")
    except Exception as error:  # noqa: BLE001  (of many kinds)
        reason = " ".join(str(error).split())
        if "ersion" in reason:  # Ray compares Python's and its own
            raise StudyError(
                f"the Ray cluster and this machine do not fit together: {reason[:300]}; install "
                "the same versions of Python and Ray"
            ) from None
        if address:
            raise StudyError(
                f"there is no Ray at {address}; give the head node and the port of its client "
                "server, as in ray://10.0.0.1:10001"
            ) from None
        raise StudyError(
            "no Ray cluster runs on this machine; start one with ray start --head, or give its "
            "address, as in --on ray://10.0.0.1:10001"
        ) from None


def _url(ray: Any, job: Job) -> str:
    alive = [node for node in ray.nodes() if node["Alive"]]
    if job.address or len(alive) > 1:
        return url_for_others(job.storage, "Ray")
    return job.storage or os.environ.get(ENVIRONMENT, "")


class _Run:
    """One call of ``biotune launch --on ray``."""

    def __init__(self, ray: Any, job: Job, url: str) -> None:
        self.ray, self.job = ray, job
        cpus = float(job.options.get("cpus_per_worker", 1))
        gpus = job.options.get("gpus_per_worker")
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        actor = ray.remote(Worker).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
            max_concurrency=2,  # one runs the worker, one may stop it
        )
        versions = _versions()
        sharing = round(1 / gpus) if 0 < gpus < 1 else 1
        facts = (job.command, url, str(Path.cwd()), versions, sharing)
        n = int(job.options.get("workers", 1))
        self.actors = [actor.remote(*facts) for _ in range(n)]
        self.running = {one.run.remote(): one for one in self.actors}
        self.unplaced = {one.host.remote(): one for one in self.actors}
        self.room = f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")

    def work(self, stop: StopRequest) -> int:
        """Wait until no worker is left; return the exit code."""
        codes: list[int] = []
        told, began = False, time.monotonic()
        while self.running:
            if stop.requested:
                self._stop()
                return 130
            ended, _ = self.ray.wait(list(self.running), timeout=0.5)
            codes += [self._ended(one) for one in ended]
            self._look_for_places()
            if 0 in codes:  # the study has its trials
                self._forget_unplaced()
            if not told and self.unplaced and time.monotonic() > began + _ROOM_SECONDS:
                told = True
                n, most = len(self.unplaced), len(self.actors)
                self.job.say(
                    f"{n} of {most} workers wait: the cluster has no room for them now, at "
                    f"{self.room} each; they begin when a node joins or another worker ends"
                )
        return next((code for code in codes if code), 0)

    def _ended(self, reference: Any) -> int:
        """Return the exit code of a worker; say why where it is no success."""
        actor = self.running.pop(reference)
        try:
            code, host, said = self.ray.get(reference)
        except Exception as error:  # noqa: BLE001  (Ray's, of many kinds)
            lines = [line for line in str(error).splitlines() if line.strip()]
            missing = [line for line in lines if "No module named" in line]
            reason = next(iter([*missing, *lines]), type(error).__name__)
            self.job.say(f"a worker was given up by Ray: {reason.strip()[:300]}")
            return 1
        self.ray.kill(actor)  # its room is for those that wait
        if code:
            self.job.say(f"the worker on {host} is given up: {said}")
        return int(code)

    def _look_for_places(self) -> None:
        if self.unplaced:
            placed, _ = self.ray.wait(
                list(self.unplaced), num_returns=len(self.unplaced), timeout=0
            )
            for reference in placed:
                del self.unplaced[reference]

    def _forget_unplaced(self) -> None:
        for actor in self.unplaced.values():
            self.ray.kill(actor)
            self.running = {r: one for r, one in self.running.items() if one is not actor}
        self.unplaced = {}

    def _stop(self) -> None:
        self._look_for_places()
        self._forget_unplaced()  # they would not hear it
        asked = [one.stop.remote() for one in self.running.values()]
        if asked:
            self.ray.wait(asked, num_returns=len(asked), timeout=_STOP_SECONDS)


class Worker:
    """The actor: one worker on one node.

    Args:
        command: Arguments of ``python``.
        url: The storage's URL; not an environment variable of Ray's, which its dashboard shows.
        folder: Where the command was typed; used where the node has it too.
        versions: Those of this package and of Python there.
        sharing: Workers that share its GPU.
    """

    def __init__(
        self,
        command: list[str],
        url: str,
        folder: str,
        versions: tuple[str, str],
        sharing: int,
    ) -> None:
        self.command, self.url, self.folder, self.versions = command, url, folder, versions
        self.sharing = sharing
        self.process: subprocess.Popen[str] | None = None
        self.is_stopped = False

    def host(self) -> str:
        """Return the node's name."""
        return socket.gethostname()

    def run(self) -> tuple[int, str, str]:
        """Run the worker to its end; return its exit code, the node's name and its last line."""
        host, began = socket.gethostname(), time.monotonic()
        own = _versions()
        if own != self.versions:
            return USER_ERROR, host, f"it has {_words(own)}, and you have {_words(self.versions)}"
        environment = {**os.environ, SHARING: str(self.sharing)}
        if self.url:
            environment[ENVIRONMENT] = self.url
        self.process = start_worker(
            [sys.executable, *self.command],
            environment,
            cwd=self.folder if Path(self.folder).is_dir() else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert self.process.stdout is not None
        last: deque[str] = deque(maxlen=1)
        for line in self.process.stdout:
            print(f"[{host}] {line}", end="", flush=True)  # noqa: T201  (Ray brings it to who called)
            last.extend([line.strip()] if line.strip() else [])
        code = self.process.wait()
        if code in (0, USER_ERROR) or self.is_stopped:
            return code, host, last[0] if last else f"exit code {code}"
        if time.monotonic() - began < _SHORT_LIFE:
            time.sleep(_PAUSE)
        os._exit(1)  # Ray starts the actor again

    def stop(self) -> None:
        """Let the worker hand back its trial."""
        self.is_stopped = True
        if self.process is not None:
            end_workers([self.process])


def _versions() -> tuple[str, str]:
    return __version__, ".".join(platform.python_version_tuple()[:2])


def _words(versions: tuple[str, str]) -> str:
    return f"biotune-optuna {versions[0]} under Python {versions[1]}"
