"""Commands about the tuned model: ``export``, ``predict``, ``evaluate``."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from biotune_optuna.cli.checks import load_tuning, stoppable
from biotune_optuna.cli.options import device_option, elsewhere_options, study_options
from biotune_optuna.cli.terminal import one_line
from biotune_optuna.page.text import plural

if TYPE_CHECKING:
    from biotune_optuna.export import Prediction

_single_option = click.option("--single", is_flag=True, help="Ask the first member alone.")


@click.command()
@study_options
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Path(file_okay=False),
    help="Folder to write; an earlier export of the same images and network in it is replaced.",
)
@click.option(
    "--what",
    default="best",
    show_default=True,
    metavar="best|full|probe|trial:N",
    help="Which contender; one that has not been confirmed is trained as a confirmation does it.",
)
@click.option("--single", is_flag=True, help="Write the first member alone.")
@click.option("--onnx", is_flag=True, help="Write model.onnx too: from images to probabilities.")
@click.option("--push", "hub", metavar="USER/NAME", help="Put the folder on the Hugging Face hub.")
@click.option(
    "--private/--public",
    default=True,
    show_default=True,
    help="Who sees a model that --push puts on the hub anew.",
)
@elsewhere_options
@device_option
def export(
    *,
    storage: str | None,
    name: str | None,
    target: str,
    what: str,
    single: bool,
    onnx: bool,
    hub: str | None,
    private: bool,
    **where: str | None,
) -> None:
    """Write a model as a folder: weights, labels, recipe, model card.

    It is the confirmed winner, or what --what names.
    """
    from biotune_optuna.cli.progress import Progress
    from biotune_optuna.confirmation.winner import export_winner
    from biotune_optuna.export import load_exported
    from biotune_optuna.export.folder import GRAPH
    from biotune_optuna.export.hub import check_name, push
    from biotune_optuna.export.onnx import check_packages, export_onnx

    if onnx:
        check_packages()
    if hub is not None:
        check_name(hub)
    study = load_tuning(storage, name, **where)
    progress = Progress(total=None, deadline=None, mode="auto", study=study.study)
    with stoppable("Stopped; nothing was written.") as stop, progress:
        folder = export_winner(
            study, Path(target), single=single, what=what, observer=progress, checkpoint=stop.check
        )
    click.echo(folder)
    if onnx:
        click.echo(export_onnx(load_exported(folder, device="cpu"), folder / GRAPH))
    if hub is not None:
        click.echo(push(folder, hub, private=private))


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.option("--top-k", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--csv", "table", type=click.Path(dir_okay=False), help="CSV file to write.")
@click.option(
    "--abstain",
    type=float,
    help="Leave out images whose confidence is below what this accuracy takes, as 0.95.",
)
@click.option(
    "--adapt-norms",
    is_flag=True,
    help="Let BatchNorm layers know these images first: for images of another source.",
)
@_single_option
@device_option
def predict(
    *,
    folder: str,
    images: tuple[str, ...],
    top_k: int,
    table: str | None,
    abstain: float | None,
    adapt_norms: bool,
    single: bool,
    device: str,
) -> None:
    """Classify IMAGES with the model exported to FOLDER."""
    from biotune_optuna.export import load_exported, write_csv

    model = load_exported(folder, device=device, single=single)
    if adapt_norms:
        model = model.adapted(images)
    least = 0.0 if abstain is None else model.confidence_for(abstain)
    everything = model.predict(images, top_k=top_k)
    predictions = [one for one in everything if one.error or one.probability >= least]
    if table:
        write_csv(predictions, table)
    if abstain is not None:
        click.echo(
            f"{len(everything) - len(predictions)} of {plural(len(everything), 'image')} left out: "
            f"an accuracy of {abstain:g} takes a confidence of {least:.3f}",
            err=True,
        )
    _offer_evaluation(folder, images, everything)
    failed = 0
    for item in predictions:
        if item.error:
            failed += 1
            click.echo(f"{_printable(item.image)}: {item.error}", err=True)
        elif not table:
            ranks = "  ".join(f"{one_line(label)} {p:.4f}" for label, p in item.top)
            click.echo(f"{_printable(item.image)}  {ranks}")
    if table:
        click.echo(f"{plural(len(predictions), 'image')} in {table}")
        said = Counter(item.label for item in predictions if item.label is not None)
        for label, n in said.most_common():
            click.echo(f"  {one_line(label)}: {plural(n, 'image')}")
    if failed == len(everything):
        raise SystemExit(1)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.argument("data")
@click.option(
    "--part",
    type=click.Choice(["train", "val", "test", "all"]),
    help="Part of data that come divided.  [default: test if there is one, else all]",
)
@click.option("--html", type=click.Path(dir_okay=False), help="Page to write.")
@click.option("--csv", "table", type=click.Path(dir_okay=False), help="Table of images to write.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_single_option
@device_option
def evaluate(
    *,
    folder: str,
    data: str,
    part: str | None,
    html: str | None,
    table: str | None,
    as_json: bool,
    single: bool,
    device: str,
) -> None:
    """Tell how good the model exported to FOLDER is on DATA, labelled images.

    DATA is a folder with one folder per class, a CSV file or the name of a data set. Give images
    that the model was not trained on.
    """
    from biotune_optuna.export import load_exported

    found = load_exported(folder, device=device, single=single).evaluate(data, part=part)
    written = [found.write_html(html)] if html else []
    written += [found.write_csv(table)] if table else []
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
        return
    click.echo(str(found))
    if written:
        click.echo()
    for path in written:
        click.echo(f"Written: {path}")
    if not html:
        click.echo("\nThe wrong images and the confusion as a page: --html evaluation.html")


def _offer_evaluation(
    folder: str, images: tuple[str, ...], predictions: Sequence[Prediction]
) -> None:
    """Tell that a folder has labels, which `evaluate` would compare with the predictions."""
    for name in images:
        path = Path(name)
        parents = {Path(one.image).parent.name for one in predictions}
        labels = {label for one in predictions for label, _ in one.top} & parents
        if path.is_dir() and labels and path.name not in labels:
            click.echo(
                f"{_printable(name)} has folders called like the classes. How often is the model "
                f"right?\n  biotune evaluate {shlex.quote(folder)} {shlex.quote(name)}",
                err=True,
            )
            return


def _printable(name: str) -> str:
    """Return a file's name on one line, with bytes that are no UTF-8 written out."""
    return one_line(os.fsencode(name).decode(errors="backslashreplace"))
