"""What all tests share: properties are tried on the same examples each time, however slowly."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIOTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BIOTUNE_STORAGE", raising=False)
    return tmp_path
