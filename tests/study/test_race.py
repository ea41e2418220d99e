"""Several networks side by side: who gets how many trials, and who goes on."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biotune_optuna.errors import StudyError
from biotune_optuna.study.race import LEAST, Race, Raced, quotas


@pytest.mark.parametrize(
    ("total", "networks", "expected"),
    [(60, 2, [15, 45]), (60, 3, [6, 16, 38]), (60, 4, [5, 15, 35])],
)
def test_trials_move_towards_those_that_are_left(
    total: int, networks: int, expected: list[int]
) -> None:
    assert quotas(total, networks) == expected


@given(networks=st.integers(2, 12), more=st.integers(0, 300))
def test_no_trial_is_lost_and_nobody_is_judged_by_too_few(networks: int, more: int) -> None:
    rounds = 1 + math.ceil(math.log2(networks))
    total = LEAST * rounds * networks + more
    found = quotas(total, networks)
    assert found[0] >= LEAST
    assert found == sorted(found)
    taken, alive = 0, networks
    for quota in found[:-1]:
        taken += (alive - (alive + 1) // 2) * quota
        alive = (alive + 1) // 2
    assert alive == 1
    assert taken + found[-1] == total


def test_too_few_trials_are_refused() -> None:
    with pytest.raises(StudyError, match="35 trials are too few for 3 networks; give at least 36"):
        quotas(35, 3)


def race(*values: float) -> Race:
    return Race(networks=tuple(Raced(name=f"n{i}", value=v) for i, v in enumerate(values)))


def test_the_better_half_goes_on_and_fresh_seeds_count_most() -> None:
    first = race(0.7, 0.9, math.nan)
    second = first.after(first.alive)
    assert [one.name for one in second.alive] == ["n0", "n1"]
    assert [one.left for one in second.networks] == [0, 0, 1]
    fresh = [
        Raced(name="n0", value=0.7, fresh=0.85, seconds=3.0),
        Raced(name="n1", value=0.9, fresh=0.8, seconds=4.0),
    ]
    third = second.after(fresh)
    assert [one.name for one in third.alive] == ["n0"]
    assert [one.left for one in third.networks] == [0, 2, 1]
    assert third.cost.seconds == 4.0, "of those that were left behind"


def test_a_race_is_kept_as_json() -> None:
    kept = race(0.5, math.nan).after(race(0.5, math.nan).alive)
    read = Race.of(json.loads(json.dumps(kept.to_dict(), allow_nan=False)))
    assert (read.rounds, [one.left for one in read.networks]) == (1, [0, 1])
    assert math.isnan(read.networks[1].value)
    assert not Race.of(None)
