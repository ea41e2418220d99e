"""What does a whole study cost when nothing is tuned twice, and when losers are stopped too?

    python studies/benchmarks/halved.py [--repeats 10] [--trials 28] [--data FOLDER] [--model NAME]

A repeat is a study of its own seed: other images to train and to validate on, other luck. It is
confirmed twice from the same trials: training everything anew (``ConfirmPlan(reuse=False)``), and
as by default. A third arm has a search of its own on the same images, whose losers are stopped
(``StudySpec(stop_losers=True)``). Each chooses its winner, trains its members and tests them.
Counted are trainings and image passes; compared is the tested score, paired by repeat.

Every repeat is kept in the cache when it is done, and the same command goes on where it stopped.
It puts its part into docs/benchmarks/study_cost.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch
from _parts import put
from scipy.stats import t as student

from biotune_optuna import Objective, StudySpec, TrainSettings, prepare
from biotune_optuna.confirmation.confirm import confirm
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.record import trainings
from biotune_optuna.report.bill import ALONE, bill
from biotune_optuna.report.view import as_view
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.study.study import TuningStudy

if TYPE_CHECKING:
    from biotune_optuna.study.setup import Setup

ENOUGH = 10
"""Repeats that say something of accuracy."""

Row = dict[str, Any]
ARMS = {"before": (False, False), "after": (False, True), "losers stopped": (True, True)}
"""Whether losers are stopped, and whether the confirmation uses what the search has trained."""


def spec_of(args: argparse.Namespace, seed: int) -> StudySpec:
    """The study of a repeat."""
    return StudySpec(
        model=args.model,
        data=args.data,
        weights=args.weights,
        image_size=args.image_size,
        train_size=args.train_size,
        val_size=args.val_size,
        test_fraction=args.test_fraction,
        lr=(1e-3, 3e-2),
        train=TrainSettings(epochs=args.epochs),
        seed=seed,
    )


def searched(setup: Setup, trials: int) -> optuna.Study:
    """A search in memory."""
    sampler = BioTuneSampler(space=setup.space, seed=setup.spec.seed)
    pruner = optuna.pruners.NopPruner()
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    study.optimize(Objective(setup), n_trials=trials)
    return study


def confirmed(setup: Setup, search: optuna.Study, plan: ConfirmPlan) -> Row:
    """A confirmation of a search's trials, and what all of it took."""
    study = TuningStudy(optuna.create_study(direction="maximize"), setup)
    study.study.add_trials(search.trials)
    result = confirm(study, plan)
    assert result.model_test is not None
    lines = bill(as_view(study.study))
    full = result.contender("full")
    assert full is not None
    return {
        "winner": result.chosen,
        "test": result.model_test.score,
        "single": result.tests[-1].score,
        "trainings": len(trainings(study.study.user_attrs)),
        "rates": len(full.grid or ()),
        "reused": sum(one.reused for one in result.contenders),
        "passes": {line.part: line.passes for line in lines},
        "seconds": {line.part: line.seconds for line in lines},
    }


def one_repeat(args: argparse.Namespace, seed: int) -> Row:
    """A repeat, from the cache where it is there."""
    path = args.cache / f"{seed}.json"
    asked = {k: str(v) for k, v in vars(args).items() if k not in ("cache", "repeats", "no_write")}
    if path.exists():
        row: Row = json.loads(path.read_text())
        if row["asked"] == asked:
            return row
        raise SystemExit(f"{path} was made with other options; give another --cache")
    setup = prepare(spec_of(args, seed), cache_dir=args.cache / "pixels")
    row = {"asked": asked, "seed": seed}
    searches: dict[bool, optuna.Study] = {}
    for arm, (stop, reuse) in ARMS.items():
        own = dataclasses.replace(setup, spec=dataclasses.replace(setup.spec, stop_losers=stop))
        if stop not in searches:
            searches[stop] = searched(own, args.trials)
        plan = ConfirmPlan(reuse=reuse, members=args.members)
        row[arm] = confirmed(own, searches[stop], plan)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(row))
    new.replace(path)
    print(
        seed, {arm: (row[arm]["trainings"], row[arm]["passes"], row[arm]["test"]) for arm in ARMS}
    )
    return row


def part(rows: Sequence[Row], args: argparse.Namespace) -> str:
    """The part of the page."""
    lines = [
        "## Search and confirmation, before and after",
        "",
        f"{args.model} on {args.data} at {args.image_size} px: {args.train_size} images to train"
        f" on, {args.val_size} to validate on, {args.epochs} epochs, {args.trials} trials,"
        f" {args.members} members. *Before*: the confirmation trains everything anew. *After*, the"
        " default: it uses what the same search has trained. *Losers stopped*: that, and a search"
        " with `--stop-losers`."
        f" Means over {len(rows)} repeats, each with other images.",
        "",
        "| | trainings that confirm | rates of full fine-tuning | passes: search | confirmation |"
        " final trainings | all |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in ARMS:
        cells = [f"{_mean(rows, arm, key):.1f}" for key in ("trainings", "rates")]
        parts = ("search", "confirmation", "final trainings", "all")
        cells += [f"{np.mean([row[arm]['passes'][name] for row in rows]):,.0f}" for name in parts]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    alone = float(np.mean([row["after"]["passes"][ALONE] for row in rows]))
    lines += ["", f"Tuned full fine-tuning alone would take about {alone:,.0f} passes."]
    said = [f"Tested score of the model: before {_mean(rows, 'before', 'test'):.4f}."]
    for arm in list(ARMS)[1:]:
        apart = np.array([row[arm]["test"] - row["before"]["test"] for row in rows])
        words = f"{arm.capitalize()}: {_mean(rows, arm, 'test'):.4f}, that is {apart.mean():+.4f}"
        if len(rows) > 2:
            half = student.ppf(0.975, len(rows) - 1) * apart.std(ddof=1) / math.sqrt(len(rows))
            low, high = apart.mean() - half, apart.mean() + half
            words += f" ({low:+.4f} to {high:+.4f}, 95 % t interval)"
        said.append(f"{words}.")
    if len(rows) < ENOUGH:
        said.append(
            f"With {len(rows)} repeats in miniature that says nothing of accuracy: it shows what is"
            f" counted. {ENOUGH} repeats at full size take CPU hours, and have not been run."
        )
    return "\n".join([*lines, "", " ".join(said), "", f"Made by `{_command(args)}`."])


def _mean(rows: Sequence[Row], arm: str, key: str) -> float:
    return float(np.mean([row[arm][key] for row in rows]))


def _command(args: argparse.Namespace) -> str:
    kept = {k: v for k, v in vars(args).items() if k not in ("cache", "no_write")}
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in kept.items())
    return f"python studies/benchmarks/halved.py {options}"


def main() -> None:
    """Runs the repeats that are missing and writes the part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--trials", type=int, default=28)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--train-size", type=int, default=200)
    parser.add_argument("--val-size", type=int, default=100)
    parser.add_argument("--test-fraction", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--cache", type=Path, default=Path("halved"))
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    rows = [one_repeat(args, seed) for seed in range(args.repeats)]
    text = part(rows, args)
    if not args.no_write:
        put("halved", text)
    print(text)


if __name__ == "__main__":
    main()
