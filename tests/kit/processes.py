"""Functions of tests in processes of their own, which may be killed."""

from __future__ import annotations

import faulthandler
import multiprocessing
from collections.abc import Callable

# The tests' own process has run threads (of torch and others), which a fork of it would lack.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["tests.kit.forked", "pytest.__main__"])
PATIENCE = 120.0  # seconds that a child may take


def _patiently(work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    work(*arguments)


def start_child(work: Callable[..., object], *arguments: object) -> multiprocessing.Process:
    """Starts ``work(*arguments)``, a function of a module, in a process of its own."""
    child = CHILDREN.Process(target=_patiently, args=(work, arguments), daemon=True)
    child.start()
    return child


def in_child(work: Callable[..., object], *arguments: object) -> int:
    """Waits for ``work`` in a process of its own; returns the signal that ended it, 0 for none."""
    child = start_child(work, *arguments)
    child.join()
    assert child.exitcode is not None
    assert child.exitcode <= 0, "the child failed or hung: see what it printed"
    return -child.exitcode
