"""What a contender reached in one repeat."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biotune_optuna.finetune.results import RunResult

__all__ = ["Outcome"]


@dataclass
class Outcome:
    """Score and cost of one cell; the fields are those of `biotune_optuna.compare.rows.Row`."""

    score: float = math.nan
    validation: float = math.nan
    trainable: float = 0.0
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    evaluations: int = 0
    setting: str = ""

    @property
    def passes(self) -> int:
        """Image passes, forward and backward."""
        return self.forward + self.backward

    def charge(self, result: RunResult) -> RunResult:
        """Add a run's cost."""
        self.forward += result.images_forward
        self.backward += result.images_backward
        self.seconds += result.seconds
        self.trainable = 100 * result.trainable_fraction
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON-ready data, rounded to what a table needs."""
        data = asdict(self)
        for name, digits in (("score", 6), ("validation", 6), ("trainable", 4), ("seconds", 2)):
            data[name] = round(data[name], digits)
        return data
