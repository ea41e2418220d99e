"""BioTuneSampler: every kind of space, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from biotune_optuna.errors import StudyError
from biotune_optuna.evolution.settings import SearchSettings
from biotune_optuna.genome import Genome
from biotune_optuna.sampler.claims import Claim
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.schema import CONFIG_KEY
from tests.kit.sampler import (
    PRESETS,
    audit,
    make_sampler,
    make_space,
    make_study,
    objective,
    open_resilient,
    trajectory,
)


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


@pytest.mark.parametrize("preset", PRESETS)
def test_a_parameter_of_ones_own_may_be_called_lr(preset):
    space = make_space(lr=1e-3)

    def own(trial):
        rate = trial.suggest_float("lr", 1e-6, 1.0, log=True)
        return len(space.suggest(trial).decode().trainable) - abs(math.log10(rate) + 2)

    study = make_study(preset, space=space)
    study.optimize(own, n_trials=15)
    assert all(t.state == TrialState.COMPLETE for t in study.trials)


def test_a_grid_is_not_tried_twice_before_it_is_exhausted():
    def grid(trial):
        n, step = trial.suggest_int("n", 1, 4), trial.suggest_float("x", 0, 1, step=0.25)
        return abs(n - 3) + abs(step - 0.75) + (trial.suggest_categorical("kind", "abc") == "a")

    study = optuna.create_study(sampler=BioTuneSampler(population_size=4, seed=2))
    study.optimize(grid, n_trials=40)
    # while the first are made the sampler does not know the parameters yet
    new = [t for t in study.trials[5:] if t.user_attrs["role"] != "re-evaluation"]
    assert len(new) > 20
    assert len({tuple(t.params.values()) for t in new}) == len(new)


def test_dynamic_space_falls_back_to_independent_sampling():
    def dynamic(trial):
        x = trial.suggest_float("x", 0, 1 + trial.number % 2)
        kind = trial.suggest_categorical("kind", ["u", "v"])
        return x + (trial.suggest_float("u", 0, 1) if kind == "u" else trial.suggest_int("v", 0, 3))

    settings = SearchSettings.of("default", population_size=4, n_elites=1)
    study = optuna.create_study(sampler=BioTuneSampler(seed=0, strategy=settings))
    study.optimize(dynamic, n_trials=40)
    assert all(t.state == TrialState.COMPLETE for t in study.trials)
    assert len({t.params["x"] for t in study.trials}) == 40


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_sampled_independently_differ_by_name_and_trial(preset):
    study = optuna.create_study(sampler=BioTuneSampler(preset=preset, seed=0))
    trials = [study.ask() for _ in range(3)]
    drawn = [trial.suggest_float(name, 0, 1) for trial in trials for name in "abc"]
    assert len(set(drawn)) == 9
    again = optuna.create_study(sampler=BioTuneSampler(preset=preset, seed=0))
    assert [again.ask().suggest_float("a", 0, 1) for _ in range(3)] == drawn[::3]


def test_genomes_are_valid_from_the_first_trial():
    space = make_space(3, head_trains=False)
    study = make_study(space=space, population_size=8)

    def check(trial):
        genome = space.suggest(trial)
        assert space.is_valid(genome.values)
        return sum(genome.values[:3])

    study.optimize(lambda t: -check(t), n_trials=60)


def test_several_objectives_are_refused(tmp_path):
    storage = open_resilient(tmp_path / "a.db")
    study = optuna.create_study(
        storage=storage, directions=["minimize", "maximize"], sampler=make_sampler()
    )
    with pytest.raises(ValueError, match="2 objectives; BioTuneSampler searches for one"):
        study.ask()
    assert [t.state for t in study.trials] == [TrialState.FAIL]
    assert not storage.heartbeat.trials()


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fast"}, "preset 'fast' is unknown; choose 'default' or 'paper'"),
        ({"preset": "paper", "strategy": SearchSettings()}, "give one of them"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"population_size": 2}, "population_size 2 is too small"),
        (
            {"strategy": SearchSettings(n_elites=10)},
            "n_elites 10 does not fit a population of 10",
        ),
        ({"strategy": SearchSettings(momentum=-0.1)}, "momentum -0.1 must be"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(StudyError, match=message):
        BioTuneSampler(**options)


def test_numbers_may_be_numpys(tmp_path):
    trials = []
    for count, flag, number in ((int, bool, float), (np.int64, np.bool_, np.float32)):
        genome = Genome(make_space(), tuple(map(number, (0.25, 0.5, 0.125))), {"lr": 2e-3})
        study = optuna.create_study(
            direction="maximize",
            storage=open_resilient(tmp_path / f"{number.__name__}.db"),
            sampler=make_sampler(
                seed=count(3), population_size=count(4), unique=flag(0), initial=[genome]
            ),
        )
        study.optimize(objective, n_trials=7)
        trials.append(trajectory(study))
    assert trials[0] == trials[1]


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
    assert caplog.text.count("is ignored") == 2


def test_a_setting_that_comes_too_late_is_named_and_no_other(caplog):
    study = optuna.create_study(sampler=BioTuneSampler(space=make_space(), population_size=4))
    study.optimize(objective, n_trials=1)
    study.sampler = BioTuneSampler(strategy=SearchSettings.of("default", population_size=4))
    study.optimize(objective, n_trials=1)
    assert not caplog.text
    study.sampler = BioTuneSampler(
        population_size=4, strategy=SearchSettings.of("default", crossover=False, candidates=5)
    )
    study.optimize(objective, n_trials=1)
    assert "the study keeps crossover=True; False is ignored" in caplog.text
    assert "the study keeps candidates=128; 5 is ignored" in caplog.text
    assert caplog.text.count("is ignored") == 2


def test_a_preset_and_genomes_that_come_too_late_are_named(caplog):
    genome = {"gene.b0": 0.25, "gene.b1": 0.5, "gene.threshold": 0.125, "lr": 2e-3}
    study = make_study("default", initial=[genome])
    study.optimize(objective, n_trials=1)
    for sampler in (make_sampler("default", initial=[genome]), BioTuneSampler()):
        study.sampler = sampler
        study.optimize(objective, n_trials=1)
    assert not caplog.text
    late = {**genome, "lr": 4e-3}
    study.sampler = BioTuneSampler(space=make_space(), preset="paper", initial=[late])
    study.optimize(objective, n_trials=1)
    assert "the study keeps preset 'default'; 'paper' is ignored" in caplog.text
    assert "the study keeps its initial genomes; others are ignored" in caplog.text


def test_only_a_named_preset_can_come_too_late(caplog):
    study = make_study("paper")
    study.optimize(objective, n_trials=1)
    study.sampler = BioTuneSampler()
    study.optimize(objective, n_trials=1)
    assert not caplog.text
    study.sampler = BioTuneSampler(preset="default")
    study.optimize(objective, n_trials=1)
    assert "the study keeps preset 'paper'; 'default' is ignored" in caplog.text


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
