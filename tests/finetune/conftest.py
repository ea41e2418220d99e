from __future__ import annotations

import numpy as np
import pytest
import torch

from .kit import make_images


@pytest.fixture
def images():
    return make_images()


@pytest.fixture
def split(images):
    order = np.random.default_rng(0).permutation(len(images))
    return order[:40], order[40:]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
