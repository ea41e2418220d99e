"""Statistics against numbers worked out by hand or published."""

from __future__ import annotations

import math

import pytest
from scipy.stats import ttest_1samp, wilcoxon

from biotune_optuna.compare.statistics import (
    corrected_t,
    holm,
    mean_interval,
    mean_ranks,
    signed_rank,
)


def test_without_correction_it_is_students_t() -> None:
    d = [0.02, 0.01, 0.03, -0.01, 0.02]
    ours, theirs = corrected_t(d, ratio=0.0), ttest_1samp(d, 0.0)
    assert ours.value == pytest.approx(0.014)
    assert ours.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))


def test_the_correction_by_hand() -> None:
    # k = 4, mean 2, s² = (1 + 1 + 1 + 1) / 3; n_test / n_train = 1/4:
    # error² = (1/4 + 1/4) · 4/3 = 2/3, t = 2 / √(2/3) = √6. With three degrees of freedom
    # p = 1 − 2/π (arctan u + u / (1 + u²)), u = t/√3 = √2: arctan √2 = 0.955317, √2/3 = 0.471405
    effect = corrected_t([1.0, 3.0, 1.0, 3.0], ratio=0.25)
    assert effect.value == 2.0
    assert effect.p == pytest.approx(1 - 2 / math.pi * (0.955317 + 0.471405), abs=1e-6)
    half = 3.182446 * math.sqrt(2 / 3)  # the 97.5 % quantile of t with 3 degrees of freedom
    assert (effect.low, effect.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    assert effect.n == 4


def test_the_correction_widens() -> None:
    d = [0.02, 0.01, 0.03, -0.01, 0.02]
    plain, corrected = corrected_t(d, ratio=0.0), corrected_t(d, ratio=0.5)
    # (1/5 + 1/2) / (1/5) = 3.5
    assert corrected.high - corrected.value == pytest.approx(
        math.sqrt(3.5) * (plain.high - plain.value)
    )
    assert corrected.p > plain.p


def test_equal_differences_have_no_spread() -> None:
    for difference, p in ((0.0, 1.0), (0.1, math.nan)):
        effect = corrected_t([difference] * 3, ratio=0.3)
        assert effect.value == pytest.approx(difference)
        assert math.isnan(effect.low)
        assert effect.p == pytest.approx(p, nan_ok=True)


def test_one_repeat_has_no_interval() -> None:
    for test in (signed_rank, lambda d: corrected_t(d, ratio=0.1)):
        effect = test([0.5])
        assert effect.value == 0.5
        assert math.isnan(effect.low)
        assert math.isnan(effect.p)


def test_mean_interval_asks_no_p() -> None:
    found = mean_interval([0.8, 0.9, 1.0])
    assert found.value == pytest.approx(0.9)
    assert found.high == pytest.approx(0.9 + 4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    assert math.isnan(found.p)


def test_signed_rank_by_hand() -> None:
    # all five positive: of the 32 sign patterns, two are as extreme
    assert signed_rank([1.0, 2.0, 3.0, 4.0, 5.0]).p == pytest.approx(2 / 32)
    # ranks 1-4, the negative one has rank 2: patterns with a rank sum of at most 2 are {}, {1},
    # {2}: 3 of 16, twice
    assert signed_rank([1.0, -2.0, 3.0, 4.0]).p == pytest.approx(6 / 16)
    assert signed_rank([0.0, 0.0]).p == 1.0


def test_signed_rank_agrees_with_scipy() -> None:
    d = [0.8, -0.3, 1.9, 2.4, 0.1, -0.7, 1.1, 3.0, 0.6, -0.2]
    assert signed_rank(d).p == pytest.approx(wilcoxon(d, method="exact").pvalue)


def test_ties_and_zeros_by_hand() -> None:
    # the zero is left out; |d| = 1, 1, 2 have ranks 1.5, 1.5, 3; the negative sum is 1.5:
    # patterns with a sum of at most 1.5: {}, {1.5}, {1.5'}: 3 of 8, twice
    assert signed_rank([0.0, 1.0, -1.0, 2.0]).p == pytest.approx(6 / 8)


def test_hodges_lehmann_by_hand() -> None:
    # pairwise means of 1, 2, 6: 1, 1.5, 2, 3.5, 4, 6
    effect = signed_rank([1.0, 2.0, 6.0])
    assert effect.value == pytest.approx(2.75)
    assert math.isnan(effect.low), "no interval of three repeats holds 95 %"
    d = [1.0, 2.0, 6.0, 7.0, 9.0, 12.0]  # six: the range of the pairwise means
    assert signed_rank(d)[1:3] == (1.0, 12.0)
    # n = 10: tables give 8 as the critical value, so the ninth smallest of 55 is the bound
    d = [float(2**i) for i in range(10)]
    walsh = sorted((d[i] + d[j]) / 2 for i in range(10) for j in range(i, 10))
    effect = signed_rank(d)
    assert (effect.low, effect.high) == (walsh[8], walsh[-9])


def test_holm_by_hand() -> None:
    # sorted .01, .02, .03, .04 times 4, 3, 2, 1 are .04, .06, .06, .04, made monotone
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([math.nan, 0.01]) == pytest.approx([1.0, 0.02])
    assert holm([]) == []


def test_mean_ranks_by_hand() -> None:
    tasks = [
        {"a": 0.9, "b": 0.8, "c": 0.8, "only here": 1.0},
        {"a": 0.5, "b": 0.7, "c": 0.6},
    ]
    assert mean_ranks(tasks) == {"a": 2.0, "b": 1.75, "c": 2.25}
    assert mean_ranks([]) == {}
