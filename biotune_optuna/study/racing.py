"""Racing: no further runs for a genome that is clearly beaten."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from biotune_optuna.schema import TrialRecord

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from biotune_optuna.study.spec import SearchRun


# Both were chosen by hand.
_MIN_TRIALS = 5  # below that the spread is not known
_Z = 2.0  # how many standard errors behind the incumbent a genome gives up


class Race(NamedTuple):
    """The incumbent that an evaluation runs against.

    Attributes:
        number: The incumbent's trial number.
        scores: Its score on each run.
        spread: Standard deviation of a run's score once genome and run effects are taken out.
    """

    number: int
    scores: tuple[float, ...]
    spread: float

    def is_lost(self, scores: Sequence[float]) -> bool:
        """Whether the paired difference on the runs done is beyond the known spread.

        Args:
            scores: Scores on the first runs, in the incumbent's order, at least one.
        """
        n = len(scores)
        behind = float(np.mean(np.asarray(self.scores[:n]) - np.asarray(scores)))
        return behind > _Z * self.spread * math.sqrt(2.0 / n)


def make_race(
    trials: Iterable[FrozenTrial], runs: Sequence[SearchRun], *, n_val: int
) -> Race | None:
    """Find the incumbent among finished trials and the spread of a run's score.

    Scores are compared fold by fold. The spread is the residual standard deviation of the additive
    model score = genome + run, luck of the seed included, and at least one validation image. Trials
    with a run that diverged are left out: its worst score would hide what others differ by.

    Args:
        trials: The study's COMPLETE trials.
        runs: The runs that the new evaluation will make.
        n_val: Number of validation images.

    Returns:
        None while fewer than five such trials ran on the same folds, or where there is one run.
    """
    if len(runs) < 2:
        return None
    wanted = [run.fold for run in runs]
    rows: list[tuple[int, tuple[float, ...]]] = []
    for trial in trials:
        stored = TrialRecord(trial)
        if not stored.diverged and [run.fold for run in stored.runs] == wanted:
            rows.append((trial.number, tuple(r.score for r in stored.runs)))
    if len(rows) < _MIN_TRIALS:
        return None
    table = np.array([scores for _, scores in rows])
    residuals = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    spread = max(math.sqrt(float((residuals**2).sum()) / freedom), 1.0 / n_val)
    number, scores = max(rows, key=lambda row: (float(np.mean(row[1])), -row[0]))
    return Race(number, scores, spread)
