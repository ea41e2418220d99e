"""What only Linux has is not needed to train: neither its modules nor its system calls.

This stands for systems that the tests do not run on. What it cannot show is whether their own
calls, file locks and signals do what they promise.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

TRAIN = """
    import sys
    for name in ("fcntl", "grp", "pwd", "resource", "termios"):
        sys.modules[name] = None
    import optuna, timm, torch, torchvision
    import multiprocessing, os, signal, subprocess
    for name in ("fork", "geteuid", "posix_fallocate", "register_at_fork", "sched_getaffinity"):
        delattr(os, name)
    del signal.pthread_sigmask

    import importlib, pkgutil, biotune_optuna
    for module in pkgutil.walk_packages(biotune_optuna.__path__, "biotune_optuna."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    from biotune_optuna.study.stop import StopRequest
    from biotune_optuna.study.study import create_study
    from tests.kit.studies import tiny_spec
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for storage in ("sqlite:///study.db", "journal:///study.log"):
        study = create_study(tiny_spec(), storage=storage, device="cpu", cache_dir="pixels")
        with StopRequest.on_signals() as stop:
            study.search(2, stop=stop)
        print([trial.state.name for trial in study.study.trials])
    """


def test_training_needs_nothing_that_only_linux_has(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TRAIN)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.stdout.splitlines() == ["['COMPLETE', 'COMPLETE']"] * 2, ran.stderr
