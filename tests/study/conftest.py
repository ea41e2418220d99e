"""What the tests of studies share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from tiny import tiny_spec

from biotune_optuna.study.setup import Setup, prepare


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pixels")


@pytest.fixture(scope="session")
def setup(cache_dir: Path) -> Setup:
    return prepare(tiny_spec(), device="cpu", cache_dir=cache_dir)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Optuna says errors only."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(level)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"
