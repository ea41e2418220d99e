"""Optuna's distributions as numbers in [0, 1]."""

from __future__ import annotations

import math

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from biotune_optuna.sampler import codec

DISTRIBUTIONS = {
    "integers": (IntDistribution(-3, 4), range(-3, 5)),
    "every third integer": (IntDistribution(1, 10, step=3), (1, 4, 7, 10)),
    "integers on a log scale": (IntDistribution(1, 300, log=True), range(1, 301)),
    "a grid": (FloatDistribution(0.0, 1.0, step=0.25), (0.0, 0.25, 0.5, 0.75, 1.0)),
    "choices": (CategoricalDistribution(["a", None, 3.5]), ("a", None, 3.5)),
}


@pytest.mark.parametrize(("distribution", "values"), DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_every_value_has_a_number_that_stands_for_it(distribution, values):
    units = [codec.encode(distribution, value) for value in values]
    assert units == sorted(units)
    assert [codec.decode(distribution, unit) for unit in units] == list(values)
    assert codec.decode(distribution, 0.0) == values[0]
    assert codec.decode(distribution, 1.0) == values[-1]


@pytest.mark.parametrize("unit", [0.0, 0.1, 1 / 3, 1.0])
def test_a_plain_gene_is_kept_to_the_last_bit(unit):
    distribution = FloatDistribution(0.0, 1.0)
    assert codec.encode(distribution, unit) == codec.decode(distribution, unit) == unit


def test_a_float_on_a_log_scale_has_its_middle_in_the_middle():
    distribution = FloatDistribution(1e-5, 1e-1, log=True)
    assert codec.decode(distribution, 0.5) == pytest.approx(1e-3)
    assert codec.encode(distribution, 1e-2) == pytest.approx(0.75)


def test_each_integer_on_a_log_scale_has_the_share_of_its_rounding():
    """The first and the last too: from half an integer below to half a one above."""
    distribution = IntDistribution(1, 4, log=True)
    edges = [math.log((value - 0.5) / 0.5) / math.log(4.5 / 0.5) for value in range(1, 6)]
    assert (edges[0], edges[-1]) == (0.0, 1.0)
    for value, low, high in zip(range(1, 5), edges, edges[1:], strict=False):
        assert codec.decode(distribution, low + 1e-9) == value
        assert codec.decode(distribution, high - 1e-9) == value


def test_what_does_not_fit_has_no_genes():
    space = {"kind": CategoricalDistribution(["a", "b"]), "x": FloatDistribution(0.0, 1.0)}
    assert codec.to_unit(space, {"kind": "b", "x": 0.5}).tolist() == [0.75, 0.5]
    assert codec.to_unit(space, {"kind": "c", "x": 0.5}) is None
    assert codec.to_unit(space, {"kind": "a"}) is None
