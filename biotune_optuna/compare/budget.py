"""A rival with the search's own budget: its settings searched by TPE until the passes are spent."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from biotune_optuna.compare.rows import Outcome
from biotune_optuna.compare.search import charge, fresh_seed, searcher, tested
from biotune_optuna.confirmation.protocol import Contest, Entrant
from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.prefix.shared import mean_probabilities
from biotune_optuna.methods.registry import get_method
from biotune_optuna.schema import TrialRecord
from biotune_optuna.study.objective import judge
from biotune_optuna.study.worker import run_trials

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from biotune_optuna.compare.plan import Comparison
    from biotune_optuna.finetune.results import EpochRecord, RunResult
    from biotune_optuna.methods.base import Method
    from biotune_optuna.study.setup import Setup
    from biotune_optuna.study.spec import SearchRun
    from biotune_optuna.study.stop import StopRequest


RATES, DECAYS = (1e-5, 1e-1), (1e-6, 1e-1)
"""Bounds of base rate (a decade beyond what rivals try by themselves) and of weight decay (from
next to none to ten times AdamW's usual); a method names those of its own settings itself."""


def run_budget(
    setup: Setup,
    method: str,
    plan: Comparison,
    *,
    budget: int,
    storage: optuna.storages.BaseStorage,
    name: str,
    stop: StopRequest,
) -> Outcome:
    """Search a rival's rate, weight decay and epochs with a given number of image passes.

    The settings of its own row come first, then TPE proposes. An evaluation is judged by the runs
    and the race of a BioTune trial. As much of the budget as training the best few again and the
    final training are expected to take is kept for them. The study goes on where it stopped.

    Args:
        setup: Data, model and trainer of the repeat.
        method: A name in `biotune_optuna.methods.methods`.
        plan: How much is confirmed.
        budget: Image passes, forward and backward, for everything.
        storage: Where the study is kept.
        name: Its name.
        stop: Asks to stop.
    """
    return _Budget(setup, get_method(method), plan, budget, stop).run(storage, name)


@dataclass
class _Budget:
    setup: Setup
    method: Method
    plan: Comparison
    budget: int
    stop: StopRequest

    def run(self, storage: optuna.storages.BaseStorage, name: str) -> Outcome:
        study = self._study(storage, name)
        if not self._is_spent(study):
            run_trials(study, self._evaluate, callbacks=[self._stop_when_spent], stop=self.stop)
        self.stop.check()
        trials = _finished(study)
        best_few = self._ranked(trials)[: self.plan.top_k]
        settings = {f"trial {trial.number}": dict(trial.params) for trial in best_few}
        if not settings:
            raise StudyError(f"no setting of {self.method.name} could be evaluated")
        method = self.method.name
        rivals = [Entrant(name=n, method=method, setting=one) for n, one in settings.items()]
        contest = Contest(self.setup, rivals, n_runs=self.plan.runs, checkpoint=self.stop.check)
        confirmed = contest.run()
        best = max(confirmed, key=lambda one: one.mean)
        k = self.plan.members
        final = contest.finish(best.name, best.final_epochs, members=k, must_hold=False)
        probs = contest.predict(final)
        single = contest.test(best.name, probs[0])
        together = contest.test(best.name, mean_probabilities(probs)) if len(probs) > 1 else None
        return Outcome(
            validation=best.mean,
            trainable=final.training.trainable_pct,
            evaluations=len(trials),
            setting=", ".join(f"{name} {value:.3g}" for name, value in settings[best.name].items()),
            **tested(k, single, together),
            **charge(trials, [*confirmed, final.training]),
        )

    # -- the search ------------------------------------------------------------------------------

    def _study(self, storage: optuna.storages.BaseStorage, name: str) -> optuna.Study:
        study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )
        study.sampler = searcher("tpe", seed=fresh_seed(self.setup.spec.seed, storage, name))
        settings = self.method.settings()
        middle = (len(settings) - 1) / 2  # a small budget should not end at one side
        for i in sorted(range(len(settings)), key=lambda i: abs(i - middle)):
            usual = {
                "weight_decay": self.setup.space.base_weight_decay or DECAYS[0],
                "epochs": self.setup.spec.train.epochs,
            }
            study.enqueue_trial(usual | settings[i], skip_if_exists=True)
        return study

    def _suggest(self, trial: optuna.Trial) -> dict[str, float]:
        usual = self.setup.spec.train.epochs
        setting: dict[str, float] = {
            "lr": trial.suggest_float("lr", *RATES, log=True),
            "weight_decay": trial.suggest_float("weight_decay", *DECAYS, log=True),
            "epochs": trial.suggest_int("epochs", math.ceil(usual / 2), 2 * usual),
        }
        own = self.method.ranges.items()
        return setting | {name: trial.suggest_float(name, *bounds) for name, bounds in own}

    def _runs(self, number: int) -> tuple[SearchRun, ...]:
        """Return the runs of a trial, on seeds of its own where those of a search have them."""
        runs = self.setup.spec.search_runs(index=number)
        if self.setup.spec.preset != "paper":
            return runs
        # Folds by generation mean nothing here: all train on the whole training part.
        return tuple(dataclasses.replace(run, fold=None) for run in runs)

    def _evaluate(self, trial: optuna.Trial) -> float:
        """Return the mean validation score over the runs, as a BioTune trial's."""
        setting, runs = self._suggest(trial), self._runs(trial.number)
        own = {name: value for name, value in setting.items() if name != "epochs"}
        trainer = self.setup.trainer.with_settings(epochs=int(setting["epochs"]))

        def train(run: SearchRun) -> RunResult:
            images = self.setup.splits.run(run.fold)
            return self.method.run(
                trainer, *images, setting=own, seed=run.seed, on_epoch=self._on_epoch
            )

        return judge(trial, self.setup, runs, train)

    def _on_epoch(self, _record: EpochRecord) -> None:
        self.stop.check()

    # -- the budget ------------------------------------------------------------------------------

    def _is_spent(self, study: optuna.Study) -> bool:
        """Whether another evaluation would eat into what confirmation and the end will take."""
        trials = _finished(study)
        if not trials:
            return False
        spent = [TrialRecord(t).passes for t in trials]
        return bool(sum(spent) + sum(spent) / len(spent) + self._kept(trials) > self.budget)

    def _kept(self, trials: list[FrozenTrial]) -> float:
        """Return the passes that the end will take, if the best few stay the best few."""
        per_run = [
            TrialRecord(t).passes / len(TrialRecord(t).runs)
            for t in self._ranked(trials)[: self.plan.top_k]
        ] or [0.0]
        missing = self.plan.top_k - len(per_run)
        n_train, n_val = (len(part) for part in self.setup.splits.run(None))
        fold = self._runs(0)[0].fold
        n_fold, n_fold_val = (len(part) for part in self.setup.splits.run(fold))
        larger = (2 * n_train + n_val) / (2 * n_fold + n_fold_val)
        per_run = [larger * one for one in (*per_run, *[max(per_run)] * missing)]
        final = self.plan.members * max(per_run) * 2 * (n_train + n_val) / (2 * n_train + n_val)
        return float(self.plan.runs * sum(per_run) + final)

    def _stop_when_spent(self, study: optuna.Study, _trial: FrozenTrial) -> None:
        if self._is_spent(study):
            study.stop()

    @staticmethod
    def _ranked(trials: list[FrozenTrial]) -> list[FrozenTrial]:
        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        return sorted(complete, key=lambda t: (-float(t.value or 0.0), t.number))


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return [t for t in study.get_trials(deepcopy=False, states=states) if TrialRecord(t).runs]
