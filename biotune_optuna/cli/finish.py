"""What comes after the search, by one of the workers or by several: confirm, export, report."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from biotune_optuna.confirmation.confirm import confirm, help_confirm
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.shared import Sharing
from biotune_optuna.confirmation.winner import export_winner
from biotune_optuna.report.html import write_report
from biotune_optuna.schema import EVIDENCE_KEY, as_mapping

if TYPE_CHECKING:
    from biotune_optuna.cli.progress import Marked
    from biotune_optuna.confirmation.record import Confirmation
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
        outcome: What came out, once it is known here.
    """

    study: TuningStudy
    plan: ConfirmPlan
    out: Path
    progress: Marked
    attachments: Attachments
    stop: StopRequest
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
        help_confirm(self.study, self.plan, sharing, observer=self.progress)

    def _do(self, sharing: Sharing | None) -> None:
        study, progress = self.study, self.progress
        progress.study = study.study
        check = self.stop.check
        result = confirm(study, self.plan, observer=progress, checkpoint=check, sharing=sharing)
        model = export_winner(study, self.out / "model", observer=progress)
        progress.over()
        self.attachments.finished(study.study, model, result.winner.trial)
        report = write_report(study.study, self.out / "report.html")
        self.outcome = Outcome(result, model, report)

    def _key(self) -> str:
        """Name what is done once: the confirmation of these trials with this evidence."""
        trials = len(self.study.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        basis = json.dumps(self.plan.basis(trials), sort_keys=True)
        return f"end: {hashlib.sha256(basis.encode()).hexdigest()[:16]}"


def keep_evidence(study: TuningStudy, plan: ConfirmPlan, total: int | None, out: Path) -> None:
    """Write into a study how any worker may confirm it once it has its total of trials.

    Args:
        study: The study.
        plan: How much evidence is gathered.
        total: The total; None where time ends the search, and so only this process knows its end.
        out: Folder of report and model.
    """
    facts = {"plan": plan.to_dict(), "total": total, "out": str(out.absolute())}
    known = study.study.user_attrs.get(EVIDENCE_KEY)
    wanted = {} if total is None else json.loads(json.dumps(facts))
    if known != wanted and (known or wanted):
        study.study.set_user_attr(EVIDENCE_KEY, wanted)


def evidence_of(study: TuningStudy, total: int | None) -> tuple[ConfirmPlan, Path] | None:
    """Return how a study with that total is confirmed, and where its model goes.

    None where its search ends otherwise, or nobody has said so.
    """
    facts = as_mapping(study.study.user_attrs.get(EVIDENCE_KEY))
    if not facts or facts["total"] != total:
        return None
    return ConfirmPlan.from_dict(facts["plan"]), Path(facts["out"])
