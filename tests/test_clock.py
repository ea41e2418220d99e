"""A forecast adds up, and a plan fits into its time and never gets worse with more of it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biotune_optuna.clock import (
    FINAL_SHARE,
    MARGIN,
    PROBE_SHARE,
    SEARCH_SHARE,
    Plan,
    Speed,
    Work,
    _loss,
    choose_plan,
    epochs_up_to,
    evidence_that_fits,
    forecast,
    forecast_of,
    full_training,
    least_time,
    measured_pace,
    measured_trial,
    side_for,
    sides_up_to,
    training_share,
    trainings_after,
)

works = st.builds(
    Work,
    n_train=st.integers(10, 5000),
    n_val=st.integers(5, 1000),
    n_test=st.integers(0, 2000),
    runs=st.integers(1, 3),
)
speeds = st.builds(
    lambda fixed, pixel, share: Speed((fixed, pixel), (fixed * share, pixel * share)),
    st.floats(1e-5, 1e-2),
    st.floats(1e-9, 1e-5),
    st.floats(0.2, 0.5),
)
seconds = st.floats(10, 1e5)
CHOICE = {"sides": sides_up_to(224), "epochs": epochs_up_to(10)}


@given(seconds, works, speeds)
def test_a_plan_fits_or_there_is_none(time: float, work: Work, speed: Speed) -> None:
    plan = choose_plan(time, work, speed, **CHOICE)
    least = least_time(work, speed, **CHOICE)
    if plan is None:
        assert least > time
    else:
        assert forecast(plan, work, speed).total <= MARGIN * time
        assert least <= time * (1 + 1e-9)
        assert plan.image_size in CHOICE["sides"]
        assert plan.epochs in CHOICE["epochs"]


@given(seconds, st.floats(1, 50), works, speeds)
def test_more_time_is_never_worse(time: float, more: float, work: Work, speed: Speed) -> None:
    short = choose_plan(time, work, speed, **CHOICE)
    long = choose_plan(time * more, work, speed, **CHOICE)
    if short is not None:
        assert long is not None
        assert _loss(long, 224, 10, 60, 1) <= _loss(short, 224, 10, 60, 1)


@given(works, speeds)
def test_the_least_time_is_enough(work: Work, speed: Speed) -> None:
    assert choose_plan(least_time(work, speed, **CHOICE), work, speed, **CHOICE) is not None


@given(works, speeds)
def test_with_all_the_time_nothing_is_given_up(work: Work, speed: Speed) -> None:
    plan = choose_plan(1e12, work, speed, **CHOICE, members=(1, 3))
    assert plan == Plan(image_size=224, epochs=10, trials=60, members=3)
    assert _loss(plan, 224, 10, 60, 3) == 0


@given(works, speeds, st.sampled_from(["image_size", "epochs", "trials", "n_runs", "members"]))
def test_more_of_anything_takes_longer(work: Work, speed: Speed, what: str) -> None:
    plan = Plan(image_size=128, epochs=6, trials=20)
    richer = dataclasses.replace(plan, **{what: getattr(plan, what) * 2})
    assert forecast(richer, work, speed).total > forecast(plan, work, speed).total


@given(seconds, works, st.floats(0.01, 100), st.floats(0.01, 100))
def test_evidence_after_the_search_fits_or_is_the_least(
    time: float, work: Work, full: float, trial: float
) -> None:
    plan = Plan(image_size=128, epochs=6, trials=20)
    found = evidence_that_fits(time, plan, work, full=full, trial=trial, members=[1, 3])
    after = forecast_of(found, work, full, trial=trial, done=20).after
    least = (found.top_k, found.n_runs, found.rates, found.members) == (1, 1, 2, 1)
    assert after <= time or least


def test_the_parts_of_a_forecast_by_hand() -> None:
    speed, work = Speed((0.0, 1e-4), (0.0, 0.5e-4)), Work(100, 40, rivals=("full",))
    plan = Plan(image_size=10, epochs=10, trials=4, top_k=1, n_runs=2, rates=3)
    full = full_training(plan, work, speed)
    assert full == pytest.approx(0.9 * 10 * (100 * 1e-2 + 40 * 0.5e-2))
    told, repeat = forecast_of(plan, work, full, trial=5.0, done=1), SEARCH_SHARE * full
    assert told.search == 3 * 5.0
    assert told.confirmation == pytest.approx(4 * full + 2 * (full + repeat))
    assert told.final == pytest.approx(FINAL_SHARE * 1.4 * repeat)  # no test, so the winner alone
    assert told.total == told.search + told.after


def test_what_is_left_after_the_search_is_counted_training_by_training() -> None:
    plan = Plan(image_size=64, epochs=5, trials=4, top_k=1, n_runs=2, rates=1, members=2)
    after = trainings_after(plan, Work(100, 0, n_test=9), 10.0)
    probe, recipe = PROBE_SHARE * 10, SEARCH_SHARE * 10
    assert after.tuned == [10.0, 10.0]
    assert after.repeated == [recipe, recipe, 10.0, 10.0, probe, probe]
    test = 10.0 * 9 / (0.9 * 5 * 3 * 100)  # nine looks, and a training is as long as three
    last = [FINAL_SHARE * cost + test for cost in (10.0, probe, recipe, recipe)]
    assert after.final == pytest.approx(last)
    told = forecast_of(plan, Work(100, 0, n_test=9), 10.0, trial=5.0)
    assert told.confirmation + told.final == pytest.approx(sum(after.left(0, 12)))
    assert after.left(9, 12) == pytest.approx(last[1:])
    assert after.left(0, 13)[:3] == [10.0] * 3, "a rival tried one rate more"
    assert after.left(0, 11)[:2] == [10.0, recipe], "or one less"
    assert after.left(12, 12) == []


def test_a_recipe_costs_what_it_trains() -> None:
    full, probe = [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]
    assert training_share(full, 9, 10) == pytest.approx(1)
    assert training_share(probe, 9, 10) < 0.3
    assert training_share([0.0, 1.0, 1.0, 1.0], 9, 10) < training_share([1, 0, 1, 1], 9, 10) < 1
    assert training_share(full, 4.5, 10) == pytest.approx(0.5), "an early stop"


def test_the_pace_follows_what_was_measured() -> None:
    assert measured_pace(0.0, []) == 1
    assert measured_pace(30.0, [10.0]) == pytest.approx(35 / 15)
    assert measured_pace(90.0, [10.0] * 3) == pytest.approx(3, rel=0.1)


def test_workers_share_the_search_alone() -> None:
    plan, full = Plan(image_size=64, epochs=5, trials=12), 10.0
    alone, four = (forecast_of(plan, Work(50, 20, workers=n), full) for n in (1, 4))
    assert four.search == alone.search / 4
    assert four.after == alone.after


def test_trials_that_are_over_outweigh_what_was_expected() -> None:
    assert measured_trial([], 4.0) == 4.0
    assert measured_trial([7.0], 4.0) == 5.0
    assert measured_trial([16.0], 4.0, n=2) == 6.0
    assert measured_trial([8.0] * 98, 4.0) == pytest.approx(8.0, rel=0.02)


@pytest.mark.parametrize(
    ("own", "median", "side"),
    [(224, 500, 224), (224, 8, 64), (224, 40, 96), (224, 112, 224), (48, 10, 48), (299, 90, 192)],
)
def test_images_are_not_blown_up_far(own: int, median: int, side: int) -> None:
    assert side_for(own, median) == side


def test_choices() -> None:
    assert sides_up_to(224) == [64, 96, 128, 160, 192, 224]
    assert sides_up_to(48) == [48]
    assert epochs_up_to(10) == [3, 4, 5, 6, 8, 10]
    assert epochs_up_to(2) == [2]
