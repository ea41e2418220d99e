"""A study killed at any moment and resumed runs the trials it would have run uninterrupted."""

from __future__ import annotations

import signal

import optuna
import pytest

from tests.sampler_kit import (
    OPENERS,
    audit,
    copy_database,
    in_child,
    kill_at,
    make_sampler,
    on_write,
    open_plain,
    run_until,
    trajectory,
)

TOTAL = 9
# Generation 0 has slots 0-2 and generation 1 slots 3-6: the second window changes generation.
WINDOWS = {"start": (0, 2, 4), "change": (2, 5, 6)}


def load(path, opener, preset):
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
    told = path.with_suffix(".told")

    def work():
        study = load(copy, opener, preset)
        last = 0

        def react(k, _moment):
            nonlocal last
            last = k

        on_write(study._storage, react)
        study.optimize(_objective, n_trials=trials)
        told.write_text(str(last))

    in_child(work)
    return int(told.read_text())


def _objective(trial):
    from tests.sampler_kit import objective

    value = objective(trial)
    trial.report(value / 2, 1)
    return value


@pytest.mark.parametrize(("opener", "preset"), [("plain", "paper"), ("resilient", "default")])
@pytest.mark.parametrize("window", ["start", "change"])
def test_every_kill_is_survived(tmp_path, window, opener, preset):
    before, after, total = WINDOWS[window]
    whole = tmp_path / "whole.db"
    start = tmp_path / "start.db"

    def run(path, total):
        return lambda: run_until(load(path, opener, preset), total, _objective)

    in_child(run(start, before))
    copy_database(start, whole)
    in_child(run(whole, total))
    expected = trajectory(load(whole, opener, preset))
    assert len(expected) == total
    writes = count_writes(start, opener, preset, after - before)
    assert len(load(start, opener, preset).trials) == before
    assert writes > 9 * (after - before)
    # After one write is before the next: nothing but memory, which dies, changes in between.
    for k, moment in [*((k, "before") for k in range(1, writes + 1)), (writes, "after")]:
        path = tmp_path / f"{k}{moment}.db"
        copy_database(start, path)

        def doomed(path=path, k=k, moment=moment):
            study = load(path, opener, preset)
            kill_at(study._storage, k, moment)
            study.optimize(_objective, n_trials=after - before)

        assert in_child(doomed) == signal.SIGKILL
        in_child(run(path, total))
        resumed = load(path, opener, preset)
        assert trajectory(resumed) == expected, (k, moment)
        audit(resumed)
        path.unlink()


def test_killed_twice_in_a_row(tmp_path):
    expected = tmp_path / "whole.db"
    in_child(lambda: run_until(load(expected, "plain", "paper"), TOTAL, _objective))
    path = tmp_path / "killed.db"
    in_child(lambda: run_until(load(path, "plain", "paper"), 2, _objective))
    for k in (9, 12, 3):

        def doomed(k=k):
            study = load(path, "plain", "paper")
            kill_at(study._storage, k, "after")
            run_until(study, TOTAL, _objective)

        assert in_child(doomed) == signal.SIGKILL
    in_child(lambda: run_until(load(path, "plain", "paper"), TOTAL, _objective))
    assert trajectory(load(path, "plain", "paper")) == trajectory(load(expected, "plain", "paper"))


def test_a_killed_enqueued_trial_is_run_again(tmp_path):
    wanted = {"gene.b0": 0.25, "gene.b1": 0.75, "gene.threshold": 0.125, "lr": 2e-3}

    def study_with_queue(path):
        study = load(path, "plain", "paper")
        study.enqueue_trial(wanted, user_attrs={"mine": "yes"})
        return study

    whole = tmp_path / "whole.db"
    in_child(lambda: run_until(study_with_queue(whole), TOTAL, _objective))
    expected = trajectory(load(whole, "plain", "paper"))
    for k in (1, 2, 4, 7, 10):
        path = tmp_path / f"{k}.db"

        def doomed(path=path, k=k):
            study = study_with_queue(path)
            kill_at(study._storage, k, "after")
            study.optimize(_objective, n_trials=2)

        assert in_child(doomed) == signal.SIGKILL
        in_child(lambda path=path: run_until(load(path, "plain", "paper"), TOTAL, _objective))
        resumed = load(path, "plain", "paper")
        assert trajectory(resumed) == expected, k
        again = [t for t in resumed.trials if t.value is not None and t.params == wanted]
        assert [t.user_attrs["mine"] for t in again] == ["yes"]


def test_a_stand_in_that_dies_too_is_replaced(tmp_path):
    wanted = {"gene.b0": 0.25, "gene.b1": 0.75, "gene.threshold": 0.125, "lr": 2e-3}
    path = tmp_path / "start.db"
    study = load(path, "plain", "paper")
    study.enqueue_trial(wanted)
    study.sampler.release(study.ask())
    for k in range(1, 8):  # the stand-in: created, source, parameters, claim, attributes
        copy = tmp_path / f"{k}.db"
        copy_database(path, copy)

        def doomed(copy=copy, k=k):
            study = load(copy, "plain", "paper")
            kill_at(study._storage, k, "after")
            study.optimize(_objective, n_trials=1)

        assert in_child(doomed) == signal.SIGKILL
        in_child(lambda copy=copy: run_until(load(copy, "plain", "paper"), 4, _objective))
        trials = load(copy, "plain", "paper").trials
        done = [t.params for t in trials if t.value is not None]
        assert done[0] == wanted
        assert done.count(wanted) == 1


def test_ask_and_tell_survives_a_kill(tmp_path):
    whole, path = tmp_path / "whole.db", tmp_path / "killed.db"

    def loop(path, total, doom=None):
        study = load(path, "plain", "paper")
        if doom:
            kill_at(study._storage, doom, "before")
        while len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))) < total:
            trial = study.ask()
            study.tell(trial, _objective(trial))

    in_child(lambda: loop(whole, TOTAL))
    assert in_child(lambda: loop(path, TOTAL, doom=47)) == signal.SIGKILL
    in_child(lambda: loop(path, TOTAL))
    assert trajectory(load(path, "plain", "paper")) == trajectory(load(whole, "plain", "paper"))


def test_copied_study_goes_on_as_the_original(tmp_path):
    """Running trials of the original hold nothing in the copy, dead or alive."""
    path, copy = tmp_path / "a.db", tmp_path / "b.db"
    study = load(path, "plain", "paper")
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
    same = load(path, "plain", "paper")
    optuna.copy_study(
        from_study_name="s", from_storage=same._storage, to_storage=same._storage, to_study_name="c"
    )
    again = optuna.load_study(study_name="c", storage=same._storage, sampler=make_sampler())
    run_until(again, 12, _objective)
    run_until(study, 12, _objective)
    assert trajectory(again) == trajectory(study)
