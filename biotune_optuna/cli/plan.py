"""``--within``: the plan for a time limit, and what a forecast says before the first trial."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from biotune_optuna.effort import NORMAL
from biotune_optuna.page.text import duration, plural

if TYPE_CHECKING:
    from biotune_optuna.cli.tune import Job
    from biotune_optuna.clock import Plan
    from biotune_optuna.confirmation.timing import Timing
    from biotune_optuna.study.spec import StudySpec

_LONG = 1800  # seconds


def planned(job: Job, began: float) -> tuple[StudySpec, Plan | None]:
    """Return spec and plan for an effort and a time limit; no plan without a limit.

    Args:
        job: The call of ``tune``.
        began: Moment on `time.monotonic`'s clock at which it began.
    """
    from biotune_optuna.confirmation.planning import plan_study
    from biotune_optuna.storage.open import open_storage

    if job.within is not None:
        click.echo("Measuring how fast this machine is ...", err=True)
    elif job.effort == NORMAL:
        return job.spec, None
    return plan_study(
        job.within,
        job.spec,
        storage=open_storage(job.storage),
        name=job.name,
        given=job.given,
        device=job.device,
        at_least=job.at_least,
        effort=job.effort,
        spent=time.monotonic() - began,
    )


def plan_lines(timing: Timing, job: Job) -> Iterator[str]:
    """Say how long everything will take, part by part, and what would make it shorter.

    Args:
        timing: The study's clock.
        job: The call of ``tune``.
    """
    plan, parts, by_time = timing.plan, timing.forecast(), timing.limit is not None
    contenders = f"{plural(plan.top_k, 'recipe')}, {plural(len(timing.work.rivals), 'rival')}"
    what = {
        "search": f"{plural(plan.trials, 'trial')} of up to {plan.epochs} epochs",
        "confirmation": f"{contenders}; {plural(plan.n_runs, 'fresh seed')} each",
        "final trainings": f"the winner {plural(plan.members, 'time')}, other tested models once",
        "report": "and the model's folder",
    }
    if timing.limit is not None:
        told = f"Plan for {duration(timing.limit)} in all"
        yield f"{told}, {duration(timing.spent)} of it spent before" if timing.spent else told
    elif job.timeout is None:
        yield f"About {duration(parts.total)} on this machine"
    else:
        yield f"The search ends in time; about {duration(parts.after)} follow"
    for name, words in what.items():
        if name in ("confirmation", "final trainings") and timing.work.from_search:
            continue
        if name != "search" or job.timeout is None:
            yield f"  {name:15} {duration(getattr(parts, name.split()[0])):>12}  {words}"
    if timing.work.from_search:
        yield "  Nothing is confirmed or trained again: the model is made of the search's own"
    if not by_time and parts.total > _LONG:
        yield "  Shorter: --effort quick, or --within 30m, which chooses what fits"
