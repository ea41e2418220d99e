"""BioTuneSampler: what it proposes follows from the seed and what has finished."""

from __future__ import annotations

import inspect
import itertools
import json
import pickle
import textwrap

import numpy as np
import pytest
from optuna.trial import TrialState

from biotune_optuna.sampler.sampler import BioTuneSampler, rank_finished, slot_of
from tests.kit.sampler import (
    PRESETS,
    make_sampler,
    make_space,
    make_study,
    objective,
    trajectory,
)


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
        pieces.sampler = BioTuneSampler(grace_period=0.2)
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


def test_minimising_an_error_mirrors_maximising_the_accuracy():
    """In the unit interval, where the fitness of the paper is the error."""

    def accuracy(trial):
        return round(objective(trial) * 2**20) / 2**20  # so that 1 - a rounds nothing

    up, down = make_study(), make_study(direction="minimize")
    up.optimize(accuracy, n_trials=20)
    down.optimize(lambda t: 1 - accuracy(t), n_trials=20)
    assert all(0 <= t.value <= 1 for t in up.trials)
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


def test_the_loop_that_opens_the_docstring_searches():
    text = inspect.getdoc(BioTuneSampler).split("::\n", 1)[1]
    lines = list(itertools.takewhile(lambda s: not s or s.startswith(" " * 4), text.splitlines()))
    names: dict[str, object] = {}
    exec(textwrap.dedent("\n".join(lines)), names)
    study, space = names["study"], names["space"]
    assert isinstance(study.sampler, BioTuneSampler)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 50
    assert all(set(t.params) == set(space.names) for t in study.trials)
    known = [t.value for t in study.trials if t.user_attrs["role"] == "initial"]
    assert max(known) < 1, "no recipe to begin with has just twice the base rate"
    assert study.best_value > max(known)


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


def test_failed_trials_are_no_repeats():
    study = make_study("default", population_size=4, reevaluations=2)
    tried = set()

    def shaky(trial):
        value = objective(trial)
        key = (str(trial.params), slot_of(trial).repeat)
        if key not in tried:
            tried.add(key)
            raise RuntimeError("once")
        return value

    study.optimize(shaky, n_trials=80, catch=(RuntimeError,))
    again = [t for t in study.trials if t.user_attrs["role"] == "re-evaluation"]
    assert len(again) >= 12
    for trial in study.trials:
        same = [t for t in study.trials[: trial.number] if t.params == trial.params]
        finished = [t for t in same if t.state == TrialState.COMPLETE]
        assert slot_of(trial).repeat == len(finished)


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_stored_grows_with_the_study(preset):
    study = make_study(preset, population_size=5, n_elites=1)
    study.optimize(objective, n_trials=200)
    sizes = [len(json.dumps(t.system_attrs)) for t in study.trials]
    assert max(sizes[150:]) <= 1.1 * max(sizes[5:50])
    assert len(study._storage.get_study_system_attrs(study._study_id)) == 1
