"""Trial -> genome -> recipe -> trainings -> value."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import optuna

from biotune_optuna.finetune.metrics import worst
from biotune_optuna.finetune.results import standard_error
from biotune_optuna.finetune.trainer import EpochRecord, RunResult, StopTraining
from biotune_optuna.sampler.sampler import slot_of
from biotune_optuna.schema import (
    BACKWARD_KEY,
    DIVERGED_KEY,
    FORWARD_KEY,
    FROZEN_KEY,
    RECIPE_KEY,
    RUNS_KEY,
    SECONDS_KEY,
    STDERR_KEY,
    TRAINABLE_KEY,
    RecipeSummary,
    RunRecord,
)
from biotune_optuna.study.keeping import SearchModel
from biotune_optuna.study.losers import BEHIND, Others, others_of
from biotune_optuna.study.racing import make_race

if TYPE_CHECKING:
    from biotune_optuna.recipe import Recipe
    from biotune_optuna.study.keeping import SearchModels
    from biotune_optuna.study.setup import Setup
    from biotune_optuna.study.spec import SearchRun


class Observer(Protocol):
    """Who is told of the progress of a study; `biotune_optuna.cli.progress.Progress` is one."""

    def trial_started(self, trial: optuna.Trial) -> None:
        """Hear that a trial's recipe is known and its first run begins."""

    def epoch(self, run: SearchRun, record: EpochRecord) -> None:
        """Hear that an epoch of a run has ended."""

    def stage(self, name: str, detail: str, done: int, total: int) -> None:
        """Outside the search: training ``done`` of ``total`` of a stage begins."""


@dataclass(eq=False)
class Objective:
    """The value of a genome: its mean validation score over the study's (fold, seed) runs.

    The value is to be maximised. Beside it the trial carries its standard error, the recipe, the
    cost and one record a run; learning curves are the trial's intermediate values at
    ``step = run index * max epochs + epoch``.

    Args:
        setup: Data, model and trainer.
        observer: Told of the progress, default nobody.
        checkpoint: Called after each epoch; raises to abandon the trial (a stop was asked for).
        on_evaluated: Called with each trial before it ends and the confusion matrix of its first
            run's best epoch on the validation images (rows the true classes).
        models: Keeps the models of the best trials, each of its first run; None keeps none.
    """

    setup: Setup
    _: KW_ONLY
    observer: Observer | None = None
    checkpoint: Callable[[], None] | None = None
    on_evaluated: Callable[[optuna.Trial, list[list[int]] | None], None] | None = None
    models: SearchModels | None = None

    def __call__(self, trial: optuna.Trial) -> float:
        """Evaluate one trial.

        Raises:
            optuna.TrialPruned: If a pruner or the race against the incumbent ended it, or the
                genome freezes every block.
        """
        spec, setup = self.setup.spec, self.setup
        recipe = setup.space.suggest(trial).decode()
        trial.set_user_attr(RECIPE_KEY, recipe_summary(recipe).to_dict())
        trial.set_user_attr(FROZEN_KEY, recipe.frozen_summary())
        if not recipe.trainable:  # other samplers than ours draw such genomes
            raise optuna.TrialPruned("every block is frozen")
        if self.observer:
            self.observer.trial_started(trial)
        slot = slot_of(trial)
        runs = spec.search_runs(generation=slot.generation, repeat=slot.repeat, index=slot.index)
        made: list[RunResult] = []
        others = Others(())
        model: SearchModel | None = None

        def train(run: SearchRun) -> RunResult:
            nonlocal model
            made.append(self._run(trial, recipe, run, others))
            if self.models is not None and len(made) == 1:
                model = SearchModel.of(setup.trainer, made[0])
            return made[-1]

        first = slot.repeat == 0  # what is evaluated again is among the best
        if first and spec.stop_losers and len(runs) == 1:
            states = (optuna.trial.TrialState.COMPLETE,)
            others = others_of(trial.study.get_trials(deepcopy=False, states=states))
        try:
            value = judge(trial, setup, runs, train, racing=first)
            if self.models is not None:
                self.models.offer(trial, value, model)
            return value
        finally:
            if self.on_evaluated and made:
                self.on_evaluated(trial, self._confusion(runs[0], made[0]))

    def _run(
        self, trial: optuna.Trial, recipe: Recipe, run: SearchRun, others: Others
    ) -> RunResult:
        """Make one training; ``callback`` stops it where Optuna's pruner does, or it is beaten."""
        setup = self.setup
        train, val = setup.splits.run(run.fold)
        epochs = setup.spec.train.by(recipe.training).epochs

        scores: list[float] = []
        is_behind = False

        def on_epoch(record: EpochRecord) -> None:
            nonlocal is_behind
            scores.append(record.score)
            step = run.index * setup.spec.most_epochs + record.epoch
            if math.isfinite(record.score):
                trial.report(record.score, step)
            if self.observer:
                self.observer.epoch(run, record)
            if self.checkpoint:
                self.checkpoint()
            if run.index == 0 and trial.should_prune():
                raise StopTraining
            is_behind = record.epoch < epochs and others.beat(scores)
            if is_behind:
                raise StopTraining

        result = setup.trainer.fit(
            recipe,
            train,
            val,
            seed=run.seed,
            on_epoch=on_epoch,
            keep_weights=self.models is not None and run.index == 0,
        )
        if is_behind:
            result.stopped = BEHIND
        return result

    def _confusion(self, run: SearchRun, result: RunResult) -> list[list[int]] | None:
        if result.predictions is None:
            return None
        labels = self.setup.source.labels[self.setup.splits.run(run.fold)[1]]
        n = len(self.setup.classes)
        counts = np.bincount(labels * n + result.predictions, minlength=n * n)
        confusion: list[list[int]] = counts.reshape(n, n).tolist()
        return confusion


def judge(
    trial: optuna.Trial,
    setup: Setup,
    runs: Sequence[SearchRun],
    train: Callable[[SearchRun], RunResult],
    *,
    racing: bool = True,
) -> float:
    """Make the runs of an evaluation in turn, store what came of them, and return their mean score.

    A run that diverged ends the evaluation; those after it count as the worst score.

    Args:
        trial: The trial.
        setup: Its spec says whether evaluations race.
        runs: The runs.
        train: Makes one.
        racing: Whether this one may be given up as clearly beaten, where the spec has them race.

    Raises:
        optuna.TrialPruned: If a run was stopped by its callback, or the evaluation is beaten.
    """
    race = None
    if setup.spec.racing and racing:
        done = trial.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        race = make_race(done, runs, n_val=len(setup.splits.run(runs[0].fold)[1]))
    started = time.perf_counter()
    results: list[RunResult] = []
    try:
        for run in runs:
            results.append(train(run))
            if results[-1].stopped == "callback":
                raise optuna.TrialPruned("stopped by the pruner during the first run")
            if results[-1].diverged:
                break
            if race and len(results) < len(runs) and race.is_lost([r.score for r in results]):
                raise optuna.TrialPruned(f"beaten by trial {race.number}")
    finally:
        if results:
            _store(trial, runs, results, time.perf_counter() - started)
    scores = [result.score for result in results]
    scores += [worst(setup.spec.train.metric)] * (len(runs) - len(scores))
    return float(np.mean(scores))


def _store(
    trial: optuna.Trial, runs: Sequence[SearchRun], results: Sequence[RunResult], seconds: float
) -> None:
    records = [run_record(run, r).to_dict() for run, r in zip(runs, results, strict=False)]
    attributes: dict[str, Any] = {
        TRAINABLE_KEY: round(100 * results[0].trainable_fraction, 4),
        SECONDS_KEY: round(seconds, 3),
        FORWARD_KEY: sum(r.images_forward for r in results),
        BACKWARD_KEY: sum(r.images_backward for r in results),
        RUNS_KEY: records,
    }
    if len(results) > 1:
        attributes[STDERR_KEY] = standard_error([r.score for r in results])
    if any(r.diverged for r in results):
        attributes[DIVERGED_KEY] = True
    for key, value in attributes.items():
        trial.set_user_attr(key, value)


def recipe_summary(recipe: Recipe) -> RecipeSummary:
    """Return a recipe without its parameter names, small enough for a trial attribute."""
    return RecipeSummary(
        recipe.lr,
        recipe.weight_decay,
        recipe.multipliers,
        recipe.fitted,
        recipe.modes,
        dict(recipe.training),
    )


def run_record(run: SearchRun, result: RunResult) -> RunRecord:
    """Return what is kept of one run."""
    return RunRecord(
        fold=run.fold,
        seed=run.seed,
        score=result.score,
        best_epoch=result.best_epoch,
        epochs=len(result.epochs),
        seconds=round(result.seconds, 3),
        forward=result.images_forward,
        backward=result.images_backward,
        peak_mb=round(result.peak_memory_mb, 1),
        cache_hits=result.cache_hits,
        cache_misses=result.cache_misses,
        batch_size=result.batch_size,
        device=result.device,
        stopped=result.stopped,
    )
