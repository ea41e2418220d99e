"""The searchers that the benchmarks compare, all over one genome space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna

from biotune_optuna import BioTuneSampler, SearchSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from biotune_optuna import GenomeSpace
    from biotune_optuna.evolution.settings import Preset

    Make = Callable[[GenomeSpace, int], optuna.samplers.BaseSampler]


def ours(preset: Preset = "default", **changes: Any) -> Make:
    """A maker of BioTune samplers with some of a preset's settings changed."""
    settings = SearchSettings.of(preset, **changes)
    return lambda space, seed: BioTuneSampler(space=space, seed=seed, strategy=settings)


# Optuna's samplers with its defaults.
OPTUNA: dict[str, Make] = {
    "RandomSampler": lambda _, seed: optuna.samplers.RandomSampler(seed=seed),
    "TPESampler": lambda _, seed: optuna.samplers.TPESampler(seed=seed),
    "CmaEsSampler": lambda _, seed: optuna.samplers.CmaEsSampler(seed=seed),
    "GPSampler": lambda _, seed: optuna.samplers.GPSampler(seed=seed),
    "NSGAIISampler": lambda _, seed: optuna.samplers.NSGAIISampler(seed=seed),
}
COMPARED = (*OPTUNA, "paper", "default")

SEARCHERS: dict[str, Make] = OPTUNA | {
    "paper": ours("paper"),
    "default": ours(),
    "paper, informed": ours("paper", informed=True),
    "default, not informed": ours(informed=False),
    "default, not structured": ours(structured=False),
    "default, no model": ours(smoothing=False, candidates=1),
    "default, one candidate": ours(candidates=1),
    "default, 100 candidates": ours(candidates=100),
    "default, no re-evaluation": ours(reevaluations=0),
    "default, duplicates allowed": ours(unique=False),
    "default, two trainings": ours(),
}
# Trainings of one evaluation, whose value is their mean; 1 for all others.
TRAININGS = {"default, two trainings": 2}
# These choose the genome with the best value observed; the others ask `rank_finished`.
BY_VALUE = frozenset({*OPTUNA, "paper", "paper, informed"})
# Those without informed starts of their own are given them where all are to have the same.
GIVEN_STARTS = frozenset({*OPTUNA, "paper"})
