"""A contender that somebody wants as a model, whether or not it has won."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from optuna.trial import TrialState

from biotune_optuna.confirmation.known import rates_known
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.protocol import Contest, Entrant
from biotune_optuna.confirmation.record import Confirmation, Contender, Ledger
from biotune_optuna.errors import StudyError

if TYPE_CHECKING:
    from biotune_optuna.study.objective import Observer
    from biotune_optuna.study.study import TuningStudy

ASKED: Final = "it was asked for"
"""How the reason begins for which a contender that has not won is exported."""

_RIVALS = {"full": "full", "probe": "linear-probe"}


def as_asked(
    study: TuningStudy,
    what: str,
    *,
    observer: Observer | None = None,
    checkpoint: Callable[[], None] | None = None,
) -> Confirmation:
    """Return a study's confirmation as if the contender that is asked for had won.

    One that was not confirmed is trained on fresh seeds first, as a confirmation does it; these
    trainings are kept in the study. The test images are not looked at.

    Args:
        study: The study.
        what: ``"best"``, the winner; ``"full"``, ``"probe"`` or ``"trial:N"``.
        observer: Told of the progress.
        checkpoint: Called after each epoch; raises to stop.

    Raises:
        StudyError: If there is no such contender, or the winner is asked for and there is none.
    """
    stored = Confirmation.of(study.study.user_attrs)
    if what == "best":
        if not stored:
            raise StudyError(f"study {study.name!r} has no confirmed winner yet; finish it first")
        return stored
    plan = _plan_of(stored)
    entrant = _entrant(study, what, plan)
    if entrant.name == stored.chosen and not stored.from_search:
        return stored
    found = stored if stored and not stored.from_search else begun(study, plan.members)
    if found.contender(entrant.name) is None:
        contest = Contest(
            study.setup,
            [entrant],
            n_runs=plan.n_runs,
            n_final=plan.members,
            views=found.views,
            ledger=Ledger(study.study),
            observer=observer,
            checkpoint=checkpoint,
        )
        found = _with(found, *contest.run())
    why = ASKED
    if stored:
        why += f"; the confirmation chose {stored.chosen}"
    return dataclasses.replace(
        found, chosen=entrant.name, why=why, ensemble=None, gain=None, calibration=None
    )


def _plan_of(stored: Confirmation) -> ConfirmPlan:
    """Return how much evidence a confirmation gathered; the usual where there is none."""
    usual = ConfirmPlan()
    if not stored:
        return usual
    if stored.from_search:
        return dataclasses.replace(usual, members=int(stored.basis.get("members", usual.members)))
    basis = stored.basis
    return dataclasses.replace(
        usual,
        n_runs=int(basis.get("n_runs", usual.n_runs)),
        rates=tuple(basis.get("rates", usual.rates)),
        more_rates=int(basis.get("more_rates", 0)),
        reuse=bool(basis.get("reuse", False)),
        members=stored.members,
    )


def _entrant(study: TuningStudy, what: str, plan: ConfirmPlan) -> Entrant:
    finished = study.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if name := _RIVALS.get(what):
        return Entrant.of_rival(name, plan, rates_known(study, plan, name, finished))
    kind, _, number = what.partition(":")
    if kind != "trial" or not number.isdecimal():
        raise StudyError(f"there is no {what!r} to export; give best, full, probe or trial:N")
    for trial in finished:
        if trial.number == int(number):
            return Entrant.of_trial(trial, study.setup.space.genome(trial.params).decode())
    numbers = ", ".join(str(trial.number) for trial in finished[:8]) or "none"
    more = ", ..." if len(finished) > 8 else ""
    raise StudyError(
        f"study {study.name!r} has no finished trial {number}; it has finished {numbers}{more}"
    )


def begun(study: TuningStudy, members: int) -> Confirmation:
    """Return the confirmation of a study that has none, without contenders."""
    splits = study.setup.splits
    return Confirmation(
        metric=study.spec.train.metric,
        classes=tuple(study.setup.classes),
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        n_train=len(splits.train),
        n_val=len(splits.val),
        n_test=len(splits.test),
        members=members,
    )


def _with(found: Confirmation, one: Contender) -> Confirmation:
    if one.is_rival:
        return dataclasses.replace(found, rivals=(*found.rivals, one))
    return dataclasses.replace(found, candidates=(*found.candidates, one))
