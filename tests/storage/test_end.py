"""What an SQLite storage leaves behind: one file that is complete by itself."""

from __future__ import annotations

import gc
import pickle
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import optuna
import pytest

from biotune_optuna.storage.open import open_storage

if TYPE_CHECKING:
    from pathlib import Path

STUDY = """
import os, pickle, sys, threading, time, optuna
from biotune_optuna import open_storage
storage = open_storage("study.db")
study = optuna.create_study(study_name="s", storage=storage)
study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=3)
"""
ENDS = {
    "plain": "",
    "an exception": "raise SystemExit(0)",
    "a copy": "copy = pickle.loads(pickle.dumps(storage)); copy.get_all_studies()",
    "a thread": (
        "def run():\n"
        "    time.sleep(0.3)\n"
        "    study.optimize(lambda t: 0.0, n_trials=1)\n"
        "threading.Thread(target=run).start()"
    ),
    "a daemon": (
        "def run():\n"
        "    while True: study.get_trials(); time.sleep(0.5)\n"
        "threading.Thread(target=run, daemon=True).start(); time.sleep(0.2)"
    ),
}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("end", ENDS)
def test_a_process_that_ends_leaves_one_complete_file(tmp_path: Path, end: str) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", STUDY + ENDS[end]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in done.stderr
    assert files(folder) == ["study.db"]
    copy = shutil.copy(folder / "study.db", tmp_path / "copy.db")
    study = optuna.load_study(study_name="s", storage=open_storage(str(copy), create=False))
    assert len(study.trials) == 3 + (end == "a thread")


def test_a_storage_that_is_dropped_leaves_one_complete_file(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "study.db"))
    study = optuna.create_study(study_name="s", storage=storage)  # a lease would outlive a trial
    copy = pickle.loads(pickle.dumps(storage))
    del study, storage
    gc.collect()
    assert [found.study_name for found in copy.get_all_studies()] == ["s"]
    del copy
    gc.collect()
    assert files(tmp_path) == ["study.db"]


def test_a_forked_child_leaves_its_parents_connections_open(tmp_path: Path) -> None:
    code = STUDY + (
        "from sqlalchemy import event\n"
        "engine = storage._database.engine\n"
        "event.listen(engine, 'close', lambda *_: print('closed', os.getpid(), flush=True))\n"
        "print('parent', os.getpid(), flush=True)\n"
        "if os.fork() == 0: sys.exit(0)\n"
        "assert os.wait()[1] == 0\n"
        "study.optimize(lambda t: 0.0, n_trials=1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    parent = done.stdout.split()[1]
    assert set(done.stdout.splitlines()) == {f"parent {parent}", f"closed {parent}"}
    assert files(tmp_path) == ["study.db"]
