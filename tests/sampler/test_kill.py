"""A study killed at any moment and resumed runs the trials it would have run uninterrupted."""

from __future__ import annotations

import signal

import optuna
import pytest

from biotune_optuna.schema import DIVERGED_KEY, KEPT_MODEL_KEY
from biotune_optuna.study.stale import end_trial
from tests.kit.processes import in_child
from tests.kit.sampler import (
    OPENERS,
    audit,
    copy_database,
    kill_at,
    make_sampler,
    objective,
    on_write,
    open_plain,
    run_until,
    trajectory,
)

TOTAL = 9
# Generation 0 has slots 0-2 and generation 1 slots 3-6: the second window changes generation.
WINDOWS = {"start": (0, 2, 4), "change": (2, 5, 6)}


WANTED = {"gene.b0": 0.25, "gene.b1": 0.75, "gene.threshold": 0.125, "lr": 2e-3}


def load(path, opener="plain", preset="paper"):
    return optuna.create_study(
        study_name="s",
        storage=OPENERS[opener](path),
        sampler=make_sampler(preset),
        direction="maximize",
        load_if_exists=True,
    )


def count_writes(path, opener, preset, trials) -> int:
    """Writes that the next ``trials`` trials make; the database is left alone."""
    copy = path.with_suffix(".count")
    copy_database(path, copy)
    study = load(copy, opener, preset)
    last = 0

    def react(k, _moment):
        nonlocal last
        last = k

    on_write(study._storage, react)
    study.optimize(_objective, n_trials=trials)
    return last


def _objective(trial):
    value = objective(trial)
    trial.report(value / 2, 1)
    return value


def run(path, total, opener="plain", preset="paper"):
    """What a worker does that nobody kills; of killed ones it knows what they left in the file."""
    study = load(path, opener, preset)
    run_until(study, total, _objective)
    return study


def doomed(path, n_trials, k, moment="after", opener="plain", preset="paper"):
    """What a worker does that is killed at its k-th write."""
    study = load(path, opener, preset)
    kill_at(study._storage, k, moment)
    study.optimize(_objective, n_trials=n_trials)


@pytest.mark.parametrize(("opener", "preset"), [("plain", "paper"), ("resilient", "default")])
@pytest.mark.parametrize("window", ["start", "change"])
def test_every_kill_is_survived(tmp_path, window, opener, preset):
    before, after, total = WINDOWS[window]
    whole = tmp_path / "whole.db"
    start = tmp_path / "start.db"
    how = (opener, preset)
    in_child(run, start, before, *how)
    copy_database(start, whole)
    expected = trajectory(run(whole, total, *how))
    assert len(expected) == total
    writes = count_writes(start, opener, preset, after - before)
    assert len(load(start, opener, preset).trials) == before
    assert writes > 9 * (after - before)
    # After one write is before the next: nothing but memory, which dies, changes in between.
    for k, moment in [*((k, "before") for k in range(1, writes + 1)), (writes, "after")]:
        path = tmp_path / f"{k}{moment}.db"
        copy_database(start, path)
        assert in_child(doomed, path, after - before, k, moment, *how) == signal.SIGKILL
        resumed = run(path, total, *how)
        assert trajectory(resumed) == expected, (k, moment)
        audit(resumed)
        path.unlink()


def test_killed_twice_in_a_row(tmp_path):
    expected = tmp_path / "whole.db"
    in_child(run, expected, TOTAL)
    path = tmp_path / "killed.db"
    in_child(run, path, 2)
    for k in (9, 12, 3):
        assert in_child(doomed, path, TOTAL, k) == signal.SIGKILL
    in_child(run, path, TOTAL)
    assert trajectory(load(path)) == trajectory(load(expected))


def study_with_queue(path):
    study = load(path)
    study.enqueue_trial(WANTED, user_attrs={"mine": "yes"})
    return study


def run_with_queue(path):
    run_until(study_with_queue(path), TOTAL, _objective)


def doomed_with_queue(path, k):
    study = study_with_queue(path)
    kill_at(study._storage, k, "after")
    study.optimize(_objective, n_trials=2)


def test_a_killed_enqueued_trial_is_run_again(tmp_path):
    whole = tmp_path / "whole.db"
    in_child(run_with_queue, whole)
    expected = trajectory(load(whole))
    for k in (1, 2, 4, 7, 10):
        path = tmp_path / f"{k}.db"
        assert in_child(doomed_with_queue, path, k) == signal.SIGKILL
        resumed = run(path, TOTAL)
        assert trajectory(resumed) == expected, k
        again = [t for t in resumed.trials if t.value is not None and t.params == WANTED]
        assert [t.user_attrs["mine"] for t in again] == ["yes"]


@pytest.mark.parametrize("own", [True, False])
def test_what_a_dead_trial_came_to_is_not_its_successors(tmp_path, own):
    study = study_with_queue(tmp_path / "study.db")
    if not own:  # Optuna's samplers leave the queue to the storage
        study.sampler = optuna.samplers.RandomSampler(seed=0)
    dead = study.ask()
    dead.set_user_attr(KEPT_MODEL_KEY, {"digest": "a" * 64, "bytes": 1})
    dead.set_user_attr(DIVERGED_KEY, True)
    if own:
        study.sampler.release(dead)
    else:
        assert end_trial(study, study.trials[0], "lost")
    again = study.ask()
    assert again.user_attrs["mine"] == "yes"
    assert {KEPT_MODEL_KEY, DIVERGED_KEY}.isdisjoint(again.user_attrs)


def test_a_stand_in_that_dies_too_is_replaced(tmp_path):
    path = tmp_path / "start.db"
    study = load(path)
    study.enqueue_trial(WANTED)
    study.sampler.release(study.ask())
    for k in range(1, 8):  # the stand-in: created, source, parameters, claim, attributes
        copy = tmp_path / f"{k}.db"
        copy_database(path, copy)
        assert in_child(doomed, copy, 1, k) == signal.SIGKILL
        done = [t.params for t in run(copy, 4).trials if t.value is not None]
        assert done[0] == WANTED
        assert done.count(WANTED) == 1


def ask_and_tell(path, doom=None):
    study = load(path)
    if doom:
        kill_at(study._storage, doom, "before")
    while len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))) < TOTAL:
        trial = study.ask()
        study.tell(trial, _objective(trial))


def test_ask_and_tell_survives_a_kill(tmp_path):
    whole, path = tmp_path / "whole.db", tmp_path / "killed.db"
    in_child(ask_and_tell, whole)
    assert in_child(ask_and_tell, path, 47) == signal.SIGKILL
    in_child(ask_and_tell, path)
    assert trajectory(load(path)) == trajectory(load(whole))


def test_copied_study_goes_on_as_the_original(tmp_path):
    """Running trials of the original hold nothing in the copy, dead or alive."""
    path, copy = tmp_path / "a.db", tmp_path / "b.db"
    study = load(path)
    run_until(study, 4, _objective)
    held = study.ask()
    target = open_plain(copy)
    optuna.copy_study(
        from_study_name="s", from_storage=study._storage, to_storage=target, to_study_name="s"
    )
    copied = optuna.load_study(study_name="s", storage=target, sampler=make_sampler())
    run_until(copied, TOTAL, _objective)
    study.tell(held, _objective(held))
    run_until(study, TOTAL, _objective)
    assert trajectory(copied) == trajectory(study)
    same = load(path)
    optuna.copy_study(
        from_study_name="s", from_storage=same._storage, to_storage=same._storage, to_study_name="c"
    )
    again = optuna.load_study(study_name="c", storage=same._storage, sampler=make_sampler())
    run_until(again, 12, _objective)
    run_until(study, 12, _objective)
    assert trajectory(again) == trajectory(study)
