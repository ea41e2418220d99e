"""BioTuneSampler within Optuna: every kind of trial, space and study."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import textwrap
import threading
import time

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from biotune_optuna.errors import StudyError
from biotune_optuna.sampler import BioTuneSampler, rank_finished, slot_of
from biotune_optuna.slots.claims import CONFIG_KEY, Claim
from tests.sampler_kit import (
    FINISHED,
    OPENERS,
    audit,
    copy_database,
    make_sampler,
    make_space,
    n_slots,
    objective,
    on_write,
    run_until,
    trajectory,
)

PRESETS = ["paper", "default"]


def make_study(preset="paper", direction="maximize", **options):
    return optuna.create_study(direction=direction, sampler=make_sampler(preset, **options))


def genes(params):
    return {name: value for name, value in params.items() if name.startswith("gene.")}


def assert_no_accidental_repeats(study):
    """Only re-evaluations repeat a genome, and clipped steps of the paper's exploitation."""
    allowed = {"re-evaluation"}
    if not study.sampler._wanted.settings.unique:
        allowed.add("exploit")
    new = [t for t in study.trials if t.user_attrs["role"] not in allowed]
    assert len({tuple(t.params.values()) for t in new}) == len(new)


# -- determinism -------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_same_seed_same_trials_and_another_seed_others(preset):
    runs = []
    for seed in (3, 3, 4):
        study = make_study(preset, seed=seed)
        study.optimize(objective, n_trials=20)
        runs.append(trajectory(study))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("preset", PRESETS)
def test_resuming_with_a_fresh_sampler_changes_nothing(preset):
    whole, pieces = make_study(preset), make_study(preset)
    whole.optimize(objective, n_trials=24)
    for n in (1, 2, 5, 9, 7):
        # The study's own settings rule: a resumed sampler need not repeat any.
        pieces.sampler = BioTuneSampler(silence=0.2)
        if not pieces.trials:
            pieces.sampler = make_sampler(preset)
        pieces.optimize(objective, n_trials=n)
    assert trajectory(pieces) == trajectory(whole)


def test_ask_and_tell_equals_optimize():
    one, other = make_study(), make_study()
    one.optimize(objective, n_trials=12)
    for _ in range(12):
        trial = other.ask()
        other.tell(trial, objective(trial))
    assert trajectory(one) == trajectory(other)


def test_global_random_state_is_left_alone():
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    make_study().optimize(objective, n_trials=8)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_minimising_mirrors_maximising():
    up, down = make_study(), make_study(direction="minimize")
    up.optimize(lambda t: objective(t) + 5, n_trials=20)
    down.optimize(lambda t: -objective(t) - 5, n_trials=20)
    assert [t.params for t in up.trials] == [t.params for t in down.trials]


def test_sampler_can_be_pickled():
    study = make_study()
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    study.optimize(objective, n_trials=5)
    expected = make_study()
    expected.optimize(objective, n_trials=5)
    assert trajectory(study) == trajectory(expected)


def test_attributes_and_slot():
    study = make_study()
    seen = []

    def check(trial):
        seen.append((slot_of(trial), dict(trial.user_attrs)))
        return objective(trial)

    study.optimize(check, n_trials=7)
    slot, attrs = seen[3]
    assert (slot.generation, slot.index, slot.role) == (1, 0, "exploit")
    assert attrs == {"generation": 1, "role": "exploit", "parents": str(slot.parents[0])}
    assert slot.parents == (max(range(3), key=lambda n: study.trials[n].value),)
    child = study.trials[5]
    assert child.user_attrs["role"] == "offspring"
    assert len(slot_of(child).parents) == 2
    assert child.user_attrs["parents"] == ", ".join(map(str, slot_of(child).parents))


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_a_slot_whose_objective_raised_comes_back(preset):
    expected = make_study(preset)
    expected.optimize(objective, n_trials=12)
    study = make_study(preset)
    tries = set()

    def shaky(trial):
        value = objective(trial)
        if trial.number % 3 == 0 and str(trial.params) not in tries:
            tries.add(str(trial.params))
            raise RuntimeError("once")
        return value

    run_until(study, 12, shaky)
    assert trajectory(study) == trajectory(expected)
    assert any(t.state == TrialState.FAIL for t in study.trials)


def test_a_slot_that_raised_three_times_is_given_up_and_ranks_last():
    study = make_study()

    def doomed(trial):
        value = objective(trial)
        if slot_of(trial).generation == 0 and slot_of(trial).index == 1:
            raise RuntimeError("always")
        return value

    study.optimize(doomed, n_trials=6, catch=(RuntimeError,))
    assert [t.state.name for t in study.trials] == [
        "COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE", "COMPLETE",
    ]  # fmt: skip
    assert study.trials[1].params == study.trials[2].params == study.trials[3].params
    opening = Claim.of(study.trials[5]).opening
    assert opening.population[-1] == 3
    assert set(opening.population) == {0, 3, 4}


def test_nan_counts_as_a_failure():
    study = make_study()
    study.optimize(lambda t: math.nan if slot_of(t).index == 0 else objective(t), n_trials=6)
    assert [t.state.name for t in study.trials[:4]] == ["FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert Claim.of(study.trials[5]).opening.population[-1] == 2


@pytest.mark.parametrize("infinity", [math.inf, -math.inf])
def test_infinite_values_rank_below_finite_ones(infinity):
    study = make_study()
    study.optimize(lambda t: objective(t) + (infinity if t.number == 0 else 0), n_trials=10)
    opening = Claim.of(study.trials[3]).opening
    assert opening.population[-1] == 0
    assert all(math.isfinite(v) for t in study.trials for v in t.params.values())


def test_pruned_trials_fill_their_slot_and_rank_by_progress_then_value():
    study = make_study(population_size=5)
    reached = {0: (3, 0.2), 1: (1, 0.9), 2: (3, 0.1), 3: None}

    def pruning(trial):
        value = objective(trial)
        if trial.number in reached:
            if reached[trial.number] is not None:
                step, score = reached[trial.number]
                trial.report(score, step)
            raise optuna.TrialPruned
        return value - 10

    study.optimize(pruning, n_trials=6)
    opening = Claim.of(study.trials[5]).opening
    assert opening.population == (4, 0, 2, 1, 3)


def test_exceptions_after_the_claim_hand_the_slot_back():
    study = make_study()
    study.optimize(objective, n_trials=1)
    original = study._storage.set_trial_user_attr

    def broken(*args):
        study._storage.set_trial_user_attr = original
        raise OSError("gone")

    study._storage.set_trial_user_attr = broken
    with pytest.raises(OSError, match="gone"):
        study.ask()
    study.optimize(objective, n_trials=5)
    expected = make_study()
    expected.optimize(objective, n_trials=6)
    assert trajectory(study) == trajectory(expected)


# -- other ways in -----------------------------------------------------------------------------


def test_enqueued_trials_become_individuals_and_take_no_slot():
    study = make_study()
    good = {"gene.b0": 0.588, "gene.b1": 0.588, "gene.threshold": 0.1, "lr": 4e-3}
    study.enqueue_trial(good)
    study.optimize(objective, n_trials=5)
    first = study.trials[0]
    assert first.params == good
    assert first.user_attrs["role"] == "enqueued"
    assert slot_of(first).index < 0
    assert [slot_of(t).index for t in study.trials[1:4]] == [0, 1, 2]
    assert Claim.of(study.trials[4]).opening.population[0] == 0
    assert slot_of(study.trials[4]).parents == (0,)


def test_partially_enqueued_trials_are_completed_the_same_way_each_time():
    params = []
    for _ in range(2):
        study = make_study()
        study.optimize(objective, n_trials=4)
        study.enqueue_trial({"gene.b0": 0.25})
        study.optimize(objective, n_trials=2)
        assert study.trials[4].params["gene.b0"] == 0.25
        params.append([t.params for t in study.trials])
    assert params[0] == params[1]


def test_added_trials_compete():
    study = make_study()
    study.optimize(objective, n_trials=4)
    space = make_space()
    best = {"gene.b0": 0.588, "gene.b1": 0.588, "gene.threshold": 0.1, "lr": 4e-3}
    study.add_trial(create_trial(value=2.0, params=best, distributions=space.distributions()))
    study.add_trial(
        create_trial(value=9.0, params={"x": 1.0}, distributions={"x": FloatDistribution(0, 1)})
    )
    study.optimize(objective, n_trials=5)
    opening = Claim.of(study.trials[9]).opening
    assert opening is not None
    assert opening.population[0] == 4
    assert 5 not in opening.population, "it is no genome"
    assert slot_of(study.trials[4]).role == "added"


def test_trials_of_another_sampler_are_individuals():
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=5)
    foreign = study.ask()
    foreign.suggest_float("gene.b0", 0, 1)  # begun by the other sampler, and still running
    study.sampler = make_sampler()
    study.optimize(objective, n_trials=4)
    assert study.trials[5].state == TrialState.RUNNING
    opening = Claim.of(study.trials[9]).opening
    best = max((t for t in study.trials if t.value is not None), key=lambda t: t.value)
    assert opening.population[0] == best.number


def test_release_hands_a_slot_back_with_its_genome():
    study = make_study()
    asked = study.ask()
    wanted = make_space().suggest(asked)
    assert study.sampler.release(asked)
    assert not study.sampler.release(asked)
    again = study.ask()
    assert make_space().suggest(again) == wanted
    study.tell(again, 0.5)
    # Handed back is not raised: it may happen any number of times.
    for _ in range(5):
        study.sampler.release(study.ask())
    assert slot_of(study.ask()).index == 1


def test_a_trial_retried_by_optunas_callback_takes_its_old_slot():
    study = make_study()
    study.optimize(objective, n_trials=1)
    stale = study.ask()
    wanted = make_space().suggest(stale)
    study._storage.set_trial_state_values(stale._trial_id, TrialState.FAIL)
    retry = optuna.storages.RetryHeartbeatStaleTrialCallback()
    retry(study, study.trials[1])
    study.optimize(objective, n_trials=2)
    assert study.trials[2].params == wanted.params
    assert [slot_of(t).index for t in study.trials] == [0, 1, 1, 2]
    expected = make_study()
    expected.optimize(objective, n_trials=3)
    assert trajectory(study) == trajectory(expected)


def test_initial_genomes_come_first():
    space = make_space()
    wanted = [
        {"gene.b0": 0.25, "gene.b1": 0.5, "gene.threshold": 0.125, "lr": 2e-3},
        {"gene.b0": 0.75, "gene.b1": 0.5, "gene.threshold": 0.125, "lr": 4e-3},
    ]
    initial = [space.genome(wanted[0]), wanted[1]]
    study = make_study(initial=initial)
    study.optimize(objective, n_trials=4)
    assert [t.user_attrs["role"] for t in study.trials[:3]] == ["initial", "initial", "immigrant"]
    for trial, params in zip(study.trials, wanted, strict=False):
        assert genes(trial.params) == genes(params)
        assert trial.params["lr"] == pytest.approx(params["lr"], rel=1e-12)
    many = make_study(initial=[wanted[0]] * 5)
    many.optimize(objective, n_trials=6)
    assert [slot_of(t).generation for t in many.trials] == [0] * 5 + [1]
    with pytest.raises(StudyError, match="initial genomes need a space"):
        BioTuneSampler(initial=wanted)


# -- spaces ------------------------------------------------------------------------------------


def mixed(trial):
    x = trial.suggest_float("x", -5, 5)
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    step = trial.suggest_float("step", 0, 1, step=0.25)
    n = trial.suggest_int("n", 1, 1000, log=True)
    kind = trial.suggest_categorical("kind", ["a", "b", None, 3.5])
    return (x - 1) ** 2 + abs(math.log10(rate) + 3) + step + math.log(n) + (kind != "b")


@pytest.mark.parametrize("preset", PRESETS)
def test_generic_mixed_space(preset):
    study = optuna.create_study(sampler=BioTuneSampler(preset=preset, seed=1))
    study.optimize(mixed, n_trials=120)
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    random.optimize(mixed, n_trials=120)
    assert study.best_value < random.best_value
    roles = {"immigrant", "exploit" if preset == "paper" else "re-evaluation", "offspring"}
    assert {t.user_attrs["role"] for t in study.trials} >= roles


def test_parameters_beside_the_genome_evolve_along():
    def wide(trial):
        n = trial.suggest_int("n", 0, 100)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        return objective(trial) - abs(n - 70) / 100 - (kind == "a")

    study = make_study(population_size=6)
    study.optimize(wide, n_trials=80)
    early = np.mean([abs(t.params["n"] - 70) for t in study.trials[:12]])
    late = np.mean([abs(t.params["n"] - 70) for t in study.trials[-12:]])
    assert late < early
    assert "n" in Claim.of(study.trials[-1]).params


def test_dynamic_space_falls_back_to_independent_sampling():
    def dynamic(trial):
        x = trial.suggest_float("x", 0, 1 + trial.number % 2)
        kind = trial.suggest_categorical("kind", ["u", "v"])
        return x + (trial.suggest_float("u", 0, 1) if kind == "u" else trial.suggest_int("v", 0, 3))

    study = optuna.create_study(sampler=BioTuneSampler(seed=0, population_size=4, n_elites=1))
    study.optimize(dynamic, n_trials=40)
    assert all(t.state == TrialState.COMPLETE for t in study.trials)
    assert len({t.params["x"] for t in study.trials}) == 40


def test_genomes_are_valid_from_the_first_trial():
    space = make_space(3, head_trains=False)
    study = make_study(space=space, population_size=8)

    def check(trial):
        genome = space.suggest(trial)
        assert space.is_valid(genome.values)
        return sum(genome.values[:3])

    study.optimize(lambda t: -check(t), n_trials=60)


def test_several_objectives_are_refused():
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=make_sampler())
    with pytest.raises(ValueError, match="2 objectives; BioTuneSampler searches for one"):
        study.ask()


def test_partial_fixed_sampler():
    study = make_study()
    study.sampler = optuna.samplers.PartialFixedSampler({"lr": 5e-3}, study.sampler)
    study.optimize(objective, n_trials=10)
    assert {t.params["lr"] for t in study.trials} == {5e-3}


def test_hyperband_hides_no_trials():
    study = optuna.create_study(
        direction="maximize",
        sampler=make_sampler(),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9),
    )

    def reporting(trial):
        value = objective(trial)
        for step in range(9):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(reporting, n_trials=25)
    assert (
        sorted(audit(study))
        == sorted([(0, i) for i in range(3)] + [(g, i) for g in range(1, 7) for i in range(4)])[:25]
    )


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fast"}, "preset 'fast' is unknown"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"population_size": 2}, "population_size 2 is too small"),
        ({"n_elites": 10}, "n_elites 10 does not fit a population of 10"),
        ({"momentum": -0.1}, "momentum -0.1 must be"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(StudyError, match=message):
        BioTuneSampler(**{"preset": "paper", **options})


def test_another_space_is_refused():
    study = make_study()
    study.optimize(objective, n_trials=1)
    study.sampler = make_sampler(space=make_space(3))
    with pytest.raises(StudyError, match="another genome space"):
        study.ask()


def test_the_studys_seed_and_settings_rule(caplog):
    study, expected = make_study(), make_study()
    study.optimize(objective, n_trials=3)
    study.sampler = make_sampler(seed=99, population_size=7)
    study.optimize(objective, n_trials=9)
    expected.optimize(objective, n_trials=12)
    assert trajectory(study) == trajectory(expected)
    assert "the study keeps seed 3; 99 is ignored" in caplog.text
    assert "the study keeps population_size=3; 7 is ignored" in caplog.text


def test_a_drawn_seed_is_kept_in_the_study():
    study = make_study(seed=None)
    study.optimize(objective, n_trials=1)
    seed = study._storage.get_study_system_attrs(study._study_id)[CONFIG_KEY]["seed"]
    expected = make_study(seed=seed)
    expected.optimize(objective, n_trials=8)
    study.sampler = BioTuneSampler()
    study.optimize(objective, n_trials=7)
    assert trajectory(study) == trajectory(expected)


def test_one_sampler_serves_several_studies():
    sampler = make_sampler()
    studies = [optuna.create_study(direction="maximize", sampler=sampler) for _ in range(2)]
    for _ in range(9):
        for study in studies:
            study.optimize(objective, n_trials=1)
    assert trajectory(studies[0]) == trajectory(studies[1])
    storage = optuna.storages.InMemoryStorage()
    for _ in range(2):
        study = optuna.create_study(
            direction="maximize", sampler=sampler, storage=storage, study_name="again"
        )
        study.optimize(objective, n_trials=9)
        assert trajectory(study) == trajectory(studies[0])
        optuna.delete_study(study_name="again", storage=storage)


# -- several workers ---------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_n_jobs_holds_no_slot_twice_and_loses_none(preset):
    study = make_study(preset, population_size=6, n_elites=2)
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
    barrier = threading.Barrier(6)
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
        worker.join()
    assert len(got) == 30
    assert len(set(got)) == 30
    assert len(study.get_trials(states=FINISHED)) == 30


@pytest.mark.parametrize(("opener", "preset"), [("plain", "paper"), ("resilient", "default")])
def test_two_workers_interleaved_at_every_write(tmp_path, opener, preset):
    """One worker stands still before its k-th write while the other one runs on."""
    start = tmp_path / "start.db"

    def load(path):
        return optuna.create_study(
            study_name="s",
            storage=OPENERS[opener](path),
            sampler=make_sampler(preset, silence=30.0),
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


def test_the_loop_that_opens_the_docstring_runs():
    text = BioTuneSampler.__doc__.split("::\n", 1)[1]
    lines = list(itertools.takewhile(lambda s: not s or s.startswith(" " * 8), text.splitlines()))
    names: dict[str, object] = {}
    exec(textwrap.dedent("\n".join(lines)).replace("n_trials=50", "n_trials=15"), names)
    assert len(names["study"].trials) == 15
    assert 0.9 < names["study"].best_value <= 1


def test_finished_genomes_are_ranked_by_what_their_neighbours_say():
    space = make_space(4)
    hits = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        study = make_study(space=space, seed=seed)
        true = {}

        def noisy(trial, rng=rng, true=true):
            value = objective(trial, space)
            true[trial.number] = value
            return value + 0.03 * float(rng.standard_normal())

        study.optimize(noisy, n_trials=60)
        ranked = rank_finished(study, space)
        keys = {space.genome(study.trials[n].params).decode().key() for n in ranked}
        assert len(keys) == len(ranked)
        hits.append(true[ranked[0]] - true[study.best_trial.number])
    assert np.mean(hits) > 0
    assert rank_finished(make_study(), space) == []


def test_a_repeat_is_counted_for_the_objective():
    study = make_study("default", population_size=4, reevaluations=2)
    study.optimize(objective, n_trials=40)
    again = [t for t in study.trials if t.user_attrs["role"] == "re-evaluation"]
    assert len(again) >= 8
    for trial in again:
        same = [t for t in study.trials[: trial.number] if t.params == trial.params]
        assert slot_of(trial).repeat == len(same) >= 1
        assert slot_of(trial).parents == (same[0].number,)


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_stored_grows_with_the_study(preset):
    study = make_study(preset, population_size=5, n_elites=1)
    study.optimize(objective, n_trials=200)
    sizes = [len(json.dumps(t.system_attrs)) for t in study.trials]
    assert max(sizes[150:]) <= 1.1 * max(sizes[5:50])
    assert len(study._storage.get_study_system_attrs(study._study_id)) == 1
