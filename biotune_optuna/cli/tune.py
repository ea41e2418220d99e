"""``biotune tune`` and ``biotune demo``: search, confirm, report, export."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from biotune_optuna.cli.checks import (
    check_apart,
    check_no_comparison,
    folder_of,
    quieten_optuna,
    stoppable,
)
from biotune_optuna.cli.options import (
    DURATION,
    device_option,
    display_option,
    effort_for,
    effort_option,
    is_given,
    log_option,
    members_option,
    out_option,
    study_options,
)
from biotune_optuna.cli.spec import make_spec, spec_options
from biotune_optuna.effort import NORMAL, Effort
from biotune_optuna.errors import StudyError
from biotune_optuna.files import check_output

if TYPE_CHECKING:
    from biotune_optuna.report.view import StudyView
    from biotune_optuna.study.setup import Setup
    from biotune_optuna.study.spec import StudySpec

DEMO_SECONDS = 180.0


@dataclass(frozen=True)
class Job:
    """One call of ``tune`` or ``demo``.

    ``like`` is the study to begin with: None is one that fits, "" none.
    """

    spec: StudySpec
    storage: str | None
    name: str
    trials: int | None
    timeout: float | None
    device: str
    out: Path
    display: str | None
    members: int = 5
    prefer: str = "best"
    within: float | None = None
    like: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    at_least: bool = False
    effort: Effort = NORMAL
    log: tuple[str, ...] = ()


@click.command()
@spec_options
@study_options
@effort_option
@click.option(
    "--trials",
    type=int,
    help="Finished trials the study shall hold in all.  "
    f"[default: {NORMAL.trials}; with --timeout, as many as it leaves time for]",
)
@click.option(
    "--timeout",
    type=DURATION,
    help="Time for the search: 90s, 20m, 1h30m; the confirmation comes after.",
)
@members_option
@click.option(
    "--prefer",
    type=click.Choice(["best", "cheap"]),
    default="best",
    show_default=True,
    help="Who wins: the best mean on fresh seeds, or the cheapest within a standard error of it.",
)
@click.option(
    "--within",
    type=DURATION,
    help="Time for everything, report and model too: image size, epochs, trials, evidence and "
    "members are chosen to fit, unless they are given.",
)
@click.option(
    "--like",
    metavar="STUDY[@URL]",
    help="Begin with the best recipes of that study of the same network.  [default: the one that "
    "was confirmed last in the same database]",
)
@click.option("--no-like", is_flag=True, help="Begin without those of another study.")
@log_option
@out_option
@display_option
def tune(
    *,
    log: tuple[str, ...],
    storage: str | None,
    name: str | None,
    trials: int | None,
    timeout: float | None,
    within: float | None,
    device: str,
    out: str,
    display: str | None,
    members: int,
    prefer: str,
    like: str | None,
    no_like: bool,
    model: tuple[str, ...],
    effort: str | None,  # noqa: ARG001 - read with what else was given
    **spec: Any,
) -> None:
    """Tune a model on your own images; the same command goes on where it stopped.

    With several --model the networks are searched side by side, and one of them wins.
    """
    from biotune_optuna.cli.several import winner_of
    from biotune_optuna.study.spec import default_name

    if within is not None and timeout is not None:
        raise click.UsageError(
            "--within is the time for everything and --timeout that of the search; give one of them"
        )
    if like is not None and no_like:
        raise click.UsageError("--like names a study to begin with and --no-like none; give one")
    context = click.get_current_context()
    wanted = effort_for(context, spec["preset"])
    members = members if is_given(context, "members") else wanted.members
    if trials is None and timeout is None and within is None:
        trials = wanted.trials
    several = len(model) > 1
    if several and (timeout is not None or within is not None):
        raise click.UsageError(
            "several networks share a number of trials, not a time; give --trials"
        )
    made = make_spec(model=model[0] if model else None, **spec)
    by_name = any(one.startswith("epochs=") for one in spec["settings"])
    given = {
        "image_size": spec["image_size"],
        "epochs": made.train.epochs if by_name else spec["epochs"],
        "trials": context.params["trials"],
        "members": members,
    }
    name = name or default_name("networks" if several else made.model, made.data)
    job = Job(
        spec=made,
        storage=storage,
        name=name,
        trials=trials,
        timeout=timeout,
        device=device,
        out=folder_of(name, out),
        display=display,
        members=members,
        prefer=prefer,
        within=within,
        like="" if no_like or (like is None and made.preset == "paper") else like,
        given=given,
        effort=wanted,
        log=log,
    )
    check(job)
    run(winner_of(job, model) if several else job)


@click.command()
@study_options
@click.option(
    "--within", type=DURATION, help="Time for everything.  [default: 3m, unless --trials is given]"
)
@click.option("--trials", type=int, help="Total, whatever time it takes.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@members_option
@device_option
@out_option
@display_option
def demo(
    *,
    name: str | None,
    seed: int,
    out: str,
    within: float | None,
    trials: int | None,
    **job: Any,
) -> None:
    """Tune a small ImageNet model on scikit-learn's digit images: three minutes on a CPU."""
    name, spec = name or "demo", demo_spec(seed)
    if within is None and trials is None:
        within = DEMO_SECONDS
    run(
        Job(
            spec=spec,
            name=name,
            timeout=None,
            out=folder_of(name, out),
            within=within,
            trials=trials,
            given={"image_size": spec.image_size, "epochs": spec.train.epochs, "trials": trials},
            at_least=True,
            like="",
            **job,
        )
    )


def demo_spec(seed: int = 0) -> StudySpec:
    """Return the demo's study: 1,797 real digit images, 200 of them to train on."""
    from biotune_optuna.finetune.settings import TrainSettings
    from biotune_optuna.study.spec import StudySpec

    return StudySpec(
        model="tf_efficientnet_lite0",
        data="digits",
        image_size=48,
        crop_pct=1.0,
        train_size=200,
        val_size=200,
        test_fraction=0.4,
        lr=(3e-3, 3e-2),
        train=TrainSettings(epochs=6, patience=3, batch_size=32),
        seed=seed,
    )


def run(job: Job) -> None:
    """Search, confirms, exports and reports; prints where things are and what to type next."""
    from biotune_optuna.cli.finish import Finish, keep_evidence
    from biotune_optuna.cli.plan import plan_lines, planned
    from biotune_optuna.cli.progress import Marked, search
    from biotune_optuna.confirmation.donor import begin_like
    from biotune_optuna.confirmation.plan import ConfirmPlan
    from biotune_optuna.confirmation.planning import timing_of
    from biotune_optuna.confirmation.winner import check_export
    from biotune_optuna.report.dashboard.attach import Attachments
    from biotune_optuna.report.loggers import trial_logger
    from biotune_optuna.report.view import as_view
    from biotune_optuna.report.words import probe_sentence, rate_sentences
    from biotune_optuna.study.probe import first_answer
    from biotune_optuna.study.study import create_study

    began = time.monotonic()
    quieten_optuna()
    evidence = ConfirmPlan(
        top_k=job.effort.top_k,
        n_runs=job.effort.n_runs,
        members=job.members,
        prefer=job.prefer,  # type: ignore[arg-type]
    )
    check(job)
    loggers = [trial_logger(one, job.name, job.spec.train.metric) for one in job.log]
    click.echo(f"Study {job.name}: {job.spec.model} on {job.spec.data}", err=True)
    spec, plan = planned(job)
    study = create_study(
        spec,
        storage=job.storage,
        name=job.name,
        device=job.device,
        prepared=_say_images,
        tell=lambda said: click.echo(said, err=True),
    )
    for sentence in rate_sentences(as_view(study.study)):
        click.echo(sentence, err=True)
    check_export(study, job.out / "model")
    if job.like != "" and (said := begin_like(study, job.like)):
        click.echo(said, err=True)
    first_answer(study)
    if said := probe_sentence(as_view(study.study)):
        click.echo(said.replace("\u00a0", " "), err=True)
    attachments = Attachments(job.storage, study.setup.classes)
    timing = timing_of(
        study, job.trials, evidence, limit=job.within, plan=plan, most=job.effort.trials
    )
    timing.began = began
    timing.store(study.study)
    timed = job.within is not None or job.timeout is not None
    keep_evidence(study, evidence, None if timed else job.trials, job.out)
    for line in plan_lines(timing, job):
        click.echo(line, err=True)
    progress = Marked.of(spec, job.trials, job.timeout, job.display, timing=timing)
    progress.study = study.study
    farewell = "Stopped; everything finished is kept. The same command goes on."
    with stoppable(farewell) as stop, progress:
        search(
            *(study, timing.most_trials(job.trials), job.timeout, stop),
            progress=progress,
            attachments=attachments,
            timing=timing,
            loggers=loggers,
        )
        plan_now = timing.confirm_plan(study)
        end = Finish(study, plan_now, job.out, progress, attachments, stop).lead()
    progress.result(end.result, end.report, end.model)
    if job.display != "json":
        _say_result(as_view(study.study), end.report, end.model, job)


def check(job: Job) -> None:
    """Refuse, before anything is opened, what could not be written where it is to go."""
    from biotune_optuna.export.folder import check_target
    from biotune_optuna.report.dashboard.artifacts import default_artifact_dir

    if job.trials is not None and job.trials < 1:
        raise StudyError(f"--trials {job.trials} asks for nothing; give at least 1")
    check_apart(job.spec.data, job.out, advice="give --out and --storage elsewhere")
    check_apart(job.spec.data, default_artifact_dir(job.storage), advice="give --storage elsewhere")
    check_output(job.out)
    check_no_comparison(job.out, advice="give another --study or --out")
    check_target(job.out / "model")  # once more, with its origin, when the images are known


def _say_images(setup: Setup) -> None:
    """Print what was understood of the data."""
    click.echo(_images_line(setup), err=True)
    for note in setup.source.notes:
        click.echo(note, err=True)
    click.echo(device_line(setup), err=True)


def device_line(setup: Setup) -> str:
    """Say what trains, and in which type."""
    return f"Training on {setup.trainer.device} ({setup.trainer.kind})"


def _images_line(setup: Setup) -> str:
    """Say how many images train, validate and test, and at which size."""
    counts = np.bincount(setup.source.labels, minlength=len(setup.classes))
    low, high = counts.min(), counts.max()
    each = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
    return (
        f"{len(setup.source):,} images of {len(setup.classes)} classes, {each}: "
        f"{setup.splits.describe()}; at {setup.image_size} x {setup.image_size} pixels"
    )


def _say_result(view: StudyView, report: Path, model_dir: Path, job: Job) -> None:
    """Print the outcome in a few lines."""
    from biotune_optuna.report.bill import bill, bill_words
    from biotune_optuna.report.words import method_words, verdict
    from biotune_optuna.storage.urls import parse_url

    confirmed, winner = view.confirmation, view.confirmation.winner
    if confirmed.tests:
        metric = view.metric_words
        click.echo(f"\n{metric} on {confirmed.n_test} test images that the search never saw:")
    together = confirmed.ensemble
    tested = [*confirmed.tests, *([together] if together else [])]
    for test in sorted(tested, key=lambda test: -test.score):
        mark = "  <- chosen" if test.name == winner.name else ""
        interval = f"{test.low:.3f} to {test.high:.3f}"
        rival = method_words(test.method).removeprefix("the ")
        title = f"BioTune ({test.name})" if test.method == "biotune" else rival
        if test is together:
            title, mark = f"{title}, {confirmed.members} members", "  <- the model"
        click.echo(f"  {title:38} {test.score:.3f}  (95 % {interval}){mark}")
    found = verdict(view)
    click.echo(f"\n{found.headline}")
    for sentence in (*found.sentences, f"Recipe: {winner.describe}."):
        click.echo(sentence.replace("\u00a0", " "))
    click.echo("\nWhat it took:")
    for line in bill_words(bill(view)):
        click.echo(f"  {line}")
    file = job.storage is not None and parse_url(job.storage).path is not None
    # Other URLs may hold a password.
    place = f" --storage {shlex.quote(str(job.storage))}" if file else ""
    click.echo(f"\nReport  {report}\nModel   {model_dir}\n")
    click.echo(f"Next:   biotune predict {shlex.quote(str(model_dir))} IMAGE...")
    click.echo(f"        biotune status --study {shlex.quote(job.name)}{place}")
