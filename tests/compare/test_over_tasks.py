"""Statistics over tasks: what holds for any scores, and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from biotune_optuna.compare.over_tasks import (
    Matrix,
    components,
    detectable,
    differences,
    ranks,
)
from biotune_optuna.errors import DataError
from tests.kit.rows import make_row, make_rows

SCORE = st.integers(0, 100).map(lambda n: n / 100)


@st.composite
def matrices(draw: st.DrawFn) -> Matrix:
    m = draw(st.integers(2, 4))
    tasks = {}
    for number in range(draw(st.integers(1, 5))):
        repeats = draw(st.integers(1, 4))
        scores = draw(st.lists(st.lists(SCORE, min_size=m, max_size=m), min_size=repeats))
        tasks[f"task {number}"] = np.array(scores[:repeats])
    return Matrix(tuple("abcd"[:m]), tasks)


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_differences_of_any_scores(matrix: Matrix) -> None:
    found = differences(matrix, draws=200)
    turned = Matrix(matrix.methods[::-1], {t: s[:, ::-1] for t, s in matrix.tasks.items()})
    last, first = found[-1], differences(turned, draws=200)[-1]
    assert (last.value, last.wins, last.losses) == (
        pytest.approx(-first.value),
        first.losses,
        first.wins,
    )
    assert (last.low, last.high) == (pytest.approx(-first.high), pytest.approx(-first.low))
    assert last.p == pytest.approx(first.p, nan_ok=True)
    for one in found:
        assert one.worst <= one.value + 1e-12
        assert one.low <= one.high
        assert one.wins + one.losses <= len(matrix.tasks)
        assert one.adjusted >= (0 if math.isnan(one.p) else one.p)


@settings(max_examples=60, deadline=None)
@given(matrices(), st.integers(1, 50))
def test_ranks_of_any_scores(matrix: Matrix, shift: int) -> None:
    found = ranks(matrix, draws=200)
    m = len(matrix.methods)
    assert sum(one.value for one in found) == pytest.approx(m * (m + 1) / 2)
    assert [one.value for one in found] == sorted(one.value for one in found)
    assert sum(one.first for one in found) >= 1 - 1e-9, "ties may be first together"
    for one in found:
        assert 1 <= one.low <= one.high <= m
    # a rank looks at the order alone, task by task
    moved = Matrix(matrix.methods, {t: s + shift for t, s in matrix.tasks.items()})
    assert {one.method: one.value for one in ranks(moved, draws=50)} == pytest.approx(
        {one.method: one.value for one in found}
    )


def test_tasks_weigh_alike_however_many_repeats_they_have() -> None:
    long, short = np.tile([0.6, 0.5], (9, 1)), np.array([[0.5, 0.7]])
    (found,) = differences(Matrix(("a", "b"), {"long": long, "short": short}))
    assert found.value == pytest.approx(-0.05)
    assert (found.wins, found.losses, found.worst) == (1, 1, pytest.approx(-0.2))
    # Without spread within tasks the draws are of tasks alone: both, either twice.
    assert (found.low, found.high) == (pytest.approx(-0.2), pytest.approx(0.1))


def test_the_interval_has_the_width_that_theory_gives() -> None:
    rng = np.random.default_rng(1)
    tasks = {
        str(t): rng.normal([0.02 + rng.normal(0, 0.02), 0.0], 0.01, size=(40, 2)) for t in range(40)
    }
    matrix = Matrix(("a", "b"), tasks)
    (found,) = differences(matrix, draws=4000)
    apart = matrix.means[:, 0] - matrix.means[:, 1]
    # The spread of the means, and once more what they owe to their repeats.
    error = math.sqrt((apart.var() + 2 * 0.01**2 / 40) / 40)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.1)
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.1)


def test_wilcoxon_is_that_of_scipy_and_holm_corrects_it() -> None:
    rng = np.random.default_rng(2)
    tasks = {str(t): rng.normal([0.1, 0.05, 0.0], 0.05, size=(3, 3)) for t in range(9)}
    found = differences(Matrix(("a", "b", "c"), tasks), draws=10)
    for i, one in enumerate(found, 1):
        apart = [float((s[:, 0] - s[:, i]).mean()) for s in tasks.values()]
        assert one.p == pytest.approx(wilcoxon(apart, method="exact").pvalue)
    small, large = sorted(one.p for one in found)
    assert sorted(one.adjusted for one in found) == [
        pytest.approx(min(1, 2 * small)),
        pytest.approx(max(min(1, 2 * small), large)),
    ]


def test_only_repeats_that_all_methods_have_are_compared() -> None:
    rows = make_rows({"biotune": [0.5, 0.6, 0.7], "full": [0.4, 0.5]})
    rows += make_rows({"biotune": [0.9], "lora": [0.1]}, task="other")
    matrix = Matrix.of(rows, ("biotune", "full"))
    assert {task: scores.tolist() for task, scores in matrix.tasks.items()} == {
        "digits-tiny": [[0.5, 0.4], [0.6, 0.5]]
    }
    with pytest.raises(DataError, match="no repeat of any task has all of biotune, prayer"):
        Matrix.of(rows, ("biotune", "prayer"))
    rows.append(make_row("lora", 0, 0.3, split="others"))
    with pytest.raises(DataError, match="repeat 0: not all methods were tested on the same"):
        Matrix.of(rows, ("biotune", "lora"))


def test_what_is_compared_is_what_a_user_gets() -> None:
    rows = [
        make_row("biotune", 0, 0.5, members=5, together=0.75, together_cross_entropy=0.5),
        make_row("full", 0, 0.625, cross_entropy=1.5),
    ]
    assert Matrix.of(rows, ("biotune", "full")).means.tolist() == [[0.75, 0.625]]
    single = Matrix.of(rows, ("biotune", "full"), lambda row: row.score)
    assert single.means.tolist() == [[0.5, 0.625]]
    losses = Matrix.of(rows, ("biotune", "full"), lambda row: -row.delivered_cross_entropy)
    assert losses.means.tolist() == [[-0.5, -1.5]]


def test_what_could_be_seen_follows_from_the_spread() -> None:
    rng = np.random.default_rng(3)
    tasks = {
        str(t): rng.normal([rng.normal(0, 0.03), 0.0], [0.04, 1e-9], size=(20, 2))
        for t in range(400)
    }
    within, between = components(Matrix(("a", "b"), tasks))
    assert within == pytest.approx(0.04, rel=0.05)
    assert between == pytest.approx(0.03, rel=0.1)
    at = detectable(within, between, tasks=9, repeats=5)
    assert detectable(within, between, tasks=9, repeats=10) < at
    assert detectable(within, between, tasks=18, repeats=5) < at
    assert detectable(within, None, tasks=9, repeats=5) < at
    # Tasks that do not seem to differ are still a sample of nine.
    error = 0.04 / math.sqrt(9 * 5)
    assert detectable(0.04, 0.0, tasks=9, repeats=5) == pytest.approx(
        (2.306 + 0.889) * error, rel=1e-3
    )
    # Many tasks: the usual 2.8 standard errors.
    many = detectable(0.04, 0.03, tasks=10_000, repeats=4)
    assert many == pytest.approx(2.802 * math.sqrt((0.03**2 + 0.02**2) / 10_000), rel=1e-3)
