"""A study that workers on several nodes can finish within a minute or two."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest

from biotune_optuna.schema import HOLDER_KEY
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.study import create_study
from tests.kit.studies import tiny_spec


@dataclass(frozen=True)
class Shared:
    """A study in a journal, which several hosts may write."""

    url: str
    folder: Path

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return optuna.load_study(study_name="s", storage=open_storage(self.url)).trials

    def finished(self) -> int:
        return sum(t.state.name in ("COMPLETE", "PRUNED") for t in self.trials())

    def holders(self) -> set[str]:
        """Those that have worked on a trial."""
        marks = [t.system_attrs.get(HOLDER_KEY) for t in self.trials()]
        return {mark[0] for mark in marks if mark}

    def launch(self, *options: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "biotune_optuna", "launch", "--study", "s", *options]
        return subprocess.Popen(
            command,
            env=os.environ | {"BIOTUNE_STORAGE": self.url} | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    url = f"journal:///{tmp_path / 'study.log'}"
    create_study(tiny_spec(), storage=url, name="s")
    return Shared(url, tmp_path)


def until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.5)
