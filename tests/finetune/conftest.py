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


@pytest.fixture
def rates(monkeypatch):
    """Rates by parameter name at each step, read from the optimiser."""
    seen = []
    take = torch.optim.Optimizer.zero_grad

    def watch(trainer):
        names = {id(p): n for n, p in trainer.model.named_parameters()}

        def zero_grad(self, *args, **kwargs):
            seen.append({names[id(p)]: g["lr"] for g in self.param_groups for p in g["params"]})
            return take(self, *args, **kwargs)

        monkeypatch.setattr(torch.optim.AdamW, "zero_grad", zero_grad)
        return seen

    return watch
