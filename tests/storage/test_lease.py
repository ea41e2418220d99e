"""Leases expire by the observer's own clock, and only for holders it cannot see."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from biotune_optuna.schema import HOLDER_KEY, LEASE_KEY
from biotune_optuna.storage.holder import Holder, current_holder
from biotune_optuna.storage.lease import LeaseWatch, read_holder


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def attrs(holder: Holder | None, lease: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {} if holder is None else {HOLDER_KEY: [holder.to_str(), "token"]}
    return found if lease is None else {**found, LEASE_KEY: lease}


ELSEWHERE = dataclasses.replace(current_holder(), host="elsewhere")


def looks_until_lost(watch: LeaseWatch, clock: Clock, step: float, holder: Holder | None) -> float:
    start = clock.now
    for _ in range(100):
        if watch.is_lost(1, attrs(holder)):
            return clock.now - start
        clock.now += step
    raise AssertionError("never lost")


@pytest.mark.parametrize("holder", [ELSEWHERE, None])
def test_an_unchanged_counter_expires_after_the_lease(holder: Holder | None) -> None:
    clock = Clock()
    watch = LeaseWatch(seconds=60, clock=clock)
    assert looks_until_lost(watch, clock, 5, holder) == 60


def test_a_raised_counter_never_expires() -> None:
    clock = Clock()
    watch = LeaseWatch(seconds=60, clock=clock)
    for beat in range(50):
        assert not watch.is_lost(1, attrs(ELSEWHERE, beat // 3))
        clock.now += 15


def test_an_hour_without_a_look_does_not_count_as_an_hour_unchanged() -> None:
    clock = Clock()
    watch = LeaseWatch(seconds=60, clock=clock)
    assert not watch.is_lost(1, attrs(ELSEWHERE, 7))
    clock.now += 3600  # nobody could reach the database, the holder neither
    assert not watch.is_lost(1, attrs(ELSEWHERE, 7))
    assert not watch.is_lost(1, attrs(ELSEWHERE, 8))


def test_local_holders_are_known_at_once_and_living_ones_are_never_lost() -> None:
    clock = Clock()
    watch = LeaseWatch(seconds=60, clock=clock)
    mine = current_holder()
    dead = dataclasses.replace(mine, started=mine.started - 1)
    assert watch.is_lost(1, attrs(dead))
    for _ in range(20):
        assert not watch.is_lost(2, attrs(mine))
        clock.now += 15


def test_forgotten_trials_start_anew() -> None:
    clock = Clock()
    watch = LeaseWatch(seconds=60, clock=clock)
    for _ in range(4):
        watch.is_lost(1, attrs(ELSEWHERE))
        clock.now += 15
    watch.keep_only([2])
    assert not watch.is_lost(1, attrs(ELSEWHERE))


@pytest.mark.parametrize("value", [None, 3, [], ["nonsense", "t"], {"a": 1}, [None]])
def test_strange_attributes_name_nobody(value: object) -> None:
    assert read_holder({HOLDER_KEY: value}) is None
