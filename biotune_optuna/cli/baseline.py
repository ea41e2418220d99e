"""``biotune baseline``: a rival alone."""

from __future__ import annotations

import json
from typing import Any

import click

from biotune_optuna.cli.options import RivalsCommand, display_option
from biotune_optuna.cli.spec import baseline_options, make_spec


@click.command(cls=RivalsCommand)
@click.argument("method")
@baseline_options
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True, help="Seeds.")
@display_option
def baseline(*, method: str, device: str, runs: int, display: str | None, **spec: Any) -> None:
    """Fine-tune with METHOD, a rival of BioTune, and nothing else.

    Its settings are tuned on the validation images, the best is run on fresh seeds, then trained on
    all but the test images and tested once.
    """
    from biotune_optuna.cli.progress import Progress
    from biotune_optuna.confirmation.baseline import run_baseline, setting_words
    from biotune_optuna.methods.registry import get_method
    from biotune_optuna.study.setup import prepare
    from biotune_optuna.study.stop import Stopped, StopRequest

    get_method(method).check_package()
    setup = prepare(make_spec(**spec), device=device)
    progress = Progress(total=None, deadline=None, mode=display or "auto")  # type: ignore[arg-type]
    try:
        with StopRequest.on_signals() as stop, progress:
            found = run_baseline(
                setup, method, n_runs=runs, observer=progress, checkpoint=stop.check
            )
    except (KeyboardInterrupt, Stopped):
        raise SystemExit(130) from None
    if display == "json":
        click.echo(json.dumps(found.to_dict()))
        return
    metric = found.metric.replace("_", " ")
    chosen = setting_words(found.setting)
    click.echo(f"{method}: {chosen}, the best of {len(found.grid)} settings on validation images")
    # A setting that was lucky in its one run shows here, beside its fresh seeds.
    tried = (f"{setting_words(point)}: {point['score']:.3f}" for point in found.grid)
    click.echo(f"  one run each: {'; '.join(tried)}")
    click.echo(f"  {metric}, {runs} fresh seeds: {found.mean:.3f} ± {found.stderr:.3f}")
    test = found.test
    if len(setup.splits.test):
        click.echo(
            f"  {metric}, {len(setup.splits.test)} test images: {test.value:.3f} "
            f"(95 % {test.low:.3f} to {test.high:.3f})"
        )
    else:
        click.echo("  no images were held out for a test")
    click.echo(
        f"  {found.trainable_pct:.1f} % of the parameters trained, {found.forward:,} image passes "
        f"forward, {found.backward:,} backward, {found.seconds:.0f} s"
    )
