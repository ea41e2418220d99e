"""Commands about the tuned model: ``export``, ``predict``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from biotune_optuna.cli.checks import load_tuning
from biotune_optuna.cli.options import device_option, elsewhere_options, study_options


@click.command()
@study_options
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Path(file_okay=False),
    help="Folder to write; an earlier export of the same images and network in it is replaced.",
)
@elsewhere_options
@device_option
def export(*, storage: str | None, name: str | None, target: str, **where: str | None) -> None:
    """Write the confirmed winner as a folder: weights, labels, recipe, model card."""
    from biotune_optuna.confirmation.winner import export_winner

    click.echo(export_winner(load_tuning(storage, name, **where), Path(target)))


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.option("--top-k", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--csv", "table", type=click.Path(dir_okay=False), help="CSV file to write.")
@device_option
def predict(
    *, folder: str, images: tuple[str, ...], top_k: int, table: str | None, device: str
) -> None:
    """Classify IMAGES with the model exported to FOLDER."""
    from biotune_optuna.export import load_exported, write_csv

    predictions = load_exported(folder, device=device).predict(images, top_k=top_k)
    if table:
        write_csv(predictions, table)
        click.echo(table)
    failed = 0
    for item in predictions:
        if item.error:
            failed += 1
            click.echo(f"{_printable(item.image)}: {item.error}", err=True)
        elif not table:
            ranks = "  ".join(f"{label} {p:.4f}" for label, p in item.top)
            click.echo(f"{_printable(item.image)}  {ranks}")
    if failed == len(predictions):
        raise SystemExit(1)


def _printable(name: str) -> str:
    """Return a file's name, with bytes that are no UTF-8 written out."""
    return os.fsencode(name).decode(errors="backslashreplace")
