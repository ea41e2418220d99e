"""Optuna's own test cases for samplers."""

from __future__ import annotations

import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from biotune_optuna.sampler.sampler import BioTuneSampler


@pytest.fixture(params=["paper", "default"])
def sampler(request):
    return lambda: BioTuneSampler(preset=request.param, seed=5)


class TestBasic(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self, sampler):
        return sampler


class TestRelative(RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self, sampler):
        return sampler


class TestSingleObjectiveOnly(SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self, sampler):
        return sampler
