"""A rival alone: tuned on the validation images, confirmed on fresh seeds, tested once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biotune_optuna.confirmation.plan import check_members
from biotune_optuna.confirmation.protocol import Contest, Entrant, setting_words
from biotune_optuna.confirmation.winner import origin_of, test_row
from biotune_optuna.export.folder import export_model
from biotune_optuna.finetune.prefix.shared import mean_probabilities
from biotune_optuna.methods.registry import get_method
from biotune_optuna.schema import Cost
from biotune_optuna.study.setup import preprocessing_of
from biotune_optuna.study.spec import at_least

if TYPE_CHECKING:
    from torch import Tensor

    from biotune_optuna.confirmation.record import Contender, TestResult
    from biotune_optuna.methods.base import Setting
    from biotune_optuna.study.objective import Observer
    from biotune_optuna.study.setup import Setup


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a method reached and what it cost.

    Attributes:
        metric: The metric of all scores.
        graded: Settings tried, one run each, and their validation scores, by rate.
        setting: The best of them.
        contender: What fresh seeds made of that one.
        test: The test, once, after training on training and validation images; None without test
            images.
        ensemble: The same of all members together; None where there is one alone.
        trainable_pct: Share of the parameters that train at the end, in percent.
        cost: Of everything that was trained.
        members: What each final training has made of the model, see `Trainer.changed`.
    """

    metric: str
    graded: list[tuple[Setting, float]]
    setting: Setting
    contender: Contender
    test: TestResult | None
    ensemble: TestResult | None
    trainable_pct: float
    cost: Cost
    members: tuple[Mapping[str, Tensor], ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the baseline as JSON-ready data."""
        found, test = self.contender, self.test
        return {
            "method": found.method,
            "metric": self.metric,
            "grid": [{**setting, "score": score} for setting, score in self.graded],
            "setting": dict(self.setting),
            "scores": list(found.scores),
            "best_epochs": list(found.best_epochs),
            "test": test and _of(test),
            **({"members": _of(self.ensemble)} if self.ensemble else {}),
            "trainable_pct": self.trainable_pct,
            **self.cost.to_dict(),
            "mean": found.mean,
            "stderr": found.stderr,
        }


def _of(test: TestResult) -> dict[str, float]:
    return {"value": test.score, "low": test.low, "high": test.high}


def run_baseline(
    setup: Setup,
    method: str,
    *,
    n_runs: int = 3,
    members: int = 1,
    observer: Observer | None = None,
    checkpoint: Callable[[], None] | None = None,
) -> Baseline:
    """Train a rival as `confirm` trains the winner of a search.

    Each of the method's settings, where it has several, gets one run on the search's first seed;
    the best is run on ``n_runs`` seeds that tuning never used; then it is trained on training and
    validation images together for the median best epoch and tested once.

    Args:
        setup: Data, model and trainer.
        method: A name in `biotune_optuna.methods.methods`.
        n_runs: Fresh seeds.
        members: Final trainings, on different seeds; the first is tested alone, and all together.
        observer: Told of the progress.
        checkpoint: Called after each epoch; raises to stop.

    Returns:
        Scores and cost; the trainer holds the weights of the first member.

    Raises:
        BioTuneError: If there is no such method, ``n_runs`` is below 1 or ``members`` no number of
            members.
    """
    at_least("n_runs", n_runs, 1)
    check_members(members)
    settings, is_tuned = tuple(get_method(method).settings()), get_method(method).is_tuned
    choice = {"grid": settings} if is_tuned else {"setting": settings[0]}
    entrant = Entrant(name=method, method=method, **choice)
    contest = Contest(setup, [entrant], n_runs=n_runs, observer=observer, checkpoint=checkpoint)
    (found,) = contest.run()
    final = contest.finish(method, found.final_epochs, members=members, must_hold=False)
    (standing,) = contest.standings()
    tunings = [training for _, training in standing.tunings if training]
    probs = contest.predict(final) if len(setup.splits.test) else []
    return Baseline(
        metric=setup.spec.train.metric,
        graded=standing.graded,
        setting=standing.setting,
        contender=found,
        test=contest.test(method, probs[0]) if probs else None,
        ensemble=contest.test(method, mean_probabilities(probs)) if len(probs) > 1 else None,
        trainable_pct=final.training.trainable_pct,
        cost=Cost.sum([*tunings, found, final.training]),
        members=final.members,
    )


def export_baseline(setup: Setup, found: Baseline, directory: str | Path) -> Path:
    """Write the model of a rival as a folder, as `biotune_optuna.export_winner` does a winner's.

    Args:
        setup: What `run_baseline` was given.
        found: What it returned.
        directory: The folder; an earlier export of the same images and network is replaced.

    Raises:
        BioTuneError: If the folder holds something else, or cannot be written.
    """
    one = found.contender
    method = get_method(one.method)
    weight_decay = {"weight_decay": setup.space.base_weight_decay}
    recipe = method.recipe(setup.blocks, weight_decay | dict(found.setting))
    words = f"{method.words}, {setting_words(found.setting)}" if found.setting else method.words
    if not method.in_confirmation:
        words += ". recipe.json says what trains, and not all that the method does with it"
    tests = [("this model", found.ensemble or found.test)]
    if found.ensemble:
        tests.append(("its first member", found.test))
    model, *members = setup.trainer.networks(found.members)
    return export_model(
        directory,
        model=model,
        members=members,
        model_name=setup.loaded.name,
        classes=setup.classes,
        preprocessing=preprocessing_of(setup),
        recipe=recipe,
        card={
            "Recipe": f"{words}.",
            "Metrics": [test_row(name, test, found.metric) for name, test in tests if test],
        },
        model_args=setup.loaded.model_args,
        origin=origin_of(setup),
        trained_on=setup.spec.fingerprints["data"],
    )
