"""What all tests share.

One thread of PyTorch a process: the networks here are so small that more threads only wait for each
other, most of all on a busy machine. Processes that tests start inherit it from the environment.
Properties are tried on the same examples each time, however slowly.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported, which reads it once

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIOTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BIOTUNE_STORAGE", raising=False)
    return tmp_path
