"""What several tests of the sampler share: a small study, a saboteur and an auditor."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import sqlite3
from pathlib import Path

import optuna
from optuna.storages import RDBStorage, _CachedStorage
from optuna.trial import TrialState
from sqlalchemy import event

from biotune_optuna.evolution.settings import SearchSettings
from biotune_optuna.genome import GenomeSpace
from biotune_optuna.recipe import BlockRecipe
from biotune_optuna.sampler.claims import Claim
from biotune_optuna.sampler.sampler import BioTuneSampler, slot_of
from biotune_optuna.storage.open import open_storage

optuna.logging.set_verbosity(optuna.logging.ERROR)

WRITES = (
    "create_new_trial",
    "set_trial_param",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_study_system_attr",
)
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
PRESETS = ["paper", "default"]


def make_space(blocks: int = 2, **options) -> GenomeSpace:
    return GenomeSpace([BlockRecipe(f"b{i}", 1.0) for i in range(blocks)], **options)


def make_sampler(
    preset="paper", *, space=None, seed=3, initial=(), grace_period=0.2, **settings
) -> BioTuneSampler:
    settings = {"population_size": 3, "n_elites": 1} | settings
    return BioTuneSampler(
        space=space or make_space(),
        initial=initial,
        seed=seed,
        strategy=SearchSettings.of(preset, **settings),
        grace_period=grace_period,
    )


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


def objective(trial: optuna.Trial, space: GenomeSpace | None = None) -> float:
    recipe = (space or make_space()).suggest(trial).decode()
    cost = sum((m - 1.5) ** 2 for m in recipe.multipliers.values()) / 300
    return 1 - cost - abs(recipe.lr - 4e-3) * 5 + 1e-3 * slot_of(trial).repeat


def open_plain(path: Path) -> _CachedStorage:
    """Optuna's own SQLite storage, without waiting for the disk or comparing versions."""
    storage = RDBStorage(
        f"sqlite:///{path}",
        engine_kwargs={"connect_args": {"timeout": 60}},
        skip_compatibility_check=True,
    )

    @event.listens_for(storage.engine, "connect")
    def _relax(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("pragma synchronous=off")

    storage.engine.dispose()
    return _CachedStorage(storage)


def open_resilient(path: Path):
    return open_storage(f"sqlite:///{path}")


def copy_database(source: Path, target: Path) -> None:
    """Copies a SQLite database with whatever its write-ahead log still holds."""
    with (
        contextlib.closing(sqlite3.connect(source)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        new.execute("pragma synchronous=off")
        old.backup(new)


OPENERS = {"plain": open_plain, "resilient": open_resilient}


def on_write(storage, react) -> None:
    """Calls ``react(k, "before")`` and ``react(k, "after")`` around the k-th write from now on."""
    count = 0

    def wrap(name):
        original = getattr(storage, name)

        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            mine = count
            react(mine, "before")
            result = original(*args, **kwargs)
            react(mine, "after")
            return result

        setattr(storage, name, wrapped)

    for name in WRITES:
        wrap(name)


def kill_at(storage, k: int, when: str) -> None:
    def react(count, moment):
        if (count, moment) == (k, when):
            os.kill(os.getpid(), signal.SIGKILL)

    on_write(storage, react)


def n_finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def run_until(study: optuna.Study, total: int, func=objective) -> None:
    while n_finished(study) < total:
        study.optimize(func, n_trials=1, catch=(RuntimeError,))


def trajectory(study: optuna.Study) -> list[tuple]:
    """What must not depend on interruptions: finished trials in order, bit for bit."""
    return [
        (
            trial.state,
            trial.value,
            trial.params,
            trial.user_attrs["generation"],
            trial.user_attrs["role"],
            trial.intermediate_values,
        )
        for trial in study.get_trials(deepcopy=False, states=FINISHED)
    ]


def audit(study: optuna.Study) -> dict[tuple[int, int], int]:
    """Checks that no slot was filled twice; returns the trial that filled each slot."""
    slots: dict[tuple[int, int], int] = {}
    for trial in study.get_trials(deepcopy=False, states=FINISHED):
        claim = Claim.of(trial)
        assert claim is not None, trial
        if claim.index >= 0:
            slot = (claim.generation, claim.index)
            assert slot not in slots, f"slot {slot} by trials {slots[slot]} and {trial.number}"
            slots[slot] = trial.number
    return slots


def n_slots(study: optuna.Study) -> collections.Counter:
    """How many individuals each generation has."""
    return collections.Counter(generation for generation, _ in audit(study))
