"""``biotune probe``: what the frozen network's features are worth, within seconds."""

from __future__ import annotations

import json
from typing import Any

import click

from biotune_optuna.cli.spec import baseline_options, make_spec


@click.command()
@baseline_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def probe(*, device: str, as_json: bool, **spec: Any) -> None:
    """Fit a linear probe: logistic regression on the frozen network's features.

    One pass over the training and validation images; no test image is looked at. The probe's test
    score, and its model, come from `biotune baseline linear-probe` and `biotune tune`.
    """
    from biotune_optuna.study.probe import linear_probe
    from biotune_optuna.study.setup import prepare

    setup = prepare(make_spec(**spec), device=device)
    found = linear_probe(setup)
    fitted = found.fitted
    if as_json:
        facts = {
            "metric": found.metric,
            "validation": found.validation._asdict(),
            "folds": found.folds._asdict() if len(fitted.judged) else None,
            "n_train": found.n_train,
            "n_val": found.n_val,
            "n_features": found.n_features,
            "strength": fitted.strength,
            "class_weights": fitted.class_weights,
            **found.cost.to_dict(),
        }
        click.echo(json.dumps(facts))
        return
    metric, (value, low, high) = found.metric.replace("_", " "), found.validation
    click.echo(f"linear probe of {setup.spec.model} on {setup.spec.data}")
    click.echo(
        f"  {metric}, {found.n_val:,} validation images: {value:.3f} (95 % {low:.3f} to {high:.3f})"
    )
    if len(fitted.judged):
        value, low, high = found.folds
        click.echo(
            f"  {metric}, {found.n_train:,} training images, by folds that had not seen them: "
            f"{value:.3f} (95 % {low:.3f} to {high:.3f})"
        )
    weights = ", classes weighed alike" if fitted.class_weights == "balanced" else ""
    click.echo(
        f"  {found.n_features:,} features, L2 strength {fitted.strength:g} chosen in folds{weights}"
        f"; {found.cost.seconds:.1f} s"
    )
