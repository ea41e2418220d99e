"""BioTuneSampler: threads and processes at one study."""

from __future__ import annotations

import copy
import itertools
import threading
import time

import optuna
import pytest
from optuna.trial import TrialState

from biotune_optuna.errors import StudyError
from biotune_optuna.sampler.claims import Claim
from biotune_optuna.sampler.sampler import slot_of
from tests.kit.sampler import (
    FINISHED,
    OPENERS,
    PRESETS,
    assert_no_accidental_repeats,
    audit,
    copy_database,
    make_sampler,
    make_space,
    make_study,
    n_slots,
    objective,
    on_write,
    open_plain,
    run_until,
    trajectory,
)


@pytest.mark.parametrize("preset", PRESETS)
def test_n_jobs_holds_no_slot_twice_and_loses_none(preset):
    study = make_study(preset, population_size=6, n_elites=2, grace_period=30)
    pauses = itertools.cycle([0.0, 0.002, 0.0, 0.011, 0.004])

    def slow(trial):
        value = objective(trial)
        time.sleep(next(pauses))
        return value

    study.optimize(slow, n_trials=80, n_jobs=4)
    assert all(t.state == TrialState.COMPLETE for t in study.trials)
    filled = audit(study)
    counts = n_slots(study)
    last = max(counts)
    for generation in range(last):
        planned = {index for g, index in filled if g == generation}
        size = 6 if generation == 0 else 8
        if preset == "paper":
            assert set(range(size)) <= planned
            assert counts[generation] <= size + 3, "never more extras than other workers"
    assert_no_accidental_repeats(study)


def test_what_others_evaluate_is_believed_when_the_next_is_bred():
    """Where somebody is at work, there is less to learn: the next genome is another one."""

    def bred(beside=None):
        study = make_study("default", population_size=4, n_elites=0, reevaluations=0)
        study.optimize(objective, n_trials=14)
        if beside is not None:
            study.enqueue_trial(beside)
            running = study.ask()
            assert study.trials[running.number].state == TrialState.RUNNING
        following = study.ask()
        assert slot_of(following).role == "offspring"
        return make_space().suggest(following).params

    alone = bred()
    near = alone | {"lr": 1.001 * alone["lr"]}
    assert bred() == alone
    assert bred(beside=near) != alone


def test_nobody_waits_at_the_end_of_a_generation():
    study = make_study(population_size=4)
    held = [study.ask() for _ in range(4)]
    extra = study.ask()
    assert slot_of(extra).role == "extra"
    assert (slot_of(extra).generation, slot_of(extra).index) == (0, 4)
    for trial in (*held[:3], extra):
        study.tell(trial, objective(trial))
    # Four individuals have finished: generation 1 opens without the straggler.
    opener = study.ask()
    assert slot_of(opener).generation == 1
    opening = Claim.of(study.trials[opener.number]).opening
    assert set(opening.population) == {0, 1, 2, extra.number}
    assert opening.unfinished == ((3, 3),)
    # The straggler competes in the population that is current when it finishes.
    study.tell(held[3], objective(held[3]) + 5)
    study.tell(opener, objective(opener))
    study.optimize(objective, n_trials=5)
    later = [t for t in study.trials if t.number > opener.number and Claim.of(t).opening]
    assert Claim.of(later[0]).generation == 2
    assert Claim.of(later[0]).opening.population[0] == 3


def test_a_half_of_an_exploitation_pair_is_enough():
    study = make_study()
    study.optimize(objective, n_trials=3)
    half = study.ask()  # stays away
    other = study.ask()
    assert [slot_of(t).role for t in (half, other)] == ["exploit", "exploit"]
    study.tell(other, objective(other) + 7)
    study.optimize(objective, n_trials=3)
    opener = study.ask()
    assert slot_of(opener).generation == 2
    population = Claim.of(study.trials[opener.number]).opening.population
    assert population[0] == other.number
    assert half.number not in population


def test_what_was_judged_once_is_not_judged_again(tmp_path):
    """A fresh process must not resurrect the losers of earlier generations."""
    study = make_study()
    study.optimize(lambda t: objective(t) + t.number, n_trials=3)
    study.optimize(lambda t: objective(t) - 100, n_trials=30)
    fresh = optuna.load_study(study_name=study.study_name, storage=study._storage)
    fresh.sampler = make_sampler()
    expected = make_study()
    expected.optimize(lambda t: objective(t) + t.number, n_trials=3)
    expected.optimize(lambda t: objective(t) - 100, n_trials=40)
    fresh.optimize(lambda t: objective(t) - 100, n_trials=10)
    assert trajectory(fresh) == trajectory(expected)


def test_a_silent_trial_is_failed_and_its_worker_abandons_it():
    study = make_study()
    study.optimize(objective, n_trials=2)
    silent = study._storage.create_new_trial(study._study_id)
    study.optimize(objective, n_trials=1)  # waits for 0.2 s
    assert study.trials[2].state == TrialState.FAIL
    assert slot_of(study.trials[3]).index == 2
    with pytest.raises(StudyError, match="trial 2 was given up before it started"):
        optuna.Trial(study, silent)


@pytest.mark.parametrize("preset", PRESETS)
def test_threads_that_ask_at_once_get_different_slots(preset):
    study = make_study(preset, population_size=8)
    barrier = threading.Barrier(6, timeout=60)  # a thread that fails must not keep the others
    got = []

    def work():
        for _ in range(5):
            barrier.wait()
            trial = study.ask()
            value = objective(trial)
            study.tell(trial, value)
            got.append((slot_of(trial).generation, slot_of(trial).index))

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert len(got) == 30
    assert len(set(got)) == 30
    assert len(study.get_trials(states=FINISHED)) == 30


def test_a_claim_published_while_the_trial_was_read_is_respected(tmp_path, monkeypatch):
    """Optuna's own storage reads attributes and parameters one after the other."""
    study, other = (
        optuna.create_study(
            study_name="s",
            storage=open_plain(tmp_path / "study.db"),
            sampler=make_sampler(),
            load_if_exists=True,
        )
        for _ in range(2)
    )
    first = study.ask()
    make_space().suggest(first)
    real, reads = other._storage.get_all_trials, []

    def torn(*args, **options):
        trials = real(*args, **options)
        if trials:
            reads.append(len(trials))
        if len(reads) == 1:
            trials = [copy.copy(trial) for trial in trials]
            trials[0].system_attrs = {}
        return trials

    monkeypatch.setattr(other._storage, "get_all_trials", torn)
    second = other.ask()
    assert len(reads) > 1
    assert (slot_of(first).index, slot_of(second).index) == (0, 1)


@pytest.mark.parametrize(("opener", "preset"), [("plain", "paper"), ("resilient", "default")])
def test_two_workers_interleaved_at_every_write(tmp_path, opener, preset):
    """One worker stands still before its k-th write while the other one runs on."""
    start = tmp_path / "start.db"

    def load(path):
        return optuna.create_study(
            study_name="s",
            storage=OPENERS[opener](path),
            sampler=make_sampler(preset, grace_period=30.0),
            direction="maximize",
            load_if_exists=True,
        )

    run_until(load(start), 2)
    k = 0
    while True:  # the window holds a change of generation
        k += 1
        path = tmp_path / f"{k}.db"
        copy_database(start, path)
        paused, other = load(path), load(path)
        standing, go = threading.Event(), threading.Event()

        def react(count, moment, k=k, standing=standing, go=go):
            if (count, moment) == (k, "before"):
                standing.set()
                go.wait(30)

        on_write(paused._storage, react)
        first = threading.Thread(target=paused.optimize, args=(objective,), kwargs={"n_trials": 2})
        first.start()
        while first.is_alive() and not standing.is_set():
            time.sleep(0.002)
        if not standing.is_set():
            first.join()
            break
        published = "claimed" if Claim.of(other.trials[-1]) else "silent"
        second = threading.Thread(target=other.optimize, args=(objective,), kwargs={"n_trials": 2})
        second.start()
        second.join(0.3 if published == "silent" else 30)
        # The other one waits for nobody but for a trial below that has not said what it does.
        assert published == "silent" or not second.is_alive(), k
        go.set()
        first.join()
        second.join()
        audit(other)
        assert [t.state for t in other.trials] == [TrialState.COMPLETE] * 6
        assert_no_accidental_repeats(other)
        path.unlink()
    assert k > 20
