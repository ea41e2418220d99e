"""``biotune models``: which network suits these images, ranked within a minute."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from biotune_optuna.cli.checks import check_apart, folder_of, stoppable
from biotune_optuna.cli.options import display_option
from biotune_optuna.cli.spec import make_spec, ranking_options
from biotune_optuna.files import check_output

if TYPE_CHECKING:
    from biotune_optuna.study.choice import Ranked
    from biotune_optuna.study.spec import StudySpec

_KEPT = "ranking.jsonl"


@click.command()
@ranking_options
@click.option(
    "--among",
    help="Names and patterns with commas between: 'convnext*,vit_small*'.  [default: a short list]",
)
@click.option("--max-params", help="Most parameters, such as 30M.")
@click.option("--max-ms", type=click.FloatRange(min=0, min_open=True), help="Most ms an image.")
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    default="biotune-out",
    show_default=True,
    help="Folder that gets a folder with the ranking's report.",
)
@display_option
def models(
    *,
    among: str | None,
    max_params: str | None,
    max_ms: float | None,
    out: str,
    device: str,
    display: str | None,
    **spec: Any,
) -> None:
    """Rank networks on your own images by a linear probe of each.

    Features of the training images are computed once with each frozen network, and a logistic
    regression on them is cross-validated. Test images are not looked at. The same command goes on
    where it stopped. `biotune tune --model auto` goes on from such a ranking by itself.
    """
    from biotune_optuna.data.sources.open import open_images
    from biotune_optuna.models.candidates import Limits, select
    from biotune_optuna.report.ranking import write_ranking
    from biotune_optuna.study.choice import front, line
    from biotune_optuna.study.ranking import rank_models
    from biotune_optuna.study.spec import default_name

    plan = make_spec(model="auto", **spec)
    limits = dataclasses.replace(Limits.parse(max_params or ""), ms=max_ms)
    candidates = select(among, limits)
    folder = folder_of(default_name("models", plan.data), out, of="ranking", advice="give --out")
    check_apart(plan.data, folder, advice="give --out elsewhere")
    check_output(folder)
    source = open_images(
        plan.data, group_regex=plan.group_regex, skip_bad_images=plan.skip_bad_images
    )
    kept = _Kept(folder / _KEPT, plan, source.fingerprint, device)

    def tell(one: Ranked) -> None:
        if one.name not in kept.rows and not one.why_not:
            kept.add(one)
        if display == "json":
            click.echo(json.dumps({"event": "model", **_finite(one.to_dict())}))
        else:
            click.echo(line(one), err=True)

    with stoppable("Stopped; every ranked network is kept. The same command goes on."):
        ranked = rank_models(
            plan,
            candidates,
            max_ms=max_ms,
            source=source,
            device=device,
            known=kept.rows,
            tell=tell,
        )
    metric = plan.train.metric.replace("_", " ")
    title = f"Networks for {Path(plan.data).name or plan.data}"
    best = [one for one in ranked if not one.why_not]
    below = f"{len(best)} of {len(ranked)} networks ranked"
    report = write_ranking(ranked, folder, title=title, metric=metric, below=below)
    if display == "json":
        click.echo(json.dumps({"event": "result", "best": best[0].name, "report": str(report)}))
        return
    on_front = {one.name for one in front(ranked)}
    click.echo(f"\n{metric} of a linear probe, by folds of the training images (* on the front):")
    for one in best:
        star = "*" if one.name in on_front else " "
        click.echo(
            f"{star} {one.name:52} {one.score:.3f} ({one.low:.3f} to {one.high:.3f}) "
            f"{one.parameters / 1e6:6.1f} M {one.ms:7.1f} ms {one.megabytes:6.0f} MB"
        )
    click.echo(f"\nReport  {report}")


class _Kept:
    """Networks that were ranked before, one JSON line each, for the same images and settings.

    Args:
        file: The file; what is there for something else is passed over.
        plan: The study that the network is for.
        fingerprint: What the images are.
        device: Where it is computed, on which the milliseconds depend.
    """

    def __init__(self, file: Path, plan: StudySpec, fingerprint: str, device: str) -> None:
        from biotune_optuna.study.choice import Ranked

        content = plan.to_dict() | {"data": fingerprint, "model": "", "device": device}
        text = json.dumps(content, sort_keys=True, default=str)
        self.file, self.key = file, hashlib.sha256(text.encode()).hexdigest()[:16]
        self.rows: dict[str, Ranked] = {}
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        for text in lines:
            with contextlib.suppress(ValueError):  # a line that was cut short
                row = json.loads(text)
                if isinstance(row, dict) and row.get("key") == self.key:
                    self.rows[row["name"]] = Ranked.from_dict(row)

    def add(self, one: Ranked) -> None:
        """Keep a network's rank."""
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"key": self.key, **_finite(one.to_dict())}) + "\n")


def _finite(data: dict[str, Any]) -> dict[str, Any]:
    """Return the same without numbers that JSON cannot hold."""
    return {k: v for k, v in data.items() if not (isinstance(v, float) and v != v)}  # noqa: PLR0124
