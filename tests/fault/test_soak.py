"""Eight workers, killed and cut off all the time, on a server that is restarted."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from tests.fault.soak import Outcome, Plan, run
from tests.kit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    postgres = Postgres()
    yield postgres
    postgres.close()


def soak(server: Postgres, folder: Path, loop: str) -> tuple[Plan, Outcome]:
    plan = Plan(url=server.create_database(f"soak-{loop}"), log=str(folder / "log"), loop=loop)
    outcome = run(plan, server)
    print(json.dumps(asdict(outcome)))
    return plan, outcome


def test_nothing_is_lost(server: Postgres, tmp_path: Path) -> None:
    plan, outcome = soak(server, tmp_path, "ours")
    assert outcome.in_time
    assert (outcome.kills, outcome.restarts, outcome.cuts) == (40, 5, 20)
    # A value may come in late from a worker wrongly taken for dead; nothing may be missing.
    assert outcome.finished == plan.n_trials
    assert outcome.stuck == 0
    assert outcome.crashes == 0
    assert outcome.values_lost == 0
    assert outcome.values_wrong == 0
    assert outcome.evaluated_twice == 0
    assert outcome.slots_unfilled == 0


def test_optuna_alone_is_measured_beside_it(server: Postgres, tmp_path: Path) -> None:
    """Reports how Optuna's own loop fares; asserts only that the disturbance was the same."""
    _, outcome = soak(server, tmp_path, "optuna")
    assert outcome.kills + outcome.restarts + outcome.cuts > 0
