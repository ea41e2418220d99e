"""How much evidence a confirmation gathers."""

from __future__ import annotations

from dataclasses import dataclass

from biotune_optuna.errors import StudyError
from biotune_optuna.plain import make_plain

__all__ = ["ConfirmPlan"]


@dataclass(frozen=True, kw_only=True)
class ConfirmPlan:
    """How much evidence is gathered.

    Attributes:
        top_k: Recipes of the search that are trained again, default 3.
        n_runs: Fresh seeds for each recipe and rival, default 3.
        rates: Base rates tried for each rival, one run each on the search's first run.
        mistakes: Test images listed as most confidently wrong.
        rivals: Trained beside the recipes, and a possible winner: ``"full"``, ``"linear-probe"``,
            both (default) or neither.
        tolerance: Standard errors of the best mean within which recipes count as equal, so that
            the cheapest of them wins, default 1; with 0 the best mean wins.
        must_hold: Whether a winner whose final training diverges on three seeds is an error
            (default), for a model is wanted, or is tested as it is, as a rival is.
    """

    top_k: int = 3
    n_runs: int = 3
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    mistakes: int = 12
    rivals: tuple[str, ...] = ("full", "linear-probe")
    tolerance: float = 1.0
    must_hold: bool = True

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("top_k", "n_runs"):
            if getattr(self, name) < 1:
                raise StudyError(f"{name} {getattr(self, name)} is too small; give at least 1")
        for name in self.rivals:
            if name not in ("full", "linear-probe"):
                raise StudyError(f"rival {name!r} is unknown here; choose full or linear-probe")
        if self.tolerance < 0:
            raise StudyError(f"tolerance {self.tolerance} is negative; give 0 or more")
        if self.rivals and not self.rates:
            raise StudyError("the rivals need at least one base rate to try")
