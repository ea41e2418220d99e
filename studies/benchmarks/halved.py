"""Does a study of half the passes give as good a model?

    python studies/benchmarks/halved.py [--repeats 10] [--trials 28] [--data FOLDER …] [--arms …]

A repeat is a study of its own seed: other images to train and to validate on, other luck. One
search is used by several arms. *Before* is the default as it was: 28 trainings that confirm, all
made anew, and one final training. *After* is today's: what the search has trained is used, and the
model has five members. *Half* knows only the first half of the same trials, confirms on two seeds
and has three members. Arms with searches of their own: *losers stopped* (``stop_losers``), and the
levels of ``--effort``, *quick*, *normal* and *thorough*, each with its own trials and epochs.
Every arm chooses its winner, trains its members and tests them. Counted are trainings and image
passes; compared with *before* is the tested score, paired by repeat.

A training that two arms need is made once, and counts in both. Every arm of a repeat is kept in the
cache when it is done, and the same command goes on where it stopped; a longer ``--arms`` or
``--repeats`` adds to it. It puts its part into docs/benchmarks/study_cost.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
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
from biotune_optuna.effort import EFFORTS
from biotune_optuna.report.bill import ALONE, bill
from biotune_optuna.report.view import as_view
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.study.study import TuningStudy

if TYPE_CHECKING:
    from biotune_optuna.study.setup import Setup

ENOUGH = 10
"""Repeats that say something of accuracy."""

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arm:
    """How a study goes.

    Attributes:
        plan: How it is confirmed.
        share: Share of the trials.
        stop: Whether losers are stopped.
        effort: Name of the level that sets trials and epochs instead; "" for none.
    """

    plan: ConfirmPlan
    share: float = 1.0
    stop: bool = False
    effort: str = ""

    @classmethod
    def of_effort(cls, name: str) -> Arm:
        """Return a level of effort."""
        level = EFFORTS[name]
        plan = ConfirmPlan(top_k=level.top_k, n_runs=level.n_runs, members=level.members)
        return cls(plan, effort=name)


ARMS = {
    "before": Arm(ConfirmPlan(reuse=False, rivals=("full", "linear-probe-sgd"), members=1)),
    "after": Arm(ConfirmPlan()),
    "half": Arm(ConfirmPlan(n_runs=2, members=3), share=0.5),
    "losers stopped": Arm(ConfirmPlan(), stop=True),
} | {name: Arm.of_effort(name) for name in EFFORTS}
USUAL = "before,after,half,quick"


def spec_of(args: argparse.Namespace, data: str, seed: int, arm: Arm) -> StudySpec:
    """The study of a repeat."""
    epochs = EFFORTS[arm.effort].epochs if arm.effort else args.epochs
    return StudySpec(
        model=args.model,
        data=data,
        weights=args.weights,
        image_size=args.image_size,
        train_size=args.train_size,
        val_size=args.val_size,
        test_fraction=args.test_fraction,
        lr=(1e-3, 3e-2),
        train=TrainSettings(epochs=epochs),
        stop_losers=arm.stop,
        seed=seed,
    )


def remember(trainer: Any) -> None:
    """Let a trainer make each training once: what comes of it depends on its seed alone."""
    fit, kept = trainer.fit, {}

    @functools.wraps(fit)
    def again(
        recipe: Any,
        train: Any,
        val: Any = None,
        *,
        seed: int,
        epochs: int | None = None,
        **more: Any,
    ) -> Any:
        key = (recipe.key(), recipe.fitted, len(train), val is None, seed, epochs)
        if key not in kept:
            result = fit(recipe, train, val, seed=seed, epochs=epochs, **more)
            kept[key] = result, trainer.changed() if val is None else None
            return result
        result, changed = kept[key]
        if changed is not None:
            trainer.put(changed)
        return result

    trainer.fit = again


class Repeat:
    """The studies of one seed on some images.

    Args:
        args: Options of the command.
        data: The images.
        seed: The seed.
    """

    def __init__(self, args: argparse.Namespace, data: str, seed: int) -> None:
        self.args, self.data, self.seed = args, data, seed
        self._setups: dict[tuple[bool, str], Setup] = {}
        self._searches: dict[tuple[bool, str], list[optuna.trial.FrozenTrial]] = {}

    def setup(self, arm: Arm) -> Setup:
        """Images, network and trainer, shared by the arms that train alike."""
        key = (arm.stop, arm.effort)
        if key not in self._setups:
            spec = spec_of(self.args, self.data, self.seed, arm)
            self._setups[key] = prepare(spec, cache_dir=self.args.cache / "pixels")
            remember(self._setups[key].trainer)
        return self._setups[key]

    def search(self, arm: Arm) -> list[optuna.trial.FrozenTrial]:
        """The trials of an arm."""
        key = (arm.stop, arm.effort)
        trials = EFFORTS[arm.effort].trials if arm.effort else self.args.trials
        if key not in self._searches:
            setup = self.setup(arm)
            study = optuna.create_study(
                direction="maximize",
                sampler=BioTuneSampler(space=setup.space, seed=self.seed),
                pruner=optuna.pruners.NopPruner(),
            )
            study.optimize(Objective(setup), n_trials=trials)
            self._searches[key] = study.trials
        return self._searches[key][: max(1, round(arm.share * trials))]

    def row(self, arm: Arm) -> Row:
        """What an arm has chosen, and what all of it took."""
        setup, trials = self.setup(arm), self.search(arm)
        study = TuningStudy(optuna.create_study(direction="maximize"), setup)
        study.study.add_trials(trials)
        result = confirm(study, arm.plan)
        full = result.contender("full")
        assert result.model_test is not None
        assert full is not None
        lines = bill(as_view(study.study))
        return {
            "trials": len(trials),
            "winner": result.chosen,
            "test": result.model_test.score,
            "single": result.tests[-1].score,
            "trainings": len(trainings(study.study.user_attrs)),
            "rates": len(full.grid or ()),
            "reused": sum(one.reused for one in result.contenders),
            "passes": {line.part: line.passes for line in lines},
            "seconds": {line.part: line.seconds for line in lines},
        }


def one_repeat(args: argparse.Namespace, data: str, seed: int) -> Row:
    """The arms of a repeat, from the cache where they are there."""
    path = args.cache / f"{Path(data).name}-{seed}.json"
    other = ("cache", "repeats", "no_write", "arms", "data")
    asked = {k: str(v) for k, v in vars(args).items() if k not in other} | {"data": data}
    row: Row = {"asked": asked, "seed": seed}
    if path.exists():
        row = json.loads(path.read_text())
        if row["asked"] != asked:
            raise SystemExit(f"{path} was made with other options; give another --cache")
    repeat = Repeat(args, data, seed)
    for name in args.arms:
        if name not in row:
            row[name] = repeat.row(ARMS[name])
            new = path.with_suffix(".new")
            new.write_text(json.dumps(row))
            new.replace(path)
            print(data, seed, name, row[name]["passes"], row[name]["test"], flush=True)
    return row


def part(rows: Sequence[Row], args: argparse.Namespace) -> str:
    """The part of the page."""
    tasks = list(dict.fromkeys(Path(row["asked"]["data"]).name for row in rows))
    lines = [
        "## Whole studies: what they take, and what they test",
        "",
        f"{args.model} on {', '.join(tasks)} at {args.image_size} px: {args.train_size} images to"
        f" train on, {args.val_size} to validate on, {args.epochs} epochs where no effort sets"
        f" them; means over {args.repeats} repeats of each, with other images in each. *Before*:"
        " the confirmation trains everything anew, its probe by steps of the optimiser, and the"
        " model has one member. *After*: what the search has trained is used, and the model has"
        " five members. *Half*: the first half of the same trials, two seeds, three members.",
        "",
        "| | trials | trainings that confirm | passes: search | confirmation | final trainings |"
        " all | of *before* |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    every = np.mean([row["before"]["passes"]["all"] for row in rows])
    for arm in args.arms:
        cells = [f"{_mean(rows, arm, 'trials'):.0f}", f"{_mean(rows, arm, 'trainings'):.1f}"]
        parts = ("search", "confirmation", "final trainings", "all")
        passes = [np.mean([row[arm]["passes"][name] for row in rows]) for name in parts]
        cells += [*(f"{one:,.0f}" for one in passes), f"{passes[-1] / every:.0%}"]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    alone = float(np.mean([row["before"]["passes"][ALONE] for row in rows]))
    lines += ["", f"Tuned full fine-tuning alone would take about {alone:,.0f} passes."]
    lines += ["", "| | tested | minus *before* | its first member alone |", "|---|---:|---:|---:|"]
    for arm in args.arms:
        apart = np.array([row[arm]["test"] - row["before"]["test"] for row in rows])
        words = f"{apart.mean():+.4f}"
        if len(rows) > 2 and arm != "before":
            half = student.ppf(0.975, len(rows) - 1) * apart.std(ddof=1) / math.sqrt(len(rows))
            words += f" ({apart.mean() - half:+.4f} to {apart.mean() + half:+.4f})"
        tested, single = (f"{_mean(rows, arm, key):.4f}" for key in ("test", "single"))
        lines.append(f"| {arm} | {tested} | {'' if arm == 'before' else words} | {single} |")
    said = "95 % t intervals of the paired differences over all repeats."
    if len(rows) < ENOUGH:
        said += (
            f" With {len(rows)} repeats that says nothing of accuracy: it shows what is counted."
        )
    return "\n".join([*lines, "", said, "", f"Made by `{_command(args)}`."])


def _mean(rows: Sequence[Row], arm: str, key: str) -> float:
    return float(np.mean([row[arm][key] for row in rows]))


def _command(args: argparse.Namespace) -> str:
    kept = {k: v for k, v in vars(args).items() if k not in ("cache", "no_write")}
    kept["data"] = " ".join(Path(one).name for one in args.data)
    kept["arms"] = f"'{','.join(args.arms)}'"
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in kept.items())
    return f"python studies/benchmarks/halved.py {options}"


def main() -> None:
    """Runs the repeats that are missing and writes the part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--trials", type=int, default=28)
    parser.add_argument("--arms", default=USUAL, type=lambda text: text.split(","))
    parser.add_argument("--data", nargs="+", default=["digits"])
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
    if unknown := [one for one in args.arms if one not in ARMS]:
        parser.error(f"no arm is called {unknown[0]!r}; choose from {', '.join(ARMS)}")
    args.arms = list(dict.fromkeys(["before", *args.arms]))
    args.cache.mkdir(parents=True, exist_ok=True)
    rows = [one_repeat(args, data, seed) for seed in range(args.repeats) for data in args.data]
    text = part(rows, args)
    if not args.no_write:
        put("halved", text)
    print(text)


if __name__ == "__main__":
    main()
