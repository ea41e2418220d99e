"""BioTune, and other searchers of the same genomes: search, confirmation, final training, test."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import TrialState

from biotune_optuna.compare.rows import Outcome
from biotune_optuna.confirmation.confirm import confirm
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.record import Ledger
from biotune_optuna.evolution.settings import SearchSettings
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.schema import SPEC_KEY, Cost, TrialRecord
from biotune_optuna.study.setup import split
from biotune_optuna.study.study import study_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from biotune_optuna.compare.plan import Comparison, Contender
    from biotune_optuna.confirmation.record import Confirmation, TestResult
    from biotune_optuna.study.setup import Setup
    from biotune_optuna.study.stop import StopRequest
    from biotune_optuna.study.study import TuningStudy


def run_search(
    setup: Setup,
    contender: Contender,
    plan: Comparison,
    *,
    storage: optuna.storages.BaseStorage,
    name: str,
    stop: StopRequest,
) -> Outcome:
    """Search genomes, train the best few again, and test the one with the best mean.

    The study of the search is kept under ``name``; interrupted, it goes on there.

    Args:
        setup: Data, model and trainer of the repeat.
        contender: The searcher.
        plan: How much is searched and confirmed.
        storage: Where the study is kept.
        name: Its name.
        stop: Asks to stop.

    Returns:
        The outcome, charged with everything that was trained, and the search's own time.
    """
    study = study_of(
        varied(setup, contender.spec),
        storage=storage,
        name=name,
        sampler=lambda setup: _sampler(contender, setup, storage, name),
        checkpoint=stop.check,
    )
    study.search(contender.trials or plan.trials, stop=stop)
    stop.check()
    how: dict[str, Any] = {"mistakes": 0, "must_hold": False}
    if not plan.as_tune:
        how |= {"rivals": (), "reuse": False}
    chosen = ConfirmPlan(top_k=plan.top_k, n_runs=plan.runs, members=plan.members, **how)
    return _outcome(study, confirm(study, chosen, checkpoint=stop.check))


def _outcome(study: TuningStudy, confirmed: Confirmation) -> Outcome:
    winner = confirmed.winner
    test = confirmed.test(winner.name)
    assert test is not None  # a comparison has test images
    trials = study.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    rates = Cost.from_dict(study.study.user_attrs[SPEC_KEY].get("rates") or {})
    final = confirmed.final_training[winner.name]
    return Outcome(
        validation=winner.mean,
        trainable=winner.trainable_pct,
        evaluations=len(trials),
        setting=winner.describe,
        **tested(confirmed.members, test, confirmed.ensemble),
        **charge(trials, [rates, *Ledger(study.study).read().values(), final]),
    )


def tested(members: int, single: TestResult, together: TestResult | None) -> dict[str, Any]:
    """Return how a model did on the test images, as fields of `Outcome`.

    Args:
        members: How many were asked for.
        single: Test of the first.
        together: Test of all; None where the method has one member, as one that fits the head.
    """
    found = {"score": single.score, "cross_entropy": _cross_entropy(single)}
    if members == 1:
        return found
    every = together or single
    more = {"together": every.score, "together_cross_entropy": _cross_entropy(every)}
    return {**found, "members": members, **more}


def _cross_entropy(test: TestResult) -> float:
    return float(test.metrics.get("cross_entropy", math.nan))  # early versions kept none


def charge(trials: Sequence[FrozenTrial], further: Sequence[Cost]) -> dict[str, Any]:
    """Return what evaluations and later trainings cost in all, as fields of `Outcome`.

    Args:
        trials: The evaluations, whose seconds are those of the whole trial.
        further: What came after them.
    """
    searched, rest = [TrialRecord(trial) for trial in trials], Cost.sum(further)
    return {
        "forward": sum(one.forward for one in searched) + rest.forward,
        "backward": sum(one.backward for one in searched) + rest.backward,
        "seconds": sum(t.duration.total_seconds() for t in trials if t.duration) + rest.seconds,
    }


def varied(setup: Setup, changes: Mapping[str, Any]) -> Setup:
    """Return the setup of a spec that differs in how it searches: same images, weights and trainer.

    Args:
        setup: A setup.
        changes: Fields of the spec; of the splits only the folds may differ.
    """
    if not changes:
        return setup
    spec = dataclasses.replace(setup.spec, **changes)
    # What strict refuses was looked for in the task's own splits.
    splits = split(dataclasses.replace(spec, strict=False), setup.source)
    found = dict(spec.fingerprints) | {"splits": splits.fingerprint}
    spec = dataclasses.replace(spec, fingerprints=found)
    return dataclasses.replace(setup, spec=spec, splits=splits, space=spec.space(setup.blocks))


def _sampler(
    contender: Contender, setup: Setup, storage: optuna.storages.BaseStorage, name: str
) -> optuna.samplers.BaseSampler:
    spec = setup.spec
    if contender.method == "biotune":
        return BioTuneSampler(
            space=setup.space,
            population_size=spec.population_size,
            seed=spec.seed,
            strategy=SearchSettings.of(spec.preset, **contender.sampler),
        )
    return searcher(contender.method, seed=fresh_seed(spec.seed, storage, name))


def searcher(name: str, *, seed: int) -> optuna.samplers.BaseSampler:
    """One of Optuna's samplers with its own defaults.

    Args:
        name: A name in `biotune_optuna.compare.plan.SEARCHERS`.
        seed: Its seed.
    """
    made = {
        "random": optuna.samplers.RandomSampler,
        "tpe": optuna.samplers.TPESampler,
        "cma-es": optuna.samplers.CmaEsSampler,
        "gp": optuna.samplers.GPSampler,
        "nsga-ii": optuna.samplers.NSGAIISampler,
    }[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler: optuna.samplers.BaseSampler = made(seed=seed)
    return sampler


def fresh_seed(seed: int, storage: optuna.storages.BaseStorage, name: str) -> int:
    """Return a seed that differs where a study goes on: samplers would repeat their first draws."""
    try:
        begun = storage.get_n_trials(storage.get_study_id_from_name(name))
    except KeyError:
        begun = 0
    return int(np.random.SeedSequence([seed, begun]).generate_state(1, np.uint32)[0])
