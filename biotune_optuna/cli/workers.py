"""Commands for many machines: ``worker``, ``launch`` and ``proxy``."""

from __future__ import annotations

from typing import Any

import click

from biotune_optuna.cli.checks import check_apart, load_tuning, stoppable, study_name
from biotune_optuna.cli.options import (
    DURATION,
    JOB_TIME,
    device_option,
    display_option,
    elsewhere_options,
    storage_option,
    study_options,
    together,
)
from biotune_optuna.errors import StudyError

trials_option = click.option(
    "--trials", type=int, help="Total for the study.  [default: the study's own]"
)


@click.command()
@study_options
@elsewhere_options
@trials_option
@click.option(
    "--timeout",
    type=DURATION,
    help="Search for this long at most, as 90s or 1h30m; the confirmation comes after.",
)
@device_option
@display_option
def worker(
    *,
    storage: str | None,
    name: str | None,
    trials: int | None,
    timeout: float | None,
    display: str | None,
    **where: str | None,
) -> None:
    """Work on a study that exists, beside other workers.

    It is also confirmed by all its workers; the last one writes report and model if nobody else
    does.
    """
    from biotune_optuna.cli.finish import Finish, TimedEnd, evidence_of
    from biotune_optuna.cli.progress import Marked, search
    from biotune_optuna.cli.tune import device_line
    from biotune_optuna.report.dashboard.attach import Attachments
    from biotune_optuna.storage.urls import default_artifact_dir
    from biotune_optuna.study.totals import count

    study = load_tuning(storage, name, **where)
    click.echo(device_line(study.setup), err=True)
    check_apart(study.spec.data, default_artifact_dir(storage), advice="have the storage elsewhere")
    attachments = Attachments(storage, study.setup.classes)
    total = trials if trials is not None else study.total
    end_of_search, own_time = TimedEnd(study), timeout is not None
    if total is None and timeout is None:
        timeout = end_of_search.left()
        if timeout is None and not end_of_search.has_begun:
            raise StudyError(
                f"study {study.name!r} has no number of trials, and no tune searches it for a time "
                "now; give --trials or --timeout"
            )
    progress = Marked.of(study.spec, total, timeout, display)
    said = f"Study {study.name} has its trials; biotune tune confirms the winner."
    with stoppable("Stopped; everything finished is kept.") as stop, progress:
        if not end_of_search.has_begun and not progress.is_late:
            search(
                *(study, total, timeout, stop),
                progress=progress,
                attachments=attachments,
                loggers=[end_of_search.look],
            )
        if not own_time:
            end_of_search.wait(stop)
            stop.check()
        reached = total is not None and count(study.study).finished >= total
        if progress.is_late and not (reached or end_of_search.has_begun):
            said = f"The time for study {study.name} is over."
        elif (known := evidence_of(study, total)) is not None:
            plan, out, settled = known
            end = Finish(study, plan, out, progress, attachments, stop, settled).follow()
            said = f"Study {study.name} is confirmed."
            if end is not None:
                said += f" Report: {end.report}, model: {end.model}"
    click.echo(said, err=True)


_RESOURCES = together(
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="ray, slurm: how many.  [default: 1]",
    ),
    click.option(
        "--gpus-per-worker",
        type=click.FloatRange(min=0),
        help="ray, slurm: GPUs of each; with Ray a fraction too, such as 0.25.  [default: 1, with "
        "Ray 0 where the cluster has none]",
    ),
    click.option(
        "--cpus-per-worker",
        type=click.IntRange(min=1),
        help="ray, slurm: cores of each.  [default: 1]",
    ),
)
_SLURM = together(
    click.option("--partition", help="slurm: where the jobs are queued."),
    click.option(
        "--time",
        type=JOB_TIME,
        help="slurm: time of one job, 4h or 4:00:00; then it is queued again.  [default: 4h]",
    ),
    click.option(
        "--sbatch",
        multiple=True,
        metavar="NAME=VALUE",
        help="slurm: any other option of sbatch, such as account=lab; may be repeated.",
    ),
    click.option(
        "--logs",
        type=click.Path(file_okay=False),
        help="slurm: folder of the workers' logs, which all nodes see.  [default: biotune-slurm]",
    ),
    click.option("--dry-run", is_flag=True, default=None, help="slurm: print the sbatch script."),
)


@click.command()
@study_options
@click.option(
    "--on",
    "place",
    default="local",
    show_default=True,
    help="What starts the workers: local, ray, ray://HOST:PORT or slurm.",
)
@click.option(
    "--devices",
    help="local: one worker each: all, or a list such as cuda:0,cuda:1 or cpu,cpu.  [default: all]",
)
@click.option(
    "--per-device",
    type=click.IntRange(min=1),
    help="local: workers for each of these devices; several fill a GPU.  [default: 1]",
)
@_RESOURCES
@_SLURM
@elsewhere_options
@trials_option
def launch(
    *,
    storage: str | None,
    name: str | None,
    place: str,
    data: str | None,
    weights: str | None,
    trials: int | None,
    **options: Any,
) -> None:
    """Start workers: one per device of this machine, or many by Ray or Slurm.

    On this machine one that dies is started again.
    """
    from biotune_optuna.storage.open import open_storage
    from biotune_optuna.study.engines.base import Job, find_engine

    engine_name, engine, address = find_engine(place)
    given = {key: value for key, value in options.items() if value not in (None, ())}
    for key in given.keys() - engine.OPTIONS:
        own = ", ".join(sorted(f"--{one.replace('_', '-')}" for one in engine.OPTIONS))
        raise click.UsageError(
            f"--{key.replace('_', '-')} means nothing to --on {engine_name}, which takes {own}"
        )
    if "devices" in given:
        given["devices"] = [one.strip() for one in given["devices"].split(",") if one.strip()]
    if "sbatch" in given:
        given["sbatch"] = dict(_pair(text) for text in given["sbatch"])
    study = study_name(open_storage(storage, create=False), name)
    for_workers = {"--data": data, "--weights": weights, "--trials": trials}
    arguments = [
        str(v) for k, value in for_workers.items() if value is not None for v in (k, value)
    ]
    job = Job(
        study=study,
        storage=storage,
        arguments=tuple(arguments),
        address=address,
        options=given,
        say=click.echo,
    )
    raise SystemExit(engine.start(job))


def _pair(text: str) -> tuple[str, str | bool]:
    """``account=lab`` as ("account", "lab"); ``exclusive`` alone is a switch."""
    name, equals, value = text.removeprefix("--").partition("=")
    if not name:
        raise click.UsageError(f"--sbatch {text!r} is not NAME=VALUE, such as account=lab")
    return name, value if equals else True


@click.command()
@storage_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=13000, show_default=True)
def proxy(*, storage: str | None, host: str, port: int) -> None:
    """Serve a database to workers that have neither its driver nor its password.

    They give --storage grpc://HOST:PORT. There is no login: whoever reaches the port may do
    anything to the studies.
    """
    from biotune_optuna.storage.urls import need_grpc

    need_grpc()
    from biotune_optuna.storage.serve import serve

    with stoppable("Stopped; workers wait for a new proxy for five minutes.") as stop:
        running = serve(storage, host=host, port=port)
        click.echo(f"Serving {running.place} as {running.url}; Ctrl-C stops.", err=True)
        while not stop.wait(3600):
            pass
        running.stop()
        stop.check()
