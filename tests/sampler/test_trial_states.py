"""BioTuneSampler: every kind of trial has its role."""

from __future__ import annotations

import collections
import math
import warnings

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from biotune_optuna.errors import StudyError
from biotune_optuna.evolution.settings import SearchSettings
from biotune_optuna.sampler.claims import Claim
from biotune_optuna.sampler.history import MAX_FAILURES
from biotune_optuna.sampler.sampler import BioTuneSampler, slot_of
from tests.kit.sampler import (
    PRESETS,
    genes,
    make_sampler,
    make_space,
    make_study,
    objective,
    run_until,
    trajectory,
)


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


@pytest.mark.parametrize("pause", [1, 7])
def test_genomes_that_were_given_up_are_not_bred_again(pause):
    """In one process, and in processes that each begin by reading what is there."""

    def moody(trial):
        optimizer = trial.suggest_categorical("optimizer", ["adam", "sgd", "lion"])
        width = trial.suggest_int("width", 1, 30)
        if optimizer == "lion":
            raise RuntimeError("out of memory")
        return {"adam": 0.5, "sgd": 0.3}[optimizer] + width / 300

    study = optuna.create_study(direction="maximize", sampler=BioTuneSampler(seed=1))
    study.optimize(moody, n_trials=70, catch=(RuntimeError,))
    failed = collections.Counter(str(t.params) for t in study.trials if t.state == TrialState.FAIL)
    assert failed
    assert max(failed.values()) == MAX_FAILURES
    resumed = optuna.create_study(direction="maximize", sampler=BioTuneSampler(seed=1))
    while len(resumed.trials) < 70:
        resumed.optimize(moody, n_trials=pause, catch=(RuntimeError,))
        resumed.sampler = BioTuneSampler()
    assert [t.params for t in resumed.trials] == [t.params for t in study.trials]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_search_whose_first_generation_failed_goes_on(preset):
    settings = SearchSettings.of(preset, population_size=3, n_elites=1)
    study = optuna.create_study(sampler=BioTuneSampler(seed=1, strategy=settings))

    def broken_at_first(trial):
        x = trial.suggest_float("x", 0, 1)
        if trial.number < 9:
            raise RuntimeError("not mended yet")
        return x

    study.optimize(broken_at_first, n_trials=30, catch=(RuntimeError,))
    assert study.best_value < 0.5


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


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("n_enqueued", [1, 2])
def test_an_interrupted_enqueued_trial_is_completed_as_it_was(preset, n_enqueued):
    def begin():
        study = make_study(preset)
        study.optimize(objective, n_trials=7)
        for i in range(n_enqueued):
            study.enqueue_trial({"lr": 0.01 + 0.005 * i})
        return study

    def genomes(study):
        return [tuple(t.params.values()) for t in study.trials if t.state == TrialState.COMPLETE]

    whole, cut = begin(), begin()
    whole.optimize(objective, n_trials=12)
    trial = cut.ask()
    cut.sampler.release(trial)
    cut.optimize(objective, n_trials=12)
    if n_enqueued == 1:
        assert genomes(whole) == genomes(cut)
    else:  # another one comes first now, and what it lacks is bred beside other trials
        assert len(genomes(whole)) == len(genomes(cut))
        wanted = {0.01, 0.015}
        assert wanted <= {genes[-1] for genes in genomes(cut)}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_genome_that_means_nothing_is_no_parent(preset):
    """Every block below the threshold, from elsewhere and with the best value of all."""
    space = make_space(4, head_trains=False)
    study = make_study(preset, space=space)
    params = dict.fromkeys(space.names, 0.1)
    params["gene.threshold"] = 0.9
    params["lr"] = 1e-3
    distributions = space.distributions()
    study.add_trial(create_trial(params=params, distributions=distributions, value=10.0))
    study.optimize(lambda trial: objective(trial, space), n_trials=60)
    assert len(study.trials) == 61


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


def test_added_genomes_leave_the_first_generation_random():
    study = make_study("paper", population_size=5)
    lone = make_study("paper", population_size=5)
    for i in range(3):
        study.enqueue_trial({"gene.b0": 0.9, "gene.b1": 0.8, "gene.threshold": 0.1 * i, "lr": 2e-3})
    study.optimize(objective, n_trials=8)
    lone.optimize(objective, n_trials=5)
    filled = [t for t in study.trials if slot_of(t).index >= 0]
    assert [t.params for t in filled] == [t.params for t in lone.trials]


@pytest.mark.parametrize("preset", PRESETS)
def test_choices_that_cannot_be_hashed_are_told_apart(preset):
    def widths(trial):
        return sum(trial.suggest_categorical("widths", [[32], [64, 64], [8]]))

    study = optuna.create_study(sampler=BioTuneSampler(preset=preset, seed=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's, about storages that keep JSON
        study.optimize(widths, n_trials=15)
    assert study.best_params == {"widths": [8]}


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
