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
from biotune_optuna.cli.terminal import say
from biotune_optuna.effort import KEPT, NORMAL, Effort
from biotune_optuna.errors import StudyError
from biotune_optuna.files import check_output

if TYPE_CHECKING:
    from biotune_optuna.report.view import StudyView
    from biotune_optuna.study.setup import Setup
    from biotune_optuna.study.spec import StudySpec
    from biotune_optuna.study.study import TuningStudy

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
    keep_models: int | None = None
    quick: bool = False
    views: tuple[str, ...] = ()
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
    "--keep-models",
    type=click.IntRange(min=0),
    metavar="N",
    help="Keep the models of the N best trials in files, as far as they train.  [default: none]",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Make the model of the search's own models, --members of those that it keeps, chosen by "
    f"the validation images; train nothing afterwards.  [--keep-models is {KEPT} then]",
)
@click.option(
    "--views",
    metavar="NAMES",
    callback=lambda _context, _option, names: tuple(names.split(",")) if names else (),
    help="Show the final model each image so too, and take the mean: zoom (its middle enlarged), "
    "mirror (with --mirror), or both, at so many times the cost of predicting.  [default: none]",
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
    keep_models: int | None,
    quick: bool,
    views: tuple[str, ...],
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
    if quick and keep_models == 0:
        raise click.UsageError(
            "--quick makes the model of models that are kept, and --keep-models 0 keeps none"
        )
    if quick and is_given(context, "prefer"):
        raise click.UsageError(
            f"--prefer {prefer} is a choice among what is confirmed, and --quick confirms nothing; "
            "give one of them"
        )
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
        "from_search": quick,
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
        keep_models=keep_models,
        quick=quick,
        views=views,
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
        train=TrainSettings(epochs=6, patience=3, batch_size=32),
        seed=seed,
    )


def run(job: Job) -> None:
    """Search, confirm, export and report; print where things are and what to type next."""
    began = time.monotonic()  # before PyTorch is loaded, for which somebody waits too
    say(f"Study {job.name}: {job.spec.model} on {job.spec.data}", err=True)
    from biotune_optuna.cli.finish import Finish, begin_end, keep_evidence
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

    quieten_optuna()
    evidence = ConfirmPlan(
        top_k=job.effort.top_k,
        n_runs=job.effort.n_runs,
        members=job.members,
        prefer=job.prefer,  # type: ignore[arg-type]
        from_search=job.quick,
        views=job.views,
    )
    check(job)
    loggers = [trial_logger(one, job.name, job.spec.train.metric) for one in job.log]
    spec, plan = planned(job, began)
    study = create_study(
        spec,
        storage=job.storage,
        name=job.name,
        device=job.device,
        prepared=_say_images,
        tell=lambda said: say(said, err=True),
    )
    for sentence in rate_sentences(as_view(study.study)):
        say(sentence, err=True)
    check_export(study, job.out / "model")
    if job.like != "" and (said := begin_like(study, job.like)):
        say(said, err=True)
    first_answer(study)
    if said := probe_sentence(as_view(study.study)):
        say(said.replace("\u00a0", " "), err=True)
    attachments = Attachments(job.storage, study.setup.classes)
    timing = timing_of(
        study, job.trials, evidence, limit=job.within, plan=plan, most=job.effort.trials
    )
    timing.began = began
    timing.store(study.study)
    left = job.timeout if job.within is None else job.within - timing.elapsed
    keep_evidence(study, evidence, job.trials if left is None else None, job.out, left=left)
    for line in plan_lines(timing, job):
        click.echo(line, err=True)
    progress = Marked.of(
        spec, job.trials, job.timeout, job.display, timing=timing, study=study.study
    )
    progress.study = study.study
    farewell = "Stopped; everything finished is kept. The same command goes on."
    with stoppable(farewell) as stop, progress:
        search(
            *(study, timing.most_trials(job.trials), job.timeout, stop),
            progress=progress,
            attachments=attachments,
            timing=timing,
            loggers=loggers,
            keep_models=_kept(job, study.study.user_attrs),
        )
        _say_kept(study)
        plan_now = timing.confirm_plan(study)
        trials = None if left is None else begin_end(study, plan_now, job.out)
        end = Finish(study, plan_now, job.out, progress, attachments, stop, trials).lead()
    progress.result(end.result, end.report, end.model)
    if job.display != "json":
        _say_result(as_view(study.study), end.report, end.model, job)


def _kept(job: Job, user_attrs: Mapping[str, Any]) -> int | None:
    """Return how many models are to be kept; None as many as the study has kept so far."""
    from biotune_optuna.study.keeping import most_kept

    usual = job.quick and not most_kept(user_attrs)
    return KEPT if job.keep_models is None and usual else job.keep_models


def _say_kept(study: TuningStudy) -> None:
    """Print what the kept models take, and where."""
    from biotune_optuna.report.view import as_view
    from biotune_optuna.report.words import kept_sentence

    if said := kept_sentence(as_view(study.study)):
        click.echo(f"{said} In {study.models.folder}.", err=True)


def check(job: Job) -> None:
    """Refuse, before anything is opened, what could not be written where it is to go."""
    from biotune_optuna.confirmation.plan import check_views
    from biotune_optuna.export.folder import check_target
    from biotune_optuna.storage.urls import default_artifact_dir
    from biotune_optuna.study.keeping import check_kept

    if job.trials is not None and job.trials < 1:
        raise StudyError(f"--trials {job.trials} asks for nothing; give at least 1")
    check_views(job.views, mirror=job.spec.mirror)
    if (most := _kept(job, {})) is not None:
        check_kept(job.spec, most)
    check_apart(job.spec.data, job.out, advice="give --out and --storage elsewhere")
    check_apart(job.spec.data, default_artifact_dir(job.storage), advice="give --storage elsewhere")
    check_output(job.out)
    check_no_comparison(job.out, advice="give another --study or --out")
    check_target(job.out / "model")  # once more, with its origin, when the images are known


def _say_images(setup: Setup) -> None:
    """Print what was understood of the data."""
    say(_images_line(setup), err=True)
    say(device_line(setup), err=True)


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
    from biotune_optuna.page.text import plural
    from biotune_optuna.report.bill import bill, bill_words
    from biotune_optuna.report.words import label, members_words, verdict
    from biotune_optuna.storage.urls import parse_url

    confirmed, winner = view.confirmation, view.confirmation.winner
    if confirmed.tests:
        metric = view.metric_words
        click.echo()
        metric = metric[:1].upper() + metric[1:]
        images = plural(confirmed.n_test, "test image")
        say(f"{metric} on {images} that the search never saw, with 95 % intervals:")
    together = confirmed.ensemble
    tested = [*confirmed.tests, *([together] if together else [])]
    for test in sorted(tested, key=lambda test: -test.score):
        mark = "  <- chosen" if test.name == winner.name else ""
        title = label(test.name, test.method)
        if test is together:
            said = [f"{confirmed.members} members"] * (confirmed.members > 1)
            said += [f"{1 + len(confirmed.views)} views"] * bool(confirmed.views)
            title, mark = ", ".join([title, *said]), "  <- the model"
        score, interval = view.say(test.score), view.say_interval(test.low, test.high)
        line = f"  {title:30} {score:>7}  ({interval}){mark}"
        click.echo(line.replace("\u00a0", " "))
    found = verdict(view)
    chosen = f"Recipe: {winner.describe}."
    if confirmed.from_search:
        chosen = f"Members: {members_words(view)}."
    click.echo()
    for sentence in (found.headline, *found.sentences, chosen):
        say(sentence.replace("\u00a0", " "))
    click.echo("\nWhat it took:")
    for line in bill_words(bill(view)):
        click.echo(f"  {line}")
    file = job.storage is not None and parse_url(job.storage).path is not None
    # Other URLs may hold a password.
    place = f" --storage {shlex.quote(str(job.storage))}" if file else ""
    click.echo(f"\nReport  {report}\nModel   {model_dir}\n")
    click.echo(f"Next:   biotune predict {shlex.quote(str(model_dir))} IMAGE...")
    click.echo(f"        biotune status --study {shlex.quote(job.name)}{place}")
