"""The searchers that the benchmarks compare, all over one genome space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
from _outside import OUTSIDE

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
    "QMCSampler": lambda _, seed: optuna.samplers.QMCSampler(scramble=True, seed=seed),
    "TPESampler": lambda _, seed: optuna.samplers.TPESampler(seed=seed),
    "CmaEsSampler": lambda _, seed: optuna.samplers.CmaEsSampler(seed=seed),
    "NSGAIISampler": lambda _, seed: optuna.samplers.NSGAIISampler(seed=seed),
    "NSGAIIISampler": lambda _, seed: optuna.samplers.NSGAIIISampler(seed=seed),
    "GPSampler": lambda _, seed: optuna.samplers.GPSampler(seed=seed),
}
SEARCHERS: dict[str, Make] = OPTUNA | OUTSIDE | {"paper": ours("paper"), "default": ours()}
# This one asks `rank_finished`; the others choose the genome with the best value observed.
BY_MODEL = "default"
# Those without informed starts of their own are given them where all are to have the same.
GIVEN_STARTS = frozenset({*OPTUNA, "paper"})
