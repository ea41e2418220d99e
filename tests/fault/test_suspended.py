"""Workers that are suspended for longer than every lock's grace, wherever they just are."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from tests.fault.soak import Plan, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", ["study.log", "study.db"])
def test_nothing_is_lost(tmp_path: Path, kind: str) -> None:
    plan = Plan(
        url=str(tmp_path / kind),
        log=str(tmp_path / "log"),
        n_trials=60,
        n_workers=4,
        kills=2,
        restarts=0,
        cuts=0,
        suspensions=6,
    )
    outcome = run(plan, None)
    print(json.dumps(asdict(outcome)))
    assert outcome.in_time
    assert outcome.kills == 2
    assert outcome.suspensions >= 3  # where most sleep, the last stays awake
    assert outcome.finished == plan.n_trials
    assert outcome.stuck == 0
    assert outcome.crashes == 0
    assert outcome.values_lost == 0
    assert outcome.values_wrong == 0
    assert outcome.evaluated_twice == 0
    assert outcome.slots_unfilled == 0
