"""Commands for many machines: ``worker`` and ``launch``."""

from __future__ import annotations

import click

from biotune_optuna.cli.checks import check_apart, load_tuning, stoppable, study_name
from biotune_optuna.cli.options import (
    DURATION,
    device_option,
    display_option,
    elsewhere_options,
    study_options,
)
from biotune_optuna.errors import StudyError

trials_option = click.option(
    "--trials", type=int, help="Total for the study.  [default: the study's own]"
)


@click.command()
@study_options
@elsewhere_options
@trials_option
@click.option("--timeout", type=DURATION, help="Work for this long: 90s, 20m, 1h30m.")
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
    """Work on a study that exists, beside other workers."""
    from biotune_optuna.cli.progress import Progress, search
    from biotune_optuna.report.dashboard.artifacts import default_artifact_dir
    from biotune_optuna.report.dashboard.attach import Attachments

    study = load_tuning(storage, name, **where)
    check_apart(study.spec.data, default_artifact_dir(storage), advice="have the storage elsewhere")
    attachments = Attachments(storage, study.setup.classes)
    total = trials if trials is not None else study.total
    if total is None and timeout is None:
        raise StudyError(
            f"study {study.name!r} was begun with a time and no number of trials; give --trials"
        )
    progress = Progress.of(study.spec, total, timeout, display)
    with stoppable("Stopped; everything finished is kept.") as stop, progress:
        search(study, total, timeout, stop, progress=progress, attachments=attachments)
    over = f"The time for study {study.name} is over."
    full = f"Study {study.name} has its trials; biotune tune confirms the winner."
    click.echo(over if progress.is_late else full, err=True)


@click.command()
@study_options
@click.option(
    "--devices",
    default="all",
    show_default=True,
    help="One worker each: all, or a list such as cuda:0,cuda:1 or cpu,cpu.",
)
@elsewhere_options
@trials_option
def launch(
    *,
    storage: str | None,
    name: str | None,
    devices: str,
    data: str | None,
    weights: str | None,
    trials: int | None,
) -> None:
    """Run one worker per device of this machine; one that dies is started again."""
    from biotune_optuna.storage.open import open_storage
    from biotune_optuna.study.launch import launch as run_workers

    study = study_name(open_storage(storage, create=False), name)
    options = {"--data": data, "--weights": weights, "--trials": trials}
    arguments = [str(v) for k, value in options.items() if value is not None for v in (k, value)]
    wanted = [device.strip() for device in devices.split(",") if device.strip()]
    raise SystemExit(run_workers(study, storage=storage, devices=wanted, arguments=arguments))
