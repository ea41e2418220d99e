"""What `BioTuneClassifier.fit` shows while it runs: a bar of tqdm with the time that is left."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Self

from tqdm.auto import tqdm

from biotune_optuna.page.text import duration

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

    from biotune_optuna.confirmation.timing import Timing
    from biotune_optuna.finetune.results import EpochRecord
    from biotune_optuna.study.spec import SearchRun


def somebody_looks() -> bool:
    """Whether there is a terminal or a notebook to show a bar in."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Bar:
    """A bar over the trials and then over the trainings of the confirmation.

    Args:
        timing: The study's clock.
        total: Trials in all; None where only time ends the search.
    """

    def __init__(self, timing: Timing, total: int | None) -> None:
        self._timing, self._total = timing, total
        self._best = math.nan
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._open("search", self._timing.done, self._total)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def trial_started(self, trial: Trial) -> None:
        """Show the time that is left."""
        self._say(f"trial {trial.number}")

    def epoch(self, run: SearchRun, record: EpochRecord) -> None:
        """Show the epoch."""
        self._say(f"run {run.index + 1}, epoch {record.epoch}")

    def trial_finished(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Count a trial; a callback of the search."""
        if trial.value is not None and not trial.value <= self._best:
            self._best = trial.value
        self._bar.update(self._timing.done - self._bar.n)
        self._say(f"trial {trial.number} over")
        del study

    def stage(self, name: str, detail: str, done: int, total: int) -> None:
        """Count a training outside the search."""
        if self._bar.desc.rstrip(": ") != "confirmation":
            self._bar.close()
            self._open("confirmation", done, total)
        self._timing.training_begins(done, total)
        self._bar.update(done - self._bar.n)
        self._say(f"{name}: {detail}")

    def _open(self, what: str, done: int, total: int | None) -> None:
        form = "{desc}: {n_fmt}/{total_fmt} |{bar}| {postfix}" if total is not None else None
        self._bar = tqdm(desc=what, initial=done, total=total, bar_format=form, leave=False)

    def _say(self, now: str) -> None:
        best = f"best {self._best:.3f}, " if math.isfinite(self._best) else ""
        self._bar.set_postfix_str(f"{best}{duration(self._timing.left())} left, {now}")
