"""``biotune compare``: BioTune against its rivals, on any number of data sets and models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from biotune_optuna.cli.checks import check_apart, folder_of, quieten_optuna, stoppable
from biotune_optuna.cli.options import (
    RivalsCommand,
    effort_for,
    effort_option,
    is_given,
    storage_option,
)
from biotune_optuna.cli.spec import make_spec, protocol_options
from biotune_optuna.effort import NORMAL
from biotune_optuna.errors import BioTuneError, StorageError, StudyError
from biotune_optuna.files import check_output

if TYPE_CHECKING:
    from biotune_optuna.compare import Row
    from biotune_optuna.compare.run import CellProgress
    from biotune_optuna.study.spec import StudySpec

_COUNT = click.IntRange(min=1)


@click.command(cls=RivalsCommand)
@click.option("--data", multiple=True, help="Folder, CSV file or name; may be repeated.")
@click.option("--model", multiple=True, help="A timm architecture, or auto; may be repeated.")
@click.option(
    "--methods", help="Names with commas between.  [default: biotune and every rival of its table]"
)
@effort_option
@click.option("--repeats", type=_COUNT, default=10, show_default=True, help="Repeats of each cell.")
@click.option(
    "--trials",
    type=_COUNT,
    default=NORMAL.trials,
    show_default=True,
    help="Trials of each search.",
)
@click.option("--top-k", type=_COUNT, default=3, show_default=True, help="Recipes trained again.")
@click.option("--runs", type=_COUNT, default=3, show_default=True, help="Fresh seeds for each.")
@click.option(
    "--members",
    type=int,
    default=1,
    show_default=True,
    help="Final trainings of what each method has chosen; several are also tested together.",
)
@click.option(
    "--as-tune",
    is_flag=True,
    help="Let the winner of a search be full fine-tuning or the probe, as biotune tune does.",
)
@click.option(
    "--equal-budget/--no-equal-budget",
    default=True,
    show_default=True,
    help="Give rivals with a * below BioTune's total budget as well.",
)
@storage_option
@click.option("--name", default="compare", show_default=True, help="Name of the comparison.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of report.html, report.md and results.csv.  [default: biotune-out/NAME]",
)
@click.option(
    "--from",
    "table",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report from this results.csv and run nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Tell progress in JSON lines.")
@protocol_options
def compare(
    *,
    data: tuple[str, ...],
    model: tuple[str, ...],
    methods: str | None,
    storage: str | None,
    name: str,
    out: Path | None,
    table: Path | None,
    as_json: bool,
    device: str,
    repeats: int,
    trials: int,
    top_k: int,
    runs: int,
    members: int,
    as_tune: bool,
    equal_budget: bool,
    effort: str | None,
    **spec: Any,
) -> None:
    """Compare BioTune with every rival on each pair of data and model, paired by repeat.

    The same command goes on where it stopped, and several processes that run it share the work.
    """
    from biotune_optuna.compare import read_csv, write_comparison

    folder = out or folder_of(name, of="comparison", advice="give another --name")

    def say(path: Path) -> None:
        click.echo(json.dumps({"event": "report", "path": str(path)}) if as_json else path)

    if table is not None:
        _refuse_others(click.get_current_context())
        rows = read_csv(table)
        _check_folder(folder)
        say(write_comparison(rows, folder, title=name))
        return
    if not data or not model:
        raise StudyError("a comparison needs --data and --model, or --from a results.csv")
    from biotune_optuna.compare import Comparison

    words = [] if methods is None else [word.strip() for word in methods.split(",")]
    chosen: dict[str, Any] = {"trials": trials, "top_k": top_k, "runs": runs, "members": members}
    tasks = [make_spec(data=d, model=m, **spec) for d in data for m in model]
    if effort is not None:
        tasks, chosen = _with_effort(click.get_current_context(), tasks, chosen)
    if methods is not None:
        chosen["contenders"] = tuple(filter(None, words))
    plan = Comparison(
        tasks=tuple(tasks),
        repeats=repeats,
        as_tune=as_tune,
        equal_budget=equal_budget,
        name=name,
        **chosen,
    )
    for place in data:
        check_apart(place, folder, advice="give --out elsewhere")
    _check_folder(folder)
    rows, problem = _run(plan, storage, device, as_json=as_json)
    if rows:
        say(write_comparison(rows, folder, title=name, plan=plan))
    if problem is not None:
        raise problem


def _with_effort(
    context: click.Context, tasks: list[StudySpec], counts: dict[str, Any]
) -> tuple[list[StudySpec], dict[str, Any]]:
    """Return tasks and counts as an effort sets them where nobody else has."""
    from biotune_optuna.confirmation.planning import with_effort

    given = context.params
    effort = effort_for(context, given["preset"])
    epochs = any(one.startswith("epochs=") for one in given["settings"]) or given["epochs"]
    sizes = {"image_size": given["image_size"], "epochs": epochs or None}
    wanted = {"top_k": effort.top_k, "runs": effort.n_runs}
    wanted |= {"trials": effort.trials, "members": effort.members}
    found = {name: n if is_given(context, name) else wanted[name] for name, n in counts.items()}
    return [with_effort(task, effort, given=sizes) for task in tasks], found


def _check_folder(folder: Path) -> None:
    """Refuses, before anything runs, a folder that cannot be written or holds a study's report."""
    check_output(folder)
    if (folder / "report.html").exists() and not (folder / "results.csv").exists():
        raise StudyError(f"{folder} holds the report of a study; give another --name or --out")


def _run(
    plan: Any, storage: str | None, device: str, *, as_json: bool
) -> tuple[list[Row], BioTuneError | None]:
    """Run what is missing; some failed cells do not hide the others.

    What is refused before the first of them has begun changes no report.
    """
    from biotune_optuna.compare import read_rows, run_comparison
    from biotune_optuna.storage.open import open_storage

    quieten_optuna()
    backend = open_storage(storage)
    begun = False

    def tell(progress: CellProgress) -> None:
        nonlocal begun
        begun = True
        if as_json:
            _tell_json(progress)
        else:
            click.echo(str(progress), err=True)

    try:
        with stoppable("Stopped; every finished cell is kept. The same command goes on.") as stop:
            return run_comparison(plan, storage=backend, device=device, tell=tell, stop=stop), None
    except StorageError:
        raise
    except BioTuneError as error:
        if not begun:
            raise
        try:
            return read_rows(backend, plan.name), error
        except BioTuneError:
            raise error from None


def _refuse_others(context: click.Context) -> None:
    """Refuses options that a report from a table alone does not heed."""
    heeded = ("table", "out", "name", "as_json")
    ignored = [
        (option.opts if context.params[str(option.name)] else option.secondary_opts)[0]
        for option in context.command.params
        if option.name not in heeded
        and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    ]
    if ignored:
        raise StudyError(
            f"--from only writes the report of a table; leave out {', '.join(ignored)}"
        )


def _tell_json(progress: CellProgress) -> None:
    cell, row = progress.cell, progress.row
    facts: dict[str, Any] = {
        "event": progress.state,
        "task": cell.task,
        "repeat": cell.repeat,
        "method": cell.contender.name,
        "done": progress.done,
        "total": progress.total,
    }
    if row is not None:
        facts |= {"score": row.score, "seconds": row.seconds}
        if row.members > 1:
            facts |= {"members": row.members, "together": row.together}
    if progress.error:
        facts["error"] = progress.error
    click.echo(json.dumps(facts))
