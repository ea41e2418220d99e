"""What comes after the search, by one of the workers or by several: confirm, export, report."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from biotune_optuna.confirmation.confirm import confirm, help_confirm
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.record import Confirmation
from biotune_optuna.confirmation.settled import how_often, settle, settled_before
from biotune_optuna.confirmation.shared import Sharing
from biotune_optuna.confirmation.winner import export_winner
from biotune_optuna.report.html import write_report
from biotune_optuna.schema import EVIDENCE_KEY, as_mapping
from biotune_optuna.study.stale import StaleTrials
from biotune_optuna.study.totals import count

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from biotune_optuna.cli.progress import Marked
    from biotune_optuna.report.dashboard.attach import Attachments
    from biotune_optuna.study.stop import StopRequest
    from biotune_optuna.study.study import TuningStudy


class Outcome(NamedTuple):
    """How a study has ended: its confirmation, the model's folder and the report's file."""

    result: Confirmation
    model: Path
    report: Path


@dataclass
class Finish:
    """The end of a study, once its search is over.

    Attributes:
        study: The study.
        plan: How much evidence is gathered.
        out: Folder of report and model.
        progress: Told of what is done.
        attachments: Gets the outcome for the dashboard.
        stop: Asks to stop.
        trials: The COMPLETE trials to confirm; None for those that are settled now.
        outcome: What came out, once it is known here.
    """

    study: TuningStudy
    plan: ConfirmPlan
    out: Path
    progress: Marked
    attachments: Attachments
    stop: StopRequest
    trials: Sequence[FrozenTrial] | None = None
    outcome: Outcome | None = None

    def lead(self) -> Outcome:
        """Confirm, export and report here, with what help there is."""
        sharing = Sharing.of(self.study.study, self.stop)
        if sharing is not None:
            self._once(sharing)
        if self.outcome is None:  # made by another worker: what is there already is kept
            self._do(sharing)
        assert self.outcome is not None
        return self.outcome

    def follow(self) -> Outcome | None:
        """Help who leads; where nobody does, lead. None where another worker has made the end."""
        sharing = Sharing.of(self.study.study, self.stop)
        if sharing is not None:
            self._help(sharing)
            self._once(sharing)
        return self.outcome

    def _once(self, sharing: Sharing) -> None:
        sharing.once(self._key(), lambda: self._do(sharing), lambda: self._help(sharing))
        sharing.forget_weights()

    def _help(self, sharing: Sharing) -> None:
        help_confirm(self.study, self.plan, sharing, observer=self.progress, trials=self.trials)

    def _do(self, sharing: Sharing | None) -> None:
        study, progress = self.study, self.progress
        progress.study = study.study
        result = confirm(
            *(study, self.plan),
            observer=progress,
            checkpoint=self.stop.check,
            sharing=sharing,
            trials=self.trials,
        )
        progress.stage("report and model")
        model = export_winner(study, self.out / "model", observer=progress)
        self.attachments.finished(study.study, model, result.winner.trial)
        report = write_report(study.study, self.out / "report.html")
        progress.over()
        self.outcome = Outcome(result, model, report)

    def _key(self) -> str:
        """Name what is done once: the confirmation of these trials with this evidence."""
        trials = settle(self.study.study) if self.trials is None else self.trials
        basis = json.dumps(self.plan.basis(len(trials)), sort_keys=True)
        return f"end: {hashlib.sha256(basis.encode()).hexdigest()[:16]}"


class Evidence(NamedTuple):
    """How any worker confirms a study, and where the model goes.

    ``trials`` are those to confirm, where the process that searched for a time has said so; None
    where they are known by their total.
    """

    plan: ConfirmPlan
    out: Path
    trials: Sequence[FrozenTrial] | None = None


def keep_evidence(
    study: TuningStudy,
    plan: ConfirmPlan,
    total: int | None,
    out: Path,
    *,
    left: float | None = None,
) -> None:
    """Write into a study how any worker may confirm it once its search is over.

    Args:
        study: The study.
        plan: How much evidence is gathered.
        total: The total of trials; None where time ends the search, and so only this process knows
            its end: see `begin_end`.
        out: Folder of report and model.
        left: Seconds until that end at most.
    """
    facts: dict[str, Any] = {}
    if total is not None:
        facts = {"plan": plan.to_dict(), "total": total, "out": str(out.absolute())}
    elif left is not None:
        facts = {"total": None, "until": time.time() + left}
    known = study.study.user_attrs.get(EVIDENCE_KEY)
    facts = json.loads(json.dumps(facts))
    if known != facts and (known or facts):
        study.study.set_user_attr(EVIDENCE_KEY, facts)


def begin_end(study: TuningStudy, plan: ConfirmPlan, out: Path) -> list[FrozenTrial]:
    """Tell all workers that a search with a limit of time is over; return the trials to confirm.

    Args:
        study: The study.
        plan: How much evidence is gathered.
        out: Folder of report and model.
    """
    trials = settle(study.study)
    last = how_often(study.study.user_attrs) - 1
    facts = {"plan": plan.to_dict(), "total": None, "out": str(out.absolute()), "settled": last}
    study.study.set_user_attr(EVIDENCE_KEY, facts)
    return trials


def evidence_of(study: TuningStudy, total: int | None) -> Evidence | None:
    """Return how a study with that total is confirmed, and where its model goes.

    None where its search ends otherwise, or nobody has said so.
    """
    facts = as_mapping(study.study.user_attrs.get(EVIDENCE_KEY))
    if "plan" not in facts or facts["total"] not in (None, total):
        return None
    which = facts.get("settled")
    trials = None if which is None else settled_before(study.study, int(which))
    return Evidence(ConfirmPlan.from_dict(facts["plan"]), Path(facts["out"]), trials)


class TimedEnd:
    """The end of a search with a limit of time, as a worker sees it that did not set the limit.

    Args:
        study: The study. An end that it has behind it, confirmed, is none: a worker may add trials.
    """

    def __init__(self, study: TuningStudy) -> None:
        self._study = study.study
        attrs = self._study.user_attrs
        confirmed = Confirmation.of(attrs)
        trials = self._study.get_trials(deepcopy=False)
        stands = bool(confirmed) and confirmed.unconfirmed(trials, attrs) is None
        self._before = self._settled() if stands else None

    def _settled(self) -> int | None:
        facts = as_mapping(self._study.user_attrs.get(EVIDENCE_KEY))
        found: int | None = facts.get("settled")
        return found

    @property
    def has_begun(self) -> bool:
        """Whether the process that set the limit has begun to confirm."""
        return self._settled() not in (None, self._before)

    def left(self) -> float | None:
        """Seconds of the search that are left at most; None where it has no limit of time."""
        until = as_mapping(self._study.user_attrs.get(EVIDENCE_KEY)).get("until")
        return None if until is None else float(until) - time.time()

    def wait(self, stop: StopRequest, *, seconds: float = 60.0) -> None:
        """Wait until the end has begun, where a limit of time has been set.

        Args:
            stop: Asks to stop.
            seconds: How long after the time is over and no trial runs any more: nobody will begin.
        """
        stale, quiet = StaleTrials(self._study), time.monotonic()
        while not self.has_begun and (left := self.left()) is not None:
            running = count(self._study).running
            if left > 0 or (running and not stale.fail(running)):
                quiet = time.monotonic()
            if time.monotonic() >= quiet + seconds or stop.wait(min(1.0, seconds)):
                return

    def look(self, study: optuna.Study, _trial: FrozenTrial) -> None:
        """End the search of this process too. A callback of the search."""
        if self.has_begun:
            study.stop()
