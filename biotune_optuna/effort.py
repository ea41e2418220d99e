"""How much work a study is: three levels that set everything that costs, together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from biotune_optuna.errors import StudyError


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What one level of effort takes. What somebody sets alone overrides it.

    Attributes:
        name: Its name.
        trials: Finished trials of the search.
        epochs: Most epochs of one training.
        top_k: Recipes of the search that are trained again.
        n_runs: Fresh seeds for each of them and for the rivals.
        members: Final trainings that the model is made of.
        side: Images are at most so large, in pixels; None is no limit beyond the model's own.
    """

    name: str
    trials: int
    epochs: int
    top_k: int
    n_runs: int
    members: int
    side: int | None = None

    @property
    def words(self) -> str:
        """What it takes, in words."""
        side = "the usual image size" if self.side is None else f"images of at most {self.side} px"
        return (
            f"{self.trials} trials of {self.epochs} epochs, {self.top_k} recipes on {self.n_runs}"
            f" seeds, {self.members} members, {side}"
        )


# Chosen by hand; docs/benchmarks/study_cost.md has what shorter searches lose.
QUICK: Final = Effort(name="quick", trials=12, epochs=10, top_k=2, n_runs=2, members=3, side=128)
NORMAL: Final = Effort(name="normal", trials=24, epochs=10, top_k=3, n_runs=3, members=5)
THOROUGH: Final = Effort(name="thorough", trials=120, epochs=20, top_k=5, n_runs=5, members=8)

KEPT: Final = 20
"""Models of the search that are kept where the final model is made of them and nobody says how
many."""

EFFORTS: Final = {one.name: one for one in (QUICK, NORMAL, THOROUGH)}
"""The levels by name, the least first."""


def effort_of(name: str | None) -> Effort:
    """Return a level by its name; None is the normal one.

    Raises:
        StudyError: If there is none of that name.
    """
    if name is None:
        return NORMAL
    if name not in EFFORTS:
        raise StudyError(f"effort {name!r} is unknown; choose {', '.join(EFFORTS)}")
    return EFFORTS[name]
