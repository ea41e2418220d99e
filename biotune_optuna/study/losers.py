"""Losers: a training that is behind the others at the same epoch ends there, and tells its best.

The rule is that of Optuna's median pruner. But the trial is no PRUNED one: its value is its best
score so far, as where patience ends a training. So the model of the landscape learns of it. What
that saves and loses is in docs/benchmarks/study_cost.md; a study does it only where asked to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from biotune_optuna.schema import TrialRecord

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# Measured beside others on tables of real trainings; of those that save a third it lost least.
_PERCENTILE = 50.0
_TRIALS = 10  # trainings that must have ended by themselves first

BEHIND: Final = "behind"
"""Why a run ended (`RunResult.stopped`) that was behind."""


@dataclass(frozen=True)
class Others:
    """The trainings that one is compared with.

    Attributes:
        curves: Score after each epoch, counted from 1, of trainings that ended by themselves.
    """

    curves: tuple[Mapping[int, float], ...]

    def beat(self, scores: Sequence[float]) -> bool:
        """Whether a training is so far behind that it need not go on.

        Args:
            scores: Its score after each epoch so far, at least one.
        """
        epoch = len(scores)
        if len(self.curves) < _TRIALS:
            return False
        there = [curve[epoch] for curve in self.curves if epoch in curve]
        best = float(np.nanmax([-np.inf, *scores]))
        return bool(there) and best < float(np.percentile(there, _PERCENTILE))


def others_of(trials: Iterable[FrozenTrial]) -> Others:
    """Return what a new training is compared with.

    Args:
        trials: The study's COMPLETE trials.
    """
    return Others(
        tuple(
            trial.intermediate_values
            for trial in trials
            if [run.stopped for run in TrialRecord(trial).runs] in (["finished"], ["patience"])
        )
    )
