"""What all tests share.

One thread of PyTorch a process: the networks here are so small that more threads only wait for each
other, most of all on a busy machine. Processes that tests start inherit it from the environment.
Properties are tried on the same examples each time, however slowly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from biotune_optuna.study.setup import Setup
    from tests.kit.networks import TensorImages

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported, which reads it once

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--device``: where the tests of the engine and of the methods train."""
    words = "where the engine's tests train: cpu, cuda, cuda:N or mps"
    parser.addoption("--device", default="cpu", help=words)


def pytest_configure(config: pytest.Config) -> None:
    """Say in the environment where to train, before anything that trains is imported."""
    device = config.getoption("--device")
    os.environ["BIOTUNE_TEST_DEVICE"] = device
    if device == "cpu":
        return
    import torch

    from biotune_optuna.errors import BioTuneError
    from biotune_optuna.finetune.device import resolve_device

    try:
        os.environ["BIOTUNE_TEST_DEVICE"] = str(resolve_device(device))
    except BioTuneError as error:
        raise pytest.UsageError(str(error)) from None
    torch.backends.cudnn.allow_tf32 = False  # tests compare by float32's rounding


LONGEST = ("test_main_job", "test_studies", "test_kill")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that of several processes none is left with one of them."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The caches and the database of whoever runs the tests are left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIOTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("BIOTUNE_STORAGE", raising=False)
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIOTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def quiet() -> Iterator[None]:
    """Optuna says errors only."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(level)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pixels")


@pytest.fixture(scope="session")
def setup(cache_dir: Path) -> Setup:
    """The tiny study's images and network, ready."""
    from biotune_optuna.study.setup import prepare
    from tests.kit.studies import tiny_spec

    return prepare(tiny_spec(), device="cpu", cache_dir=cache_dir)


@pytest.fixture
def images() -> TensorImages:
    """Images in memory for a trainer."""
    from tests.kit.networks import make_images

    return make_images()


@pytest.fixture
def split(images: TensorImages) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(0).permutation(len(images))
    return order[:40], order[40:]


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, float]]]:
    """Rates by parameter name at each step, read from the optimiser."""
    import torch

    seen: list[dict[str, float]] = []
    take = torch.optim.Optimizer.zero_grad

    def watch(trainer: Any) -> list[dict[str, float]]:
        names = {id(p): n for n, p in trainer.model.named_parameters()}

        def zero_grad(self: Any, *args: Any, **kwargs: Any) -> None:
            seen.append({names[id(p)]: g["lr"] for g in self.param_groups for p in g["params"]})
            take(self, *args, **kwargs)

        monkeypatch.setattr(torch.optim.AdamW, "zero_grad", zero_grad)
        return seen

    return watch
