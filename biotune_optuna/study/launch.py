"""One worker process per device of this host, restarted when it dies."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.sharing import SHARING
from biotune_optuna.storage.urls import ENVIRONMENT, parse_url
from biotune_optuna.study.engines.base import (
    STOP_SECONDS,
    USER_ERROR,
    WORKER,
    end_workers,
    start_worker,
)
from biotune_optuna.study.stop import StopRequest

if TYPE_CHECKING:
    import subprocess

_logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_SHORT_LIFE = 60.0
_MAX_SHORT_LIVES = 5
_POLL_SECONDS = 0.2


def all_devices() -> list[str]:
    """Return the accelerators of this host as ``cuda:0``, … or ``mps``; else ``["cpu"]``."""
    import torch

    from biotune_optuna.finetune.device import resolve_device

    best = resolve_device("auto")  # says why where a card cannot be used
    if best.type != "cuda":
        return [best.type]
    return [f"cuda:{n}" for n in range(torch.cuda.device_count())]


def launch(
    study: str,
    *,
    storage: str | os.PathLike[str] | None = None,
    devices: Sequence[str] = ("all",),
    per_device: int = 1,
    arguments: Sequence[str] = (),
    stop: StopRequest | None = None,
    command: Sequence[str] = WORKER,
) -> int:
    """Run workers, one per device or more, until the study has its trials.

    A worker that dies is started again after a pause that doubles from 1 s to 60 s. One that
    reports a mistake of the user's (exit code 2) within its first minute, or dies five times in a
    row within its first minute, is not. When a stop is requested, all workers are asked to stop,
    and killed after 12 seconds; they also stop when this process dies.

    Several workers divide the cores among them (``OMP_NUM_THREADS``, unless it is set).

    Args:
        study: Name of the study; it must exist.
        storage: Its storage, handed on in the environment, where other users cannot list it.
        devices: ``cuda:0``, ``cpu``, …, each once per worker wanted, or ``all``.
        per_device: Workers for each device named. Several on one GPU fill it where a network and
            its images are too small to.
        arguments: Further arguments of ``biotune worker``.
        stop: Asks to stop; default: SIGINT and SIGTERM do.
        command: What starts a worker.

    Returns:
        0 if every worker has ended well, 130 if stopped, else the last exit code of one that
        was given up.

    Raises:
        StudyError: No device is named, or ``per_device`` is below 1.
        StorageError: This is no URL of a storage.
    """
    names = [name for one in devices for name in (all_devices() if one == "all" else [one])]
    if not names:
        raise StudyError("no device is given; name some, such as cuda:0, or all")
    if per_device < 1:
        raise StudyError(f"per_device {per_device} starts no worker; give at least 1")
    names = [name for name in names for _ in range(per_device)]
    parse_url(storage)  # refuse a bad one here, and hide its password
    environment = dict(os.environ)
    if storage is not None:
        environment[ENVIRONMENT] = os.fspath(storage)
    if len(names) > 1:  # else every process of torch would take all cores
        environment.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // len(names))))
    sharing = Counter(names)
    workers = [
        _Worker(
            [*command, "--study", study, "--device", name, *arguments],
            {**environment, SHARING: str(sharing[name])},
            name,
        )
        for name in names
    ]
    if hint := _mps_hint(sharing, environment):
        _logger.warning("%s", hint)
    with contextlib.ExitStack() as stack:
        if stop is None:
            # Longer than the workers get, so that it is they who are waited for.
            stop = stack.enter_context(StopRequest.on_signals(polite_seconds=2 * STOP_SECONDS))
        stack.callback(_end, workers)
        while sum(worker.look() for worker in workers):  # unlike any(), looks at each
            if stop.wait(_POLL_SECONDS):
                _end(workers)
                return 128 + signal.SIGINT
    return next((worker.code for worker in workers if worker.code), 0)


def _cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _mps_hint(sharing: Mapping[str, int], environment: Mapping[str, str]) -> str:
    """Say how workers that share a GPU run at the same time; "" where they do, or none share one.

    NVIDIA's Multi-Process Service lets kernels of several processes run side by side. Without it
    the card takes them in turns.
    """
    shared = [name for name, n in sharing.items() if n > 1 and name.startswith("cuda")]
    folder = environment.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")  # noqa: S108 - NVIDIA's
    if not shared or Path(folder, "control").exists():
        return ""
    return (
        f"several workers share {', '.join(shared)}, and take turns there; start NVIDIA's MPS first"
        " (nvidia-cuda-mps-control -d) for them to run side by side"
    )


@dataclass
class _Worker:
    """The process for one device, and what became of those before it."""

    command: list[str]
    environment: Mapping[str, str]
    name: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = field(default_factory=lambda: _FIRST_PAUSE)
    short_lives: int = 0
    start_at: float = field(default_factory=time.monotonic)
    done: bool = False
    code: int = 0

    def look(self) -> bool:
        """Start the process if it is time to; return whether there is, or will be, one."""
        if self.done:
            return False
        if self.process is None:
            if time.monotonic() >= self.start_at:
                self._start()
            return True
        code = self.process.poll()
        if code is not None:
            self.process = None
            self._ended(code)
        return not self.done

    def _start(self) -> None:
        self.process = start_worker(self.command, self.environment)
        self.started = time.monotonic()
        _logger.info("worker on %s started (process %d)", self.name, self.process.pid)

    def _ended(self, code: int) -> None:
        self.code = code if code >= 0 else 128 - code
        lived = time.monotonic() - self.started
        if code == 0:
            self.done = True
            return
        if lived >= _SHORT_LIFE:
            self.pause, self.short_lives = _FIRST_PAUSE, 0
        self.short_lives += 1
        what = f"signal {-code}" if code < 0 else f"exit code {code}"
        if self.short_lives >= _MAX_SHORT_LIVES or (code == USER_ERROR and lived < _SHORT_LIFE):
            self.done = True
            _logger.error("worker on %s ended with %s and is given up", self.name, what)
            return
        _logger.warning(
            "worker on %s ended with %s; starting it again in %.0f s", self.name, what, self.pause
        )
        self.start_at = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)


def _end(workers: Sequence[_Worker]) -> None:
    """Ask all workers to stop and see that they do."""
    end_workers([worker.process for worker in workers if worker.process is not None])
    for worker in workers:
        worker.process, worker.done = None, True
