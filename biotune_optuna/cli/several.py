"""``biotune tune`` with several networks: studies side by side, one winner."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from biotune_optuna.cli.checks import quieten_optuna, stoppable
from biotune_optuna.effort import KEPT
from biotune_optuna.errors import StudyError
from biotune_optuna.page.text import duration

if TYPE_CHECKING:
    from biotune_optuna.cli.tune import Job
    from biotune_optuna.study.race import Race, Raced
    from biotune_optuna.study.stop import StopRequest


def winner_of(job: Job, models: Sequence[str]) -> Job:
    """Search several networks, the trials moved towards the better ones; return the last one's job.

    Each network has a study of its own. After each round the better half goes on, see
    `biotune_optuna.study.race.quotas`. What the last one still lacks is left to its own job.

    Args:
        job: The call of ``tune``, with the trials of all networks together.
        models: The networks.

    Raises:
        BioTuneError: If the networks cannot be searched side by side.
    """
    from biotune_optuna.confirmation.several import check_models, keep_race, race_of
    from biotune_optuna.storage.open import open_storage
    from biotune_optuna.study.race import quotas

    quieten_optuna()
    check_models(models)
    if job.like:
        raise StudyError(
            f"--like {job.like} gives recipes of one network, and there are several; leave it out"
        )
    if job.spec.weights not in ("auto", "hub", "none"):
        raise StudyError(
            f"weights {job.spec.weights!r} are of one network, and there are several; give auto, "
            "hub or none"
        )
    assert job.trials is not None, "the command sees to it"
    totals = quotas(job.trials, len(models))
    storage = open_storage(job.storage)
    race = race_of(storage, job.name, models)
    fresh = 0 if job.quick else job.effort.n_runs  # --quick trains nothing on fresh seeds
    click.echo(
        f"{len(models)} networks side by side, {job.trials} trials in all. After each round the "
        "better half goes on.",
        err=True,
    )
    with stoppable("Stopped; everything finished is kept. The same command goes on.") as stop:
        for total in totals[race.rounds : -1]:
            last = len(race.alive) <= 2
            found = [
                _searched(job, one, total, fresh=fresh if last else 0, stop=stop)
                for one in race.alive
            ]
            race = race.after(found)
            keep_race(storage, race)
            _say_round(race, found, job)
    (chosen,) = race.alive
    return dataclasses.replace(
        job,
        spec=dataclasses.replace(job.spec, model=chosen.name),
        name=chosen.study,
        trials=max(totals[-1], chosen.trials),
    )


def _searched(job: Job, network: Raced, total: int, *, fresh: int, stop: StopRequest) -> Raced:
    """Search a network until its study holds a number of trials; return how good it is."""
    from biotune_optuna.cli.plan import planned
    from biotune_optuna.cli.progress import Marked, search
    from biotune_optuna.confirmation.donor import begin_like
    from biotune_optuna.confirmation.plan import ConfirmPlan
    from biotune_optuna.confirmation.planning import timing_of
    from biotune_optuna.confirmation.several import standing
    from biotune_optuna.report.dashboard.attach import Attachments
    from biotune_optuna.report.loggers import trial_logger
    from biotune_optuna.study.study import create_study

    own = dataclasses.replace(job.spec, model=network.name)
    spec, _ = planned(dataclasses.replace(job, spec=own, name=network.study), time.monotonic())
    loggers = [trial_logger(one, network.study, spec.train.metric) for one in job.log]
    study = create_study(spec, storage=job.storage, name=network.study, device=job.device)
    clock = timing_of(study, total, ConfirmPlan())
    left = max(0, total - clock.done) * clock.trial
    told = f", about {duration(left)}" if left else ""
    click.echo(f"Study {network.study}, until it has {total} trials{told}", err=True)
    if job.like is None and (said := begin_like(study)):
        click.echo(said, err=True)
    progress = Marked.of(spec, total, None, job.display)
    progress.study = study.study
    with progress:
        search(
            *(study, total, None, stop),
            progress=progress,
            attachments=Attachments(job.storage, study.setup.classes),
            loggers=loggers,
            keep_models=KEPT if job.quick and job.keep_models is None else job.keep_models,
        )
        found = standing(study, network, fresh=fresh, observer=progress, checkpoint=stop.check)
        progress.over()
    return found


def _say_round(race: Race, found: Sequence[Raced], job: Job) -> None:
    """Tell which networks go on."""
    on = {one.name for one in race.alive}
    for one in sorted(found, key=lambda one: -one.worth):
        if job.display == "json":
            facts = {"event": "network", "round": race.rounds, "goes_on": one.name in on}
            click.echo(json.dumps(facts | one.to_dict()))
            continue
        known = "on fresh seeds" if one.fresh == one.fresh else "by the model of the landscape"
        verb = "goes on" if one.name in on else "is left behind"
        click.echo(f"  {one.name}: {one.worth:.3f} {known}, {verb}", err=True)
