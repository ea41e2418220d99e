"""How much evidence a confirmation gathers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from biotune_optuna.errors import StudyError
from biotune_optuna.jsonable import make_plain
from biotune_optuna.methods.registry import methods
from biotune_optuna.study.spec import at_least


@dataclass(frozen=True, kw_only=True)
class ConfirmPlan:
    """How much evidence is gathered.

    Attributes:
        top_k: Recipes of the search that are trained again, default 3.
        n_runs: Fresh seeds for each recipe and rival, default 3.
        rates: Base rates tried for each rival that has one, one run each on the search's first run.
        more_rates: How many further ones a rival gets at most while its lowest or highest rate is
            its best, see `further_rate`; default 3.
        mistakes: Test images listed as most confidently wrong.
        rivals: Trained beside the recipes, and a possible winner: ``"full"`` and
            ``"linear-probe"`` (default), or any method that is no more than its recipe, such as
            ``"linear-probe-sgd"``.
        tolerance: Standard errors of the best mean within which recipes count as equal, so that
            the cheapest of them wins, default 1; with 0 the best mean wins.
        must_hold: Whether a winner whose final training diverges on three seeds is an error
            (default), for a model is wanted, or is tested as it is, as a rival is.
    """

    top_k: int = 3
    n_runs: int = 3
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    more_rates: int = 3
    mistakes: int = 12
    rivals: tuple[str, ...] = ("full", "linear-probe")
    tolerance: float = 1.0
    must_hold: bool = True

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("top_k", "n_runs"):
            at_least(name, getattr(self, name), 1)
        if self.more_rates < 0:
            raise StudyError(f"more_rates {self.more_rates} is negative; give 0 or more")
        known = [name for name, method in methods().items() if method.in_confirmation]
        for name in self.rivals:
            if name not in known:
                raise StudyError(f"rival {name!r} is unknown here; choose {' or '.join(known)}")
        if self.tolerance < 0:
            raise StudyError(f"tolerance {self.tolerance} is negative; give 0 or more")
        if self.rivals and not self.rates:
            raise StudyError("the rivals need at least one base rate to try")

    def basis(self, trials: int) -> dict[str, Any]:
        """Return what a confirmation stands on as JSON-ready data; one with an equal basis holds.

        Args:
            trials: How many trials had finished.
        """
        basis: dict[str, Any] = {
            "trials": trials,
            "top_k": self.top_k,
            "n_runs": self.n_runs,
            "rates": list(self.rates),
        }
        if self.more_rates:
            basis["more_rates"] = self.more_rates
        usual = ConfirmPlan()
        if (self.rivals, self.tolerance) != (usual.rivals, usual.tolerance):
            basis |= {"rivals": list(self.rivals), "tolerance": self.tolerance}
        return basis


def further_rate(scores: Mapping[float, float], *, worst: float = 0.0) -> float | None:
    """Return the rate to try next where those tried may not reach the best one.

    A network without normalisation layers, for instance, can need a tenth of what others do.

    Args:
        scores: The score of each rate tried, at most 1, higher is better.
        worst: The score of a run that diverged.

    Returns:
        The next lower of …, 1e-4, 3e-4, 1e-3, …, about a third, where the lowest is better than
        all others, or where all that did not diverge score the same and less than 1, as dead
        networks do; the next higher where the highest is better than all others; else None.
    """
    low, *others = (scores[rate] for rate in sorted(scores))
    if not others:
        return None
    dead = low < 1 and set(others) <= {low, worst}
    if low > max(others) or dead:
        return _neighbour(min(scores), -1)
    *others, high = low, *others
    return _neighbour(max(scores), 1) if high > max(others) else None


def _neighbour(rate: float, step: int) -> float:
    """Return the next rate of 1, 3, 10, 30, … times a power of ten, below or above."""
    half_decades = round(2 * math.log10(rate)) + step
    return float(f"{10 ** (half_decades / 2):.0e}")
