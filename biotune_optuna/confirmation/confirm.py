"""Which recipe really is best: fresh seeds, rivals, and one look at the test set.

With a few hundred images the best of many noisy values is mostly luck. So the best few recipes are
trained again on seeds that the search never used, beside full fine-tuning and a linear probe whose
base rates were chosen on the same validation data. The winner is chosen by that. Only then is it
trained on training and validation data together and tested, once.
"""

from __future__ import annotations

import datetime
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from biotune_optuna.confirmation.candidates import Candidate, choose, leading
from biotune_optuna.confirmation.fitting import fitting
from biotune_optuna.confirmation.mistakes import list_mistakes
from biotune_optuna.confirmation.plan import ConfirmPlan, further_rate
from biotune_optuna.confirmation.protocol import train_finally
from biotune_optuna.confirmation.record import add_training, trainings
from biotune_optuna.confirmation.statistics import bootstrap_interval, paired_test
from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.metrics import report, worst
from biotune_optuna.recipe import Recipe
from biotune_optuna.schema import CONFIRM_KEY, LOOKS_KEY, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from optuna.trial import FrozenTrial

    from biotune_optuna.finetune.trainer import EpochRecord, RunResult
    from biotune_optuna.study.objective import Observer
    from biotune_optuna.study.study import TuningStudy

__all__ = ["ConfirmPlan", "confirm", "train_winner"]

_MOST_CONFUSION = 60  # classes, with which the winner's confusion matrix still leaves room


def confirm(
    study: TuningStudy,
    plan: ConfirmPlan | None = None,
    *,
    observer: Observer | None = None,
    checkpoint: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Confirm the best recipes, chooses the winner and tests it once.

    Every training on validation data is written to the study as it ends, so an interrupted
    confirmation goes on; final trainings that were cut short are made, and tested, again. A
    confirmation that stands for the same finished trials is returned as it is: the test set is not
    looked at again. Processes that confirm one study at the same time take over what trainings the
    others have finished, and the result of the first. After the call the trainer holds the
    winner's weights if it was trained now.

    Args:
        study: The study, with at least one COMPLETE trial.
        plan: How much evidence to gather.
        observer: Told of the progress.
        checkpoint: Called after each epoch; raises to stop.

    Returns:
        What is stored in the study under ``confirm``: candidates, rivals, the winner and why,
        test results with intervals, paired tests and the images most confidently wrong.

    Raises:
        StudyError: If no trial has finished.
    """
    plan = plan or ConfirmPlan()
    finished = _finished(study)
    basis = plan.basis(len(finished))
    stored = _stored(study, basis)
    return stored or _Confirmation(study, plan, finished, observer, checkpoint).run(basis)


def train_winner(study: TuningStudy, observer: Observer | None = None) -> Recipe:
    """Trains the confirmed winner on training and validation data; the test set is not touched.

    The training is the one that `confirm` tested: same data, seed and number of epochs.

    Returns:
        The winner's recipe; the trainer holds its weights.

    Raises:
        StudyError: If the study has not been confirmed.
    """
    stored = study.study.user_attrs.get(CONFIRM_KEY)
    if not stored:
        raise StudyError(f"study {study.name!r} has no confirmed winner yet; finish it first")
    entry = next(
        c for c in (*stored["candidates"], *stored["rivals"]) if c["name"] == stored["winner"]
    )
    summary = entry["recipe"]
    recipe = Recipe.from_multipliers(
        study.setup.blocks,
        [summary["multipliers"][block.name] for block in study.setup.blocks],
        lr=summary["lr"],
        weight_decay=summary["weight_decay"],
    )
    if study.trained == (recipe.key(), entry["final_epochs"]):
        return recipe
    if observer:
        observer.stage("final training", entry["name"], 0, 1)
    _fit_final(study, recipe, entry["final_epochs"], None)
    return recipe


class _DoneElsewhere(Exception):  # noqa: N818 - no failure
    """Another process has confirmed the same trials."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__()
        self.result = result


class _Confirmation:
    """One confirmation in progress."""

    def __init__(
        self,
        study: TuningStudy,
        plan: ConfirmPlan,
        finished: Sequence[FrozenTrial],
        observer: Observer | None,
        checkpoint: Callable[[], None] | None,
    ) -> None:
        self.study, self.plan, self.observer, self.checkpoint = study, plan, observer, checkpoint
        self.finished = {trial.number for trial in finished}
        self.setup = study.setup
        self.done = 0
        self.seconds_before = 0.0  # of trainings that an earlier confirmation made
        n_rivals = len(plan.rivals)
        trainings = n_rivals * len(plan.rates) + (plan.top_k + n_rivals) * plan.n_runs
        self.total = trainings + 1 + n_rivals

    def run(self, basis: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        rivals = [self._tune_rival(name) for name in self.plan.rivals]
        candidates = self._candidates()
        everyone = [*candidates, *rivals]
        for candidate in everyone:
            self._confirm(candidate)
        if stored := _stored(self.study, basis):  # another process was sooner: one test is enough
            return stored
        winner, plateau, why = choose(everyone, tolerance=self.plan.tolerance)
        result: dict[str, Any] = {
            "basis": basis,
            "metric": self.setup.spec.train.metric,
            "classes": list(self.setup.classes),
            "candidates": [c.to_dict() for c in candidates],
            "rivals": [c.to_dict() for c in rivals],
            "winner": winner.name,
            "plateau": [c.name for c in plateau],
            "why": why,
            "time": _now(),
            "n_train": len(self.setup.splits.train),
            "n_val": len(self.setup.splits.val),
            "n_test": len(self.setup.splits.test),
        }
        found = winner if winner in candidates else max(candidates, key=lambda c: c.mean)
        tested = [c for c in (*rivals, found) if c is not winner] + [winner]
        untested: dict[str, Any] = {"tests": [], "paired": [], "mistakes": []}
        try:
            result |= self._test(tested, basis) if len(self.setup.splits.test) else untested
        except _DoneElsewhere as done:
            return done.result
        result["seconds"] = time.perf_counter() - started + self.seconds_before
        self.study.study.set_user_attr(CONFIRM_KEY, fitting(result))
        return result

    # -- validation data -----------------------------------------------------------------------

    def _candidates(self) -> list[Candidate]:
        """Return the search's best recipes by model and by value in turn, different ones.

        Trials that another process has finished since the confirmation began are left out.
        """
        return [
            Candidate(
                name=f"trial {trial.number}",
                method="biotune",
                recipe=recipe,
                trial=trial.number,
                search_value=float(trial.value if trial.value is not None else math.nan),
                search_stderr=TrialRecord(trial).stderr,
            )
            for trial, recipe in leading(self.study, self.plan.top_k, among=self.finished)
        ]

    def _tune_rival(self, name: str) -> Candidate:
        scores = {rate: self._rival_score(name, rate) for rate in self.plan.rates}
        for _ in range(self.plan.more_rates):
            rate = further_rate(scores, worst=worst(self.setup.spec.train.metric))
            if rate is None:
                break
            self.total += 1
            scores[rate] = self._rival_score(name, rate)
        rates = sorted(scores)
        best = max(rates, key=scores.__getitem__)
        return Candidate(
            name=name,
            method=name,
            recipe=self._rival_recipe(name, best),
            search_value=scores[best],
            grid=[{"lr": rate, "value": scores[rate]} for rate in rates],
        )

    def _rival_score(self, name: str, rate: float) -> float:
        """Return the score of one run on the search's first run's seed."""
        run, recipe = self.setup.spec.search_runs()[0], self._rival_recipe(name, rate)
        record = self._train(f"{name} at {rate:g}", "rivals' rates", recipe, run.seed)
        return float(record["score"])

    def _rival_recipe(self, name: str, rate: float) -> Recipe:
        make = Recipe.full if name == "full" else Recipe.linear_probe
        decay = self.setup.space.base_weight_decay
        return make(self.setup.blocks, lr=rate, weight_decay=decay)

    def _confirm(self, candidate: Candidate) -> None:
        for run in self.setup.spec.confirm_runs(self.plan.n_runs):
            record = self._train(candidate.name, "confirm", candidate.recipe, run.seed)
            candidate.scores.append(record["score"])
            candidate.best_epochs.append(record["best_epoch"])
            candidate.trainable_pct = record["trainable_pct"]
            candidate.forward += record["forward"]
            candidate.backward += record["backward"]
            candidate.seconds += record["seconds"]

    def _train(self, name: str, stage: str, recipe: Recipe, seed: int) -> dict[str, Any]:
        """One training on the training part, or what the ledger says of it."""
        if self.observer:
            self.observer.stage(stage, name, self.done, self.total)
        self.done += 1
        key = f"{name} | seed {seed}"
        # Read anew each time: another process may be confirming the same study.
        known = trainings(self.study.study.user_attrs).get(key)
        if known and known["key"] == list(recipe.key()):
            self.seconds_before += known["seconds"]
            return dict(known)
        train, val = self.setup.splits.run(None)
        self.study.trained = None
        result = self.setup.trainer.fit(recipe, train, val, seed=seed, on_epoch=self._on_epoch)
        record = _record(recipe, result)
        add_training(self.study.study, key, record)
        return record

    def _on_epoch(self, _record: EpochRecord) -> None:
        if self.checkpoint:
            self.checkpoint()

    # -- test data -----------------------------------------------------------------------------

    def _test(self, tested: list[Candidate], basis: dict[str, Any]) -> dict[str, Any]:
        """Trains each finally and tests it; the winner last, so that its weights remain.

        Raises:
            _DoneElsewhere: Another process has done so meanwhile.
        """
        metric, classes = self.setup.spec.train.metric, self.setup.classes
        index = self.setup.splits.test
        labels = self.setup.source.labels[index]
        probs: dict[str, NDArray[np.floating]] = {}
        cost: dict[str, dict[str, float]] = {}
        for candidate in tested:
            if self.observer:
                self.observer.stage("final training", candidate.name, self.done, self.total)
            self.done += 1
            final = _fit_final(
                self.study,
                candidate.recipe,
                candidate.final_epochs,
                self._on_epoch,
                must_hold=self.plan.must_hold and candidate is tested[-1],
            )
            cost[candidate.name] = {
                "forward": final.images_forward,
                "backward": final.images_backward,
                "seconds": round(final.seconds, 3),
            }
            if stored := _stored(self.study, basis):
                raise _DoneElsewhere(stored)
            self._log_look(candidate.name)
            probs[candidate.name] = self.setup.trainer.predict(index)
        winner = tested[-1].name
        tests = []
        for candidate in tested:
            interval = bootstrap_interval(metric, labels, probs[candidate.name])
            details = report(labels, probs[candidate.name], classes)
            confusion = details.pop("confusion", None)
            keep = candidate.name == winner and len(classes) <= _MOST_CONFUSION
            tests.append(
                {
                    "name": candidate.name,
                    "method": candidate.method,
                    "score": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                    "n": len(index),
                    "metrics": details,
                    "confusion": confusion if keep else None,
                }
            )
        paired = [
            {"against": c.name}
            | paired_test(metric, labels, probs[winner], probs[c.name])._asdict()
            for c in tested[:-1]
        ]
        mistakes = list_mistakes(
            self.setup.source,
            index,
            probs[winner],
            [probs[candidate.name] for candidate in tested[:-1]],
            most=self.plan.mistakes,
        )
        return {"tests": tests, "paired": paired, "mistakes": mistakes, "final_training": cost}

    def _log_look(self, what: str) -> None:
        study = self.study.study
        looks = [*study.user_attrs.get(LOOKS_KEY, []), {"time": _now(), "what": what}]
        study.set_user_attr(LOOKS_KEY, looks)


def _fit_final(
    study: TuningStudy,
    recipe: Recipe,
    epochs: int,
    on_epoch: Callable[[EpochRecord], None] | None,
    *,
    must_hold: bool = True,
) -> RunResult:
    """Trains on training and validation data, without early stop; keeps the weights.

    Raises:
        StudyError: If it must hold, and diverges on every seed that is tried.
    """
    images = np.concatenate([study.setup.splits.train, study.setup.splits.val])
    study.trained = None
    result = train_finally(
        study.spec,
        f"{recipe.describe()}, epochs {epochs}",
        lambda seed: study.setup.trainer.fit(
            recipe, images, None, seed=seed, epochs=epochs, on_epoch=on_epoch, keep_weights=True
        ),
        must_hold=must_hold,
    )
    study.trained = None if result.diverged else (recipe.key(), epochs)
    return result


def _record(recipe: Recipe, result: RunResult) -> dict[str, Any]:
    return {
        "key": list(recipe.key()),
        "score": result.score,
        "best_epoch": result.best_epoch,
        "trainable_pct": round(100 * result.trainable_fraction, 4),
        "forward": result.images_forward,
        "backward": result.images_backward,
        "seconds": round(result.seconds, 3),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _stored(study: TuningStudy, basis: dict[str, Any]) -> dict[str, Any] | None:
    """Return the study's confirmation, if it stands on this basis."""
    stored = study.study.user_attrs.get(CONFIRM_KEY)
    return dict(stored) if stored and stored.get("basis") == basis else None


def _finished(study: TuningStudy) -> list[FrozenTrial]:
    """Return the trials to confirm.

    Raises:
        StudyError: If there is none.
    """
    states = (optuna.trial.TrialState.COMPLETE,)
    finished = study.study.get_trials(deepcopy=False, states=states)
    if not finished:
        raise StudyError(
            f"study {study.name!r} has no finished trial to confirm; run more trials first"
        )
    return finished
