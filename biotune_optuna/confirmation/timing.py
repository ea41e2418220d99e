"""A study's clock: how long all of it takes, and its end in time where there is a limit.

Neither PyTorch nor timm is loaded: `biotune status` reads it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from biotune_optuna.clock import (
    EPOCHS_SHARE,
    SEARCH_SHARE,
    After,
    Forecast,
    Plan,
    Work,
    evidence_that_fits,
    evidence_up_to,
    forecast_of,
    measured_pace,
    measured_trial,
    members_up_to,
    training_share,
    trainings_after,
)
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.settled import settle
from biotune_optuna.effort import NORMAL
from biotune_optuna.schema import CLOCK_KEY, TrialRecord, as_mapping
from biotune_optuna.study.totals import count_trials

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from biotune_optuna.study.study import TuningStudy

_RATES = {2: (1e-3, 1e-2), 3: (1e-3, 3e-3, 1e-2), 4: (1e-3, 3e-3, 1e-2, 3e-2)}

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
"""States of trials that took their whole time."""


@dataclass
class Timing:
    """What is known about a study's time, kept true while it runs.

    Attributes:
        plan: What is to be done.
        work: The images.
        full: Seconds of a full training, as measured before the first trial.
        evidence: The confirmation that is wanted.
        limit: Seconds for everything; None for no limit.
        spent: Seconds that earlier calls have worked on the study.
        began: Moment on `time.monotonic`'s clock at which this call began.
        trials: Seconds of each finished trial.
        shares: What each of them was expected to take, in full trainings, by what it freezes and
            how many epochs it trained.
        epochs: Epochs that each of them trained, as a share of those allowed.
        most: Trials with a time limit at most: beyond, more evidence is worth more than recipes.
        done: Trials that count.
        stage: Trainings of the confirmation that are over, their number in all, and the moments at
            which the first and the last of them began; None before.
    """

    plan: Plan
    work: Work
    full: float
    evidence: ConfirmPlan = field(default_factory=ConfirmPlan)
    limit: float | None = None
    spent: float = 0.0
    began: float = field(default_factory=time.monotonic)
    trials: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    most: int = NORMAL.trials
    done: int = 0
    stage: tuple[int, int, float, float] | None = None
    _first_done: int = 0
    _ended: float | None = None

    @property
    def trial(self) -> float:
        """Seconds of the next trial, as far as is known."""
        return self._paced * measured_trial(self.shares, SEARCH_SHARE * self.work.runs)

    @property
    def full_now(self) -> float:
        """Seconds of a full training, by what trials took and how early they ended."""
        return self._paced * measured_trial(self.epochs, EPOCHS_SHARE) / EPOCHS_SHARE

    @property
    def _paced(self) -> float:
        """Seconds of a full training that trains the usual share of the epochs."""
        expected = [self.full * share for share in self.shares]
        return self.full * measured_pace(sum(self.trials), expected)

    def forecast(self) -> Forecast:
        """Return how long each part still takes, the search without its trials that are over."""
        return forecast_of(self.plan, self.work, self.full_now, trial=self.trial, done=self.done)

    def after(self) -> After:
        """Return the trainings after the search."""
        return trainings_after(self.plan, self.work, self.full_now)

    @property
    def elapsed(self) -> float:
        """Seconds that the study has been worked on, by this call and those before."""
        return self.spent + time.monotonic() - self.began

    def left(self) -> float:
        """Return the seconds until everything is done."""
        parts = self.forecast()
        if self.stage is not None:
            done, total, first, last = self.stage
            every = self.after().left(0, total)
            pace = measured_pace(last - first, every[self._first_done : done])
            rest = [*(pace * one for one in every[done:]), parts.report]
            return sum(rest) - min(rest[0], time.monotonic() - last)
        if self.limit is not None:  # the search goes on as long as there is time
            return max(0.0, self.limit - self.elapsed)
        return parts.total

    def trial_finished(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Note how long a trial took; end the search in time. A callback of the search."""
        now = time.monotonic()
        if trial.state in ENDED:
            took = trial.duration.total_seconds() if trial.duration is not None else 0.0
            if self._ended is not None:  # with what was drawn and asked between the two
                took = max(took, now - self._ended)
            self.trials.append(took)
            self.shares.append(trial_share(trial, self.plan, self.work))
            self.epochs.append(trial_epochs(trial, self.plan))
            self.done += 1
        self._ended = now
        if self.is_time_up and self.done:
            study.stop()

    @property
    def is_time_up(self) -> bool:
        """Whether another trial would leave too little time for what comes after the search."""
        if self.limit is None:
            return False
        return self.elapsed + self.trial + self.forecast().after > self.limit

    def training_begins(self, done: int, total: int) -> None:
        """Note how far the confirmation is."""
        if self.stage is None:
            self._first_done = done
        now = time.monotonic()
        self.stage = (done, total, now if self.stage is None else self.stage[2], now)

    def trainings_over(self) -> None:
        """Note that only report and model are left."""
        if self.stage is not None:
            self.training_begins(self.stage[1], self.stage[1])

    def most_trials(self, asked: int | None) -> int | None:
        """Return the total that the search stops at, should its time not be over before.

        Args:
            asked: The total that somebody asked for.
        """
        if asked is not None or self.limit is None:
            return asked
        return max(self.most, self.plan.trials)

    def confirm_plan(self, study: TuningStudy) -> ConfirmPlan:
        """Return how much evidence the time that is left allows; the study keeps the choice."""
        if self.limit is None or self.evidence.from_search:
            return self.evidence
        stored = as_mapping(study.study.user_attrs.get(CLOCK_KEY))
        settled, trials = settle(study.study), study.study.get_trials(deepcopy=False)
        late = sum(trial.state == TrialState.COMPLETE for trial in trials) - len(settled)
        finished = count_trials(trials).finished - late
        if stored.get("confirmed_at") == finished:
            self.plan = plan_of(stored)
        else:
            left = self.limit - self.elapsed
            self.plan = dataclasses.replace(self.plan, trials=max(1, self.done))
            self.plan = evidence_that_fits(
                left,
                self.plan,
                self.work,
                full=self.full_now,
                trial=self.trial,
                members=members_up_to(self.evidence.members),
                evidence=evidence_up_to(self.evidence.top_k, self.evidence.n_runs),
            )
            self.store(study.study, confirmed_at=finished)
        usual = ConfirmPlan()
        return dataclasses.replace(
            self.evidence,
            top_k=self.plan.top_k,
            n_runs=self.plan.n_runs,
            rates=_RATES.get(self.plan.rates, usual.rates),
            members=self.plan.members,
            more_rates=usual.more_rates if self.plan.rates >= len(usual.rates) else 1,
        )

    def store(self, study: optuna.Study, **more: Any) -> None:
        """Write the plan into the study, for `biotune status` and for who goes on."""
        facts = {
            "plan": dataclasses.asdict(self.plan),
            "work": dataclasses.asdict(self.work),
            "full": self.full,
            "limit": self.limit,
        }
        study.set_user_attr(CLOCK_KEY, facts | more)


def trial_share(trial: FrozenTrial, plan: Plan, work: Work) -> float:
    """Return what a finished trial was to take, in full trainings, by what it froze."""
    record = TrialRecord(trial)
    multipliers = list(record.recipe.multipliers.values())
    if not record.runs or not multipliers:
        return SEARCH_SHARE * work.runs
    return sum(training_share(multipliers, run.epochs, plan.epochs) for run in record.runs)


def trial_epochs(trial: FrozenTrial, plan: Plan) -> float:
    """Return the epochs that a finished trial trained, as a share of those allowed."""
    runs = TrialRecord(trial).runs
    if not runs or not plan.epochs:
        return EPOCHS_SHARE
    return sum(run.epochs for run in runs) / (len(runs) * plan.epochs)


def plan_of(stored: Mapping[str, Any]) -> Plan:
    """Return the plan that `Timing.store` wrote."""
    known = {one.name for one in dataclasses.fields(Plan)}
    return Plan(**{key: value for key, value in stored["plan"].items() if key in known})


def work_of(stored: Mapping[str, Any]) -> Work:
    """Return the work that `Timing.store` wrote."""
    known = {one.name for one in dataclasses.fields(Work)}
    facts = {key: value for key, value in stored["work"].items() if key in known}
    return Work(**(facts | {"rivals": tuple(facts["rivals"])}))
