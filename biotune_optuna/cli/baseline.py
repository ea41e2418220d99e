"""``biotune baseline``: a rival alone."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from biotune_optuna.cli.checks import check_apart, stoppable
from biotune_optuna.cli.options import RivalsCommand, display_option
from biotune_optuna.cli.spec import baseline_options, make_spec


@click.command(cls=RivalsCommand)
@click.argument("method")
@baseline_options
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True, help="Seeds.")
@click.option(
    "--members",
    type=int,
    default=1,
    show_default=True,
    help="Final trainings, on different seeds; several are also tested together.",
)
@click.option(
    "--to",
    "target",
    type=click.Path(file_okay=False),
    help="Folder to write the model to, as biotune export does.",
)
@display_option
def baseline(
    *,
    method: str,
    device: str,
    runs: int,
    members: int,
    target: str | None,
    display: str | None,
    **spec: Any,
) -> None:
    """Fine-tune with METHOD, a rival of BioTune, and nothing else.

    Its settings are tuned on the validation images, the best is run on fresh seeds, then trained on
    all but the test images and tested once.
    """
    from biotune_optuna.cli.progress import Progress
    from biotune_optuna.confirmation.baseline import export_baseline, run_baseline
    from biotune_optuna.confirmation.plan import check_members
    from biotune_optuna.confirmation.protocol import setting_words
    from biotune_optuna.confirmation.winner import origin_of
    from biotune_optuna.export.folder import check_target
    from biotune_optuna.methods.registry import get_method
    from biotune_optuna.study.setup import prepare

    get_method(method).check_package()
    check_members(members)
    plan = make_spec(**spec)
    if target is not None:
        check_apart(plan.data, Path(target), advice="give another --to")
        check_target(Path(target))
    setup = prepare(plan, device=device)
    if target is not None:
        check_target(Path(target), origin_of(setup))
    progress = Progress(total=None, deadline=None, mode=display or "auto")  # type: ignore[arg-type]
    with stoppable(farewell="") as stop, progress:
        found = run_baseline(
            setup,
            method,
            n_runs=runs,
            members=members,
            observer=progress,
            checkpoint=stop.check,
        )
    folder = export_baseline(setup, found, target) if target is not None else None
    if display == "json":
        told = found.to_dict() | ({"model": str(folder)} if folder else {})
        click.echo(json.dumps(told))
        return
    metric = found.metric.replace("_", " ")
    chosen = setting_words(found.setting)
    if found.graded:
        n = len(found.graded)
        click.echo(f"{method}: {chosen}, the best of {n} settings on validation images")
        # A setting that was lucky in its one run shows here, beside its fresh seeds.
        tried = (f"{setting_words(setting)}: {score:.3f}" for setting, score in found.graded)
        click.echo(f"  one run each: {'; '.join(tried)}")
    else:
        click.echo(f"{method}: nothing to tune")
    fresh, test, cost = found.contender, found.test, found.cost
    click.echo(f"  {metric}, {runs} fresh seeds: {fresh.mean:.3f} ± {fresh.stderr:.3f}")
    if test is None:
        click.echo("  no images were held out for a test")
    else:
        several = [(f"{members} members together", found.ensemble)] if found.ensemble else []
        for words, one in (("", test), *several):
            where = f"{one.n} test images" + (f", {words}" if words else "")
            span = f"(95 % {one.low:.3f} to {one.high:.3f})"
            click.echo(f"  {metric}, {where}: {one.score:.3f} {span}")
    click.echo(
        f"  {found.trainable_pct:.1f} % of the parameters trained, {cost.forward:,} image passes "
        f"forward, {cost.backward:,} backward, {cost.seconds:.0f} s"
    )
    if folder is not None:
        click.echo(f"\nModel   {folder}")
        click.echo(f"Next:   biotune predict {shlex.quote(str(folder))} IMAGE...")
