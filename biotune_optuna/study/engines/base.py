"""What an engine is: something that starts workers of a study, each a ``biotune worker``.

An engine is one file of this folder, named as users write it after ``--on``, with the two names of
`Engine`. Engines only start processes: the work is shared out in the study's database, and a worker
that dies is found there.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from biotune_optuna.errors import StudyError
from biotune_optuna.storage.urls import parse_url

# -P: else modules were looked for in the current folder first, and an optuna.py beside somebody's
# images would be run.
_BIOTUNE = ("-P", "-m", "biotune_optuna")
LAUNCH = (*_BIOTUNE, "launch")
"""The arguments of ``python`` that start workers and look after them."""
WORKER = (sys.executable, *_BIOTUNE, "worker")
"""What starts a worker in this environment."""

USER_ERROR = 2
"""The exit code of a worker that was started with a mistake of the user's."""

STOP_SECONDS = 12.0
"""How long a worker that was asked to stop may take."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """The workers that are wanted.

    Attributes:
        study: Name of the study; it exists.
        storage: URL of its storage; None is the environment's.
        arguments: Further arguments of ``biotune worker``.
        address: What followed the engine's name, as in ``ray://HOST:PORT``; "" for nothing.
        options: The engine's own options that were given, by name.
        say: Told, in a line, what happens.
    """

    study: str
    storage: str | None = None
    arguments: tuple[str, ...] = ()
    address: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], object] = print

    @property
    def command(self) -> list[str]:
        """The arguments of ``python`` that start one worker."""
        return [*_BIOTUNE, "worker", "--study", self.study, *self.arguments]


class Engine(Protocol):
    """A file of this folder."""

    OPTIONS: frozenset[str]
    """The options of ``biotune launch`` that mean something to it, by their names in Python."""

    def start(self, job: Job) -> int:
        """Start the workers of a job, and return the exit code of the command."""


def engines() -> list[str]:
    """Return the names of all engines."""
    files = pkgutil.iter_modules([str(Path(__file__).parent)])
    return [file.name for file in files if file.name != "base"]


def find_engine(place: str) -> tuple[str, Engine, str]:
    """Return the engine that ``--on`` means: its name, itself and the address.

    Args:
        place: A name, or a name with an address: ``ray://10.0.0.1:10001``.

    Raises:
        StudyError: If there is none of that name.
    """
    name, _, address = place.partition("://")
    known = engines()
    if name not in known:
        raise StudyError(f"there is no engine {name!r}; give one of {', '.join(known)}")
    return name, cast("Engine", importlib.import_module(f"{__package__}.{name}")), address


def url_for_others(storage: str | None, engine: str) -> str:
    """Return the storage's URL as workers on other machines can use it.

    Raises:
        StudyError: If it is a file that only one machine may write, or no place at all.
    """
    where = parse_url(storage)
    if where.kind in ("sqlite", "memory"):
        raise StudyError(
            f"{where.place} serves one machine only, and {engine} starts workers on several; give "
            "--storage postgresql://USER@HOST/DATABASE, grpc://HOST:PORT or journal:////FILE.log "
            "in a shared folder"
        )
    if where.path is not None:
        return f"journal:///{where.path.absolute()}"
    return os.fspath(storage) if storage is not None else where.url


# -- processes of workers, which all engines have -------------------------------------------------


def start_worker(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    deaf_to: Sequence[signal.Signals] = (),
    **options: Any,
) -> subprocess.Popen[Any]:
    """Start a process that does not outlive this one.

    Args:
        command: What starts the worker.
        environment: All of its environment variables.
        deaf_to: Signals that the engine sends to every process of a job, and means for itself.
        options: Further arguments of `subprocess.Popen`.
    """
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None

    def prepare() -> None:
        for number in deaf_to:
            signal.signal(number, signal.SIG_IGN)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    # A session of its own: Ctrl-C at the terminal would reach the worker as well as this process,
    # which passes it on, and two signals mean "at once".
    return subprocess.Popen(  # noqa: S603  (this program's own command)
        list(command),
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=prepare if deaf_to or libc is not None else None,  # noqa: PLW1509  (holds no lock)
        **options,
    )


def end_workers(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """Ask workers to stop, and kill those that have not stopped after 12 seconds."""
    for process in processes:
        process.terminate()
    end = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
