"""What each part of the method contributes: one factor at a time against the method as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from biotune_optuna.compare.plan import Contender

BASES: Final = {"biotune": {}, "paper": {"preset": "paper"}}
"""The default strategy, and the paper's operators on the same protocol."""

FACTORS: Final[dict[str, tuple[str, dict[str, Any], dict[str, Any], float]]] = {
    # name: base, changes of the spec, changes of the sampler, share of the trials
    "gene over largest": ("biotune", {"variant": "scaled"}, {}, 1),
    "gene above threshold": ("biotune", {"variant": "normalized"}, {}, 1),
    "freezing only": ("biotune", {"variant": "discriminative"}, {}, 1),
    "rates only": ("biotune", {"threshold": None}, {}, 1),
    "fixed threshold": ("biotune", {"threshold": 0.5}, {}, 1),
    "head may freeze": ("biotune", {"head_trains": False}, {}, 1),
    "population 5": ("biotune", {"population_size": 5}, {}, 1),
    "population 20": ("biotune", {"population_size": 20}, {}, 1),
    "half the trials": ("biotune", {}, {}, 0.5),
    "twice the trials": ("biotune", {}, {}, 2),
    "two seeds": ("biotune", {"n_seeds": 2}, {}, 1),
    "three seeds": ("biotune", {"n_seeds": 3}, {}, 1),
    "on halves": ("biotune", {"n_folds": 2, "n_seeds": 1}, {}, 1),
    "on quarters": ("biotune", {"n_folds": 4, "n_seeds": 1}, {}, 1),
    "cross-validation": ("biotune", {"n_folds": 2, "n_seeds": 1, "scheme": "kfold"}, {}, 1),
    "two seeds, no racing": ("biotune", {"n_seeds": 2, "racing": False}, {}, 1),
    "uninformed start": ("biotune", {}, {"informed": False}, 1),
    "no structured moves": ("biotune", {}, {"structured": False}, 1),
    "no model": ("biotune", {}, {"smoothing": False, "candidates": 1}, 1),
    "duplicates allowed": ("biotune", {}, {"unique": False}, 1),
    "no re-evaluation": ("biotune", {}, {"reevaluations": 0}, 1),
    "paper, no exploitation": ("paper", {}, {"n_elites": 0}, 1),
    "paper, no momentum": ("paper", {}, {"momentum": 0.0}, 1),
    "paper, no crossover": ("paper", {}, {"crossover": False}, 1),
    "paper, no mutation": ("paper", {}, {"mutation": False}, 1),
    "paper, no extinction": ("paper", {}, {"extinction": False}, 1),
    "paper, no adoption": ("paper", {}, {"adoption": False}, 1),
}
"""Every factor by the name that tables give it."""


def ablations(trials: int, names: Sequence[str] | None = None) -> tuple[Contender, ...]:
    """Return the bases and one contender for each factor, to be compared on equal tasks.

    Args:
        trials: Trials of the search; two factors take half and twice as many.
        names: The factors wanted, None for all of them.
    """
    chosen = FACTORS if names is None else {name: FACTORS[name] for name in names}
    taken = {base for base, *_ in chosen.values()}
    search: dict[str, Any] = {"kind": "search", "method": "biotune"}
    bases = [Contender(name=base, spec=BASES[base], **search) for base in BASES if base in taken]
    factors = [
        Contender(
            name=name,
            spec={**BASES[base], **spec},
            sampler=sampler,
            trials=max(1, round(share * trials)),
            **search,
        )
        for name, (base, spec, sampler, share) in chosen.items()
    ]
    return (*bases, *factors)


def references(names: Sequence[str]) -> dict[str, str]:
    """Return each factor's base of comparison; the paper's base is compared with the default's.

    Args:
        names: The factors wanted.
    """
    found = {name: FACTORS[name][0] for name in names}
    return {"paper": "biotune", **found} if "paper" in found.values() else found
