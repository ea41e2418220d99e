"""Commands that look: ``check``, ``studies``, ``status``, ``report``, ``dashboard``, ``blocks``."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Any

import click

from biotune_optuna.cli.checks import check_no_comparison, folder_of, open_study
from biotune_optuna.cli.options import storage_option, study_options
from biotune_optuna.cli.terminal import one_line, say, terminal_of
from biotune_optuna.models import DEFAULT_MAX_BLOCKS, MIN_MAX_BLOCKS


@click.command()
@click.argument("data")
@click.option("--html", type=click.Path(dir_okay=False), help="Page with a contact sheet to write.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(*, data: str, html: str | None, as_json: bool) -> None:
    """Look at DATA before training: classes, sizes, bad files, duplicates, odd images.

    DATA is a folder with one folder per class, a CSV file or the name of a data set.
    """
    from biotune_optuna.overview import check_images

    found = check_images(data)
    page = found.write_html(html) if html else None
    click.echo(jsonlib.dumps(found.to_dict(), indent=1) if as_json else str(found))
    if page is not None:
        click.echo(f"\nPage  {page}", err=as_json)


@click.command()
@storage_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def studies(*, storage: str | None, as_json: bool) -> None:
    """List the studies of a database."""
    import optuna

    from biotune_optuna.report.status import list_studies
    from biotune_optuna.storage.open import open_storage
    from biotune_optuna.study.board import study_names

    backend = open_storage(storage, create=False, read_only=True)
    names = study_names(backend)
    found = list_studies(optuna.load_study(study_name=name, storage=backend) for name in names)
    if as_json:
        click.echo(jsonlib.dumps(found, indent=1))
    for one in [] if as_json else found:
        click.echo(f"{one_line(one['study'])}\n  {one_line(one['what'])}")
        say(f"  {one_line(one['state'])}", indent="  ")
    if not found and not as_json:
        click.echo("No studies yet; biotune demo or biotune tune begins one.")


@click.command()
@study_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(*, storage: str | None, name: str | None, as_json: bool) -> None:
    """Tell how a study stands: trials, best so far, workers, cost, time left."""
    from biotune_optuna.report.status import format_status, study_status

    facts = study_status(open_study(storage, name))
    if as_json:
        click.echo(jsonlib.dumps(facts, indent=1))
        return
    for line in format_status(facts).splitlines():
        if line.startswith(("model ", "go on with ")):  # to be copied
            click.echo(line)
        else:
            say(line, indent=" " * 12)


@click.command()
@study_options
@click.option(
    "--to", "target", type=click.Path(dir_okay=False, path_type=Path), help="HTML file to write."
)
def report(*, storage: str | None, name: str | None, target: Path | None) -> None:
    """Write a study's report as one HTML file that works offline."""
    from biotune_optuna.report.html import write_report

    study = open_study(storage, name)
    if target is None:
        folder = folder_of(study.study_name, advice="give --to")
        check_no_comparison(folder, advice="give --to")
        target = folder / "report.html"
    click.echo(write_report(study, target))


@click.command()
@study_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.option(
    "--token",
    envvar="BIOTUNE_TOKEN",
    help="Answer only who opens the address with ?token=... once, as for other hosts.",
)
@click.option(
    "--artifact-dir",
    type=click.Path(file_okay=False),
    help="Folder of the artifacts.  [default: beside an SQLite file, else biotune-artifacts]",
)
@click.option("--no-open", is_flag=True, help="Print the address and open no browser.")
def dashboard(*, storage: str | None, name: str | None, no_open: bool, **how: Any) -> None:
    """Open a study in optuna-dashboard."""
    from biotune_optuna.report.dashboard.serve import run_dashboard

    run_dashboard(storage, name, open_browser=not no_open and sys.stderr.isatty(), **how)


@click.command()
@click.argument("model")
@click.option(
    "--max-blocks",
    type=click.IntRange(min=MIN_MAX_BLOCKS),
    default=DEFAULT_MAX_BLOCKS,
    show_default=True,
    help="Blocks at most.",
)
def blocks(*, model: str, max_blocks: int) -> None:
    """Draw the blocks that a genome of MODEL has genes for."""
    from rich.console import Console
    from rich.table import Table

    from biotune_optuna.models.blocks import model_blocks
    from biotune_optuna.models.weights import meta_model

    parts = model_blocks(meta_model(model), max_blocks=max_blocks)
    total = sum(part.n_parameters for part in parts) or 1
    table = Table(title=f"{model}: {len(parts)} blocks", title_justify="left")
    for heading in ("#", "block", "parameters", "share", ""):
        table.add_column(heading, justify="left" if heading in ("block", "") else "right")
    for number, part in enumerate(parts, 1):
        share = part.n_parameters / total
        bar = "█" * round(24 * share) or "▏"
        table.add_row(str(number), part.name, f"{part.n_parameters:,}", f"{share:.1%}", bar)
    Console(file=terminal_of(sys.stdout)).print(table)
