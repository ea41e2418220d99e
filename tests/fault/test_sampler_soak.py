"""Seeded random kills of workers, in numbers that the ordinary suite has no time for."""

from __future__ import annotations

import signal
import time

import numpy as np
import optuna
import pytest

from biotune_optuna.sampler.claims import study_config
from tests.kit.processes import in_child, start_child
from tests.kit.sampler import (
    FINISHED,
    OPENERS,
    audit,
    kill_at,
    make_sampler,
    n_finished,
    objective,
    run_until,
    trajectory,
)


def load(path, opener, preset):
    return optuna.create_study(
        study_name="s",
        storage=OPENERS[opener](path),
        sampler=make_sampler(preset, population_size=5),
        direction="maximize",
        load_if_exists=True,
    )


def run(path, opener, preset, total):
    run_until(load(path, opener, preset), total)


def doomed(path, opener, preset, total, k, moment):
    study = load(path, opener, preset)
    kill_at(study._storage, k, moment)
    run_until(study, total)


def slow(trial):
    value = objective(trial)
    time.sleep(0.02)
    return value


def run_slowly(path, preset, total):
    run_until(load(path, "resilient", preset), total, slow)


@pytest.mark.parametrize(("opener", "preset"), [("plain", "paper"), ("resilient", "default")])
@pytest.mark.parametrize("seed", range(3))
def test_one_worker_killed_again_and_again(tmp_path, opener, preset, seed):
    total = 40
    whole, path = tmp_path / "whole.db", tmp_path / "killed.db"
    in_child(run, whole, opener, preset, total)
    rng = np.random.default_rng(seed)
    kills = 0
    while True:
        k, moment = int(rng.integers(1, 60)), ("before", "after")[int(rng.integers(2))]
        if in_child(doomed, path, opener, preset, total, k, moment) != signal.SIGKILL:
            break
        kills += 1
    assert kills >= 5
    assert trajectory(load(path, opener, preset)) == trajectory(load(whole, opener, preset))


@pytest.mark.parametrize("preset", ["paper", "default"])
@pytest.mark.parametrize("seed", range(2))
def test_three_workers_killed_at_random(tmp_path, preset, seed):
    """No slot is filled twice, none is lost, and nobody stands still."""
    total, kills_wanted = 60, 15
    path = tmp_path / "s.db"
    load(path, "resilient", preset)
    rng = np.random.default_rng(seed)
    workers = [start_child(run_slowly, path, preset, total) for _ in range(3)]
    kills = 0
    deadline = time.monotonic() + 300
    while kills < kills_wanted and time.monotonic() < deadline:
        time.sleep(float(rng.uniform(0.1, 0.6)))
        victim = int(rng.integers(3))
        workers[victim].kill()
        workers[victim].join()
        kills += 1
        workers[victim] = start_child(run_slowly, path, preset, total)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    study = load(path, "resilient", preset)
    assert n_finished(study) >= total
    filled = audit(study)
    # A generation is closed only by as many individuals as it has slots (P + E = 6 from 1 on).
    last = max(generation for generation, _ in filled)
    finished = {t.number for t in study.get_trials(states=FINISHED)}
    n_initial = len(study_config(study)["initial"])
    for generation in range(last):
        size = sum(g == generation for g, _ in filled)
        assert size >= (max(5, n_initial) if generation == 0 else 6), generation
    assert set(filled.values()) <= finished
    # A dead worker's trial is failed by the next trial; only the last ones' may still stand.
    assert sum(t.state == optuna.trial.TrialState.RUNNING for t in study.trials) <= 3
