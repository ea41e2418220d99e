"""How contenders are judged: tuned, repeated on fresh seeds, trained finally and tested, once.

This is the only place that does so; a confirmation, a baseline, a rival at equal budget and the
classifier all enter theirs here. Every training on validation images is a `Unit`, a small value.
Which units are wanted follows from the records of those that were trained (`Contest.wanted`), so
an interrupted contest goes on and several processes share one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.confirmation.calibrate import pack
from biotune_optuna.confirmation.plan import further_rate
from biotune_optuna.confirmation.record import Contender, Ledger, TestResult, Training
from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.calibration import cross_entropy
from biotune_optuna.finetune.metrics import report, worst
from biotune_optuna.finetune.statistics import bootstrap_interval
from biotune_optuna.methods.registry import contender_words, get_method
from biotune_optuna.schema import Cost, RecipeSummary, TrialRecord
from biotune_optuna.study.kept import digest_of
from biotune_optuna.study.objective import recipe_summary

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from torch import Tensor

    from biotune_optuna.confirmation.known import ModelledRates
    from biotune_optuna.confirmation.plan import ConfirmPlan
    from biotune_optuna.finetune.results import EpochRecord, RunResult
    from biotune_optuna.methods.base import Setting
    from biotune_optuna.recipe import Recipe
    from biotune_optuna.study.objective import Observer
    from biotune_optuna.study.setup import Setup


_log = logging.getLogger("biotune_optuna.study")

_TRIES = 3  # seeds of a final training
_STAGES = {"tune": "rates", "repeat": "confirmation", "finish": "final training"}

Kind = Literal["search", "tune", "repeat", "finish"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """One that takes part in a contest.

    Attributes:
        name: Its name in the contest.
        method: Name of a method of `biotune_optuna.methods`, or ``"biotune"``.
        recipe: The recipe of ``"biotune"``; None for a method.
        setting: What a method is trained with, where there is nothing to choose.
        grid: Settings to choose from by one run each on the search's first seed; empty for none.
        more_rates: How many further base rates are tried at most, see
            `biotune_optuna.confirmation.plan.further_rate`.
        rates: Chooses the base rate instead, by what a search knows; None where a grid does.
        counted: A run that the search made on a fresh seed, and its seed: it takes the place of the
            last repeat, if there are others and that one has not been trained.
        trial: Number of the trial whose recipe it is.
        search_value: That trial's value.
        search_stderr: Its standard error, where it is a mean.
    """

    name: str
    method: str
    recipe: Recipe | None = None
    setting: Setting = field(default_factory=dict)
    grid: tuple[Setting, ...] = ()
    more_rates: int = 0
    rates: ModelledRates | None = None
    counted: tuple[int, Training] | None = None
    trial: int | None = None
    search_value: float = math.nan
    search_stderr: float | None = None

    @classmethod
    def of_trial(cls, trial: FrozenTrial, recipe: Recipe) -> Entrant:
        """Return a finished trial's recipe as an entrant."""
        return cls(
            name=f"trial {trial.number}",
            method="biotune",
            recipe=recipe,
            trial=trial.number,
            search_value=float(trial.value if trial.value is not None else math.nan),
            search_stderr=TrialRecord(trial).stderr,
        )

    @classmethod
    def of_rival(cls, name: str, plan: ConfirmPlan, rates: ModelledRates | None = None) -> Entrant:
        """Return a rival as an entrant, tuned by its rate as a plan says, or a model of rates."""
        if not get_method(name).is_tuned:
            return cls(name=name, method=name)
        if rates is not None:
            return cls(name=name, method=name, rates=rates)
        grid = tuple({"lr": rate} for rate in plan.rates)
        return cls(name=name, method=name, grid=grid, more_rates=plan.more_rates)


@dataclass(frozen=True, slots=True)
class Unit:
    """One training: all that a worker has to know of it.

    Attributes:
        contender: Name of the entrant.
        kind: ``"tune"`` on the search's first seed, ``"repeat"`` on a fresh one, both judged on the
            validation images; ``"finish"``, on training and validation images together; or
            ``"search"``, a run of the search that counts as a repeat and is never trained here.
        setting: What a method is trained with.
        seed: Seed of the run.
        epochs: Epochs to train; None trains as the trainer is set, with its early stop.
    """

    contender: str
    kind: Kind
    setting: Setting
    seed: int
    epochs: int | None = None

    @property
    def what(self) -> str:
        """What is trained, by the names that the study keeps."""
        if self.kind != "tune":
            return self.contender
        alone = set(self.setting) == {"lr"}
        return f"{self.contender} at " + (
            f"{self.setting['lr']:g}" if alone else setting_words(self.setting)
        )

    @property
    def words(self) -> str:
        """The same, with a rival called as readers call it."""
        return contender_words(self.contender) + self.what.removeprefix(self.contender)

    @property
    def name(self) -> str:
        """What the ledger keeps its record under."""
        return f"{self.what} | seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an entrant has come.

    Attributes:
        entrant: The entrant.
        tunings: A unit for each of its settings, with its record if it was trained.
        repeats: A unit for each fresh seed, with its record; none while the setting is not known.
        expected: The value expected at each base rate, by what a search and the tunings say; None
            where no model chooses.
    """

    entrant: Entrant
    tunings: list[tuple[Unit, Training | None]]
    repeats: list[tuple[Unit, Training | None]]
    expected: Mapping[float, float] | None = None

    @property
    def trained(self) -> list[Training]:
        """What was trained for it; what the search has trained is not among it."""
        every = self.tunings + self.repeats
        return [one for unit, one in every if one is not None and unit.kind != "search"]

    @property
    def graded(self) -> list[tuple[Setting, float]]:
        """The settings that were tried, and their scores, by rate."""
        found = [(unit.setting, one.score) for unit, one in self.tunings if one]
        return sorted(found, key=lambda pair: pair[0]["lr"])

    @property
    def setting(self) -> Setting:
        """The best setting so far; among equals that with the lowest rate."""
        if self.entrant.rates is not None and self.graded:
            scores = {setting["lr"]: score for setting, score in self.graded}
            return {"lr": self.entrant.rates.best(scores)}
        best = max(self.graded, key=lambda pair: pair[1], default=None)
        return self.entrant.setting if best is None else best[0]

    def contender(self, recipe: Recipe | None) -> Contender:
        """Return the record of an entrant that has been repeated.

        Args:
            recipe: The recipe by which it trains, where there is one.
        """
        entrant, graded = self.entrant, self.graded
        trained = [one for _, one in self.repeats if one]
        expected = tuple({"lr": r, "value": v} for r, v in (self.expected or {}).items())
        cost = Cost.sum(trained)
        return Contender(
            name=entrant.name,
            method=entrant.method,
            recipe=RecipeSummary() if recipe is None else recipe_summary(recipe),
            trial=entrant.trial,
            search_value=max((score for _, score in graded), default=entrant.search_value),
            search_stderr=entrant.search_stderr,
            grid=tuple({**setting, "value": score} for setting, score in graded) or None,
            expected=expected or None,
            reused=sum(unit.kind == "search" for unit, _ in self.repeats),
            scores=tuple(one.score for one in trained),
            best_epochs=tuple(one.best_epoch for one in trained),
            trainable_pct=trained[-1].trainable_pct if trained else 0.0,
            **cost.to_dict(),
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that is to be trained finally.

    Attributes:
        name: Name of the entrant.
        epochs: Epochs to train.
        members: Trainings that are wanted, each on a seed of its own.
        must_hold: Whether a model is to come of it. If not, as for a rival that is only tested, a
            training that diverges on three seeds stands as it is.
    """

    name: str
    epochs: int
    members: int = 1
    must_hold: bool = True


@dataclass(frozen=True, kw_only=True)
class FinalRecord(Training):
    """One final training.

    Attributes:
        diverged: Whether it did.
        weights: Digest of what it has made of the model; see `biotune_optuna.study.kept`.
        fitted: Whether the head was fitted, so that another seed would make no other model.
    """

    diverged: bool = False
    weights: str = ""
    fitted: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Final:
    """The final trainings of an entrant: one, or several members of one model.

    Attributes:
        training: The last of them, with the cost of all, those that diverged too.
        members: What each has made of the model, see `Trainer.changed`.
        seeds: The seed of each.
    """

    training: Training
    members: tuple[Mapping[str, Tensor], ...]
    seeds: tuple[int, ...]


class Contest:
    """Entrants on one set of images and one network.

        contest = Contest(setup, entrants, n_runs=3)
        best = max(contest.run(), key=lambda contender: contender.mean)
        final = contest.finish(best.name, best.final_epochs)
        print(contest.test(best.name, *contest.predict(final)).score)

    Args:
        setup: Data, model and trainer.
        entrants: Who takes part; names all different.
        n_runs: Fresh seeds for each.
        ledger: Where trainings are kept; None keeps them in memory.
        n_final: How many final trainings will follow, for the observer.
        views: In which views fresh trainings predict the validation images besides.
        observer: Told of the progress.
        checkpoint: Called after each epoch; raises to stop.
    """

    def __init__(
        self,
        setup: Setup,
        entrants: Sequence[Entrant],
        *,
        n_runs: int = 0,
        ledger: Ledger | None = None,
        n_final: int = 1,
        views: Sequence[str] = (),
        observer: Observer | None = None,
        checkpoint: Callable[[], None] | None = None,
    ) -> None:
        self.setup = setup
        self.entrants = {entrant.name: entrant for entrant in entrants}
        self.n_runs, self.n_final, self.views = n_runs, n_final, tuple(views)
        self.ledger = ledger or Ledger()
        self.observer, self.checkpoint = observer, checkpoint
        self._seconds = 0.0  # of trainings on validation images that were made here
        self.n_finished = 0  # final trainings that held, here or elsewhere

    # -- on validation images --------------------------------------------------------------------

    def standings(self) -> list[Standing]:
        """Return how far each entrant has come, by what the ledger holds now."""
        known = self.ledger.read()
        return [self._standing(entrant, known) for entrant in self.entrants.values()]

    def wanted(self) -> list[Unit]:
        """Return the units that can be trained now, in order.

        Settings come first; an entrant is repeated once its setting is known. None are left when
        every entrant has been repeated.
        """
        standings = self.standings()
        tunings = [pair for standing in standings for pair in standing.tunings]
        repeats = [pair for standing in standings for pair in standing.repeats]
        return [unit for unit, training in tunings + repeats if training is None]

    def train(self, unit: Unit, *, keep: bool = True) -> Training:
        """Carry out a unit; write it down, unless it is only guessed that it will be wanted."""
        result = self._fit(unit)
        training = Training.of(self.key(unit), result)
        if unit.kind == "repeat" and result.probabilities is not None:
            packed = pack(result.probabilities)
            training = replace(training, probabilities=packed, views=self.views)
        self._seconds += training.seconds
        if keep:
            self.ledger.add(unit.name, training)
        return training

    def likely(self) -> list[Unit]:
        """Return repeats of entrants whose rate a model chooses, at the one that it now prefers."""
        found = []
        for standing in self.standings():
            pending = [unit for unit, training in standing.tunings if training is None]
            if standing.entrant.rates is not None and pending:
                name, setting = standing.entrant.name, pending[-1].setting
                runs = self.setup.spec.confirm_runs(self.n_runs)
                found += [Unit(name, "repeat", setting, run.seed) for run in runs]
        return found

    def run(self) -> list[Contender]:
        """Carry out all units that are wanted, here, and return what came of the entrants."""
        while units := self.wanted():  # read anew each time: another process may be at the same
            self.train(units[0])
        return self.contenders()

    def contenders(self, *, complete: bool = False) -> list[Contender]:
        """Return what came of the entrants.

        Args:
            complete: Only those that were repeated; else all of them must have been.
        """
        return [
            standing.contender(self._recipe(standing.entrant.name, standing.setting))
            for standing in self.standings()
            if not complete or (standing.repeats and all(one for _, one in standing.repeats))
        ]

    def key(self, unit: Unit) -> tuple[str, ...]:
        """Return what a unit's training depends on beside images and seed."""
        recipe = self._recipe(unit.contender, unit.setting)
        if recipe is not None and "epochs" not in unit.setting:
            return recipe.key()
        setting = (f"{name} {value:.6g}" for name, value in unit.setting.items())
        return (self.entrants[unit.contender].method, *setting)

    @property
    def seconds_before(self) -> float:
        """Wall time of those trainings that others have made, or earlier calls."""
        every = [training for one in self.standings() for training in one.trained]
        return Cost.sum(every).seconds - self._seconds

    def _standing(self, entrant: Entrant, known: Mapping[str, Training]) -> Standing:
        spec = self.setup.spec

        def look(kind: Kind, setting: Setting, seed: int) -> tuple[Unit, Training | None]:
            unit = Unit(entrant.name, kind, setting, seed)
            training = known.get(unit.name)
            same = training is not None and training.key == self.key(unit)
            return unit, training if same else None

        first = spec.search_runs()[0].seed
        tunings = [look("tune", setting, first) for setting in entrant.grid]
        if entrant.rates is not None:  # what was trained before is known, whoever asked for it
            every = [look("tune", {"lr": rate}, first) for rate in entrant.rates.rates]
            tunings = [pair for pair in every if pair[1]]
        while (rate := self._further(entrant, tunings)) is not None:
            tunings.append(look("tune", {"lr": rate}, first))
        standing = Standing(entrant, tunings, [])
        if all(training for _, training in tunings):
            scores = {setting["lr"]: score for setting, score in standing.graded}
            expected = entrant.rates.expected(scores) if entrant.rates else None
            runs = spec.confirm_runs(self.n_runs)
            repeats = [look("repeat", standing.setting, run.seed) for run in runs]
            if entrant.counted and len(runs) > 1 and repeats[-1][1] is None:
                seed, training = entrant.counted
                repeats[-1] = Unit(entrant.name, "search", entrant.setting, seed), training
            standing = replace(standing, repeats=repeats, expected=expected)
        return standing

    def _further(
        self, entrant: Entrant, tunings: Sequence[tuple[Unit, Training | None]]
    ) -> float | None:
        """Return the base rate to try after those that were, None when all is known or running."""
        scores = {unit.setting.get("lr", 0.0): one.score for unit, one in tunings if one}
        if len(scores) < len(tunings):
            return None
        if entrant.rates is not None:
            return entrant.rates.further(scores)
        if len(tunings) >= len(entrant.grid) + entrant.more_rates:
            return None
        return further_rate(scores, worst=worst(self.setup.spec.train.metric))

    # -- the end ---------------------------------------------------------------------------------

    def finish(self, name: str, epochs: int, *, members: int = 1, must_hold: bool = True) -> Final:
        """Train an entrant on training and validation images together, here.

        There is no early stop. Where a run diverges, the next seed takes its place. A head that is
        fitted, as a linear probe's, is trained by no steps that a seed would order: such a model
        has one member. The arguments are those of `Wanted`.

        Raises:
            StudyError: If no training holds before three have diverged, and one must.
        """
        return self.train_model(Wanted(name, epochs, members, must_hold))

    def train_model(self, model: Wanted) -> Final:
        """Carry out all trainings of a model, here; raises as `finish`."""
        known: dict[int, FinalRecord] = {}
        weights: dict[int, Mapping[str, Tensor]] = {}
        while units := self.missing(model, known):
            seed = units[0].seed
            known[seed], weights[seed] = self.train_finally(units[0], model.members)
            self.n_finished += not known[seed].diverged
        return self.final(model, known, weights.__getitem__)

    def final_seeds(self, model: Wanted) -> tuple[int, ...]:
        """Return the seeds that the trainings of a model may have, in turn."""
        return self.setup.spec.final_seeds(model.members + _TRIES - 1)

    def final_unit(self, model: Wanted, seed: int) -> Unit:
        """Return one training of a model."""
        setting = self._standing(self.entrants[model.name], self.ledger.read()).setting
        return Unit(model.name, "finish", setting, seed, model.epochs)

    def missing(self, model: Wanted, known: Mapping[int, FinalRecord]) -> list[Unit]:
        """Return the trainings that a model still needs, as far as is known; any may come first.

        Args:
            model: The model.
            known: What was trained, by seed.
        """
        lacking, _, _ = self._walk(model, known)
        return [self.final_unit(model, seed) for seed in lacking]

    def _walk(
        self, model: Wanted, known: Mapping[int, FinalRecord]
    ) -> tuple[list[int], list[FinalRecord], dict[int, str]]:
        """Go through the seeds of a model until it has its members, or cannot.

        Returns:
            Seeds that were not trained, the records of those that were, and the weights of the
            members by seed.
        """
        lacking: list[int] = []
        walked: list[FinalRecord] = []
        held: dict[int, str] = {}
        seeds = self.final_seeds(model)
        recipe = self._recipe(model.name, self.final_unit(model, seeds[0]).setting)
        may_fit = recipe is not None and recipe.fitted  # not every network's head can be
        for seed in seeds:
            record = known.get(seed)
            if record is None:
                lacking.append(seed)
            else:
                walked.append(record)
                if not record.diverged:
                    held[seed] = record.weights
                may_fit = record.fitted
            if may_fit and (record is None or not record.diverged):
                break
            if len(walked) - len(held) == _TRIES or len(held) + len(lacking) == model.members:
                break
        return lacking, walked, held

    def train_finally(
        self, unit: Unit, members: int = 1
    ) -> tuple[FinalRecord, Mapping[str, Tensor]]:
        """Carry out one final training; return its record and what it has made of the model.

        Args:
            unit: The training.
            members: How many the model is to have, for the observer.
        """
        which = f", member {self.n_finished % members + 1} of {members}" if members > 1 else ""
        result = self._fit(unit, which)
        changed = self.setup.trainer.changed()
        if result.diverged:
            _log.warning(
                "the final training (%s, epochs %d) diverged on seed %d",
                *(self._told(unit.contender, unit.setting), unit.epochs, unit.seed),
            )
        training = Training.of((), result).to_dict()
        record = {**training, "diverged": result.diverged, "weights": digest_of(changed)}
        record["fitted"] = result.fitted
        return FinalRecord.from_dict(record), changed

    def final(
        self,
        model: Wanted,
        known: Mapping[int, FinalRecord],
        weights: Callable[[int], Mapping[str, Tensor]],
    ) -> Final:
        """Return a model all of whose trainings were made.

        Args:
            model: The model.
            known: What was trained, by seed.
            weights: Returns what the training of a seed has made of the model.

        Raises:
            StudyError: If none holds, and one must.
        """
        _, walked, held = self._walk(model, known)
        if not held:
            last_seed = self.final_seeds(model)[len(walked) - 1]
            if model.must_hold:
                unit = self.final_unit(model, last_seed)
                raise StudyError(
                    f"the final training ({self._told(model.name, unit.setting)}, epochs "
                    f"{model.epochs}) diverged on {_TRIES} seeds; make another recipe win by more "
                    "trials, or begin a study with a lower lr or with grad_clip"
                )
            held[last_seed] = walked[-1].weights
        elif len(held) < model.members and len(walked) - len(held) == _TRIES:
            _log.warning("the model has %d of %d members", len(held), model.members)
        last = Training.from_dict(walked[-1].to_dict())
        training = replace(last, **Cost.sum(walked).to_dict())
        return Final(training, tuple(weights(seed) for seed in held), tuple(held))

    def _told(self, name: str, setting: Setting) -> str:
        recipe = self._recipe(name, setting)
        return f"{name} at {setting_words(setting)}" if recipe is None else recipe.describe()

    def predict(self, final: Final, views: Sequence[str] = ()) -> list[NDArray[np.float32]]:
        """Look at the test images with every member; the trainer keeps the first.

        Args:
            final: What `finish` returned.
            views: In which views they are shown besides.

        Returns:
            Probabilities of each member, (n_test, n_classes).
        """
        found = []
        for member in reversed(final.members):
            self.setup.trainer.put(member)
            found.append(self.setup.trainer.predict(self.setup.splits.test, views))
        return found[::-1]

    def test(self, name: str, probs: NDArray[np.floating]) -> TestResult:
        """Judge an entrant by its predictions for the test images.

        Args:
            name: Name of the entrant.
            probs: Its probabilities, (n_test, n_classes).
        """
        setup = self.setup
        labels = setup.source.labels[setup.splits.test]
        interval = bootstrap_interval(setup.spec.train.metric, labels, probs)
        metrics = report(labels, probs, setup.classes)
        metrics["cross_entropy"] = cross_entropy(labels, probs)
        confusion = metrics.pop("confusion", None)
        return TestResult(
            name=name,
            method=self.entrants[name].method,
            score=interval.value,
            low=interval.low,
            high=interval.high,
            n=len(labels),
            metrics=metrics,
            confusion=None if confusion is None else tuple(map(tuple, confusion)),
        )

    # -- parts -----------------------------------------------------------------------------------

    def _method_setting(self, setting: Setting) -> dict[str, float]:
        own = {name: value for name, value in setting.items() if name != "epochs"}
        return {"weight_decay": self.setup.space.base_weight_decay, **own}

    def _recipe(self, name: str, setting: Setting) -> Recipe | None:
        """Return the recipe by which an entrant trains, None where its method is more than one."""
        entrant = self.entrants[name]
        if entrant.recipe is not None:
            return entrant.recipe
        method = get_method(entrant.method)
        own = self._method_setting(setting)
        return method.recipe(self.setup.blocks, own) if method.in_confirmation else None

    def _fit(self, unit: Unit, which: str = "") -> RunResult:
        self._tell(_STAGES[unit.kind], unit.words + which)
        entrant, trainer = self.entrants[unit.contender], self.setup.trainer
        splits = self.setup.splits
        whole = (np.concatenate([splits.train, splits.val]), None)
        images = whole if unit.kind == "finish" else splits.run(None)
        options: dict[str, Any] = {"seed": unit.seed, "epochs": unit.epochs}
        options["keep_weights"] = views = unit.kind == "repeat" and bool(self.views)
        if entrant.recipe is not None:
            result = trainer.fit(entrant.recipe, *images, on_epoch=self._on_epoch, **options)
            return self._tell_result(unit.words + which, self._viewed(result) if views else result)
        if "epochs" in unit.setting:
            trainer = trainer.with_settings(epochs=int(unit.setting["epochs"]))
        own, method = self._method_setting(unit.setting), get_method(entrant.method)
        result = method.run(trainer, *images, setting=own, on_epoch=self._on_epoch, **options)
        return self._tell_result(unit.words + which, self._viewed(result) if views else result)

    def _viewed(self, result: RunResult) -> RunResult:
        """Predict the validation images in all views, at the best epoch; charged."""
        if result.probabilities is not None:
            started, val = time.perf_counter(), self.setup.splits.val
            result.probabilities = self.setup.trainer.predict(val, self.views)
            result.images_forward += (1 + len(self.views)) * len(val)
            result.seconds += time.perf_counter() - started
        return result

    def _on_epoch(self, _record: EpochRecord) -> None:
        if self.checkpoint:
            self.checkpoint()

    def _tell_result(self, what: str, result: RunResult) -> RunResult:
        """Tell an observer who wants to know what came of a training; return the result."""
        if tell := getattr(self.observer, "trained", None):
            tell(what, result.score, result.seconds)
        return result

    def _tell(self, stage: str, what: str) -> None:
        """Tell the observer what begins, how many trainings are done, and of how many."""
        if not self.observer:
            return
        done, total = min(self.n_finished, max(0, self.n_final - 1)), self.n_final
        for standing in self.standings():
            reused = sum(unit.kind == "search" for unit, _ in standing.repeats)
            done += len(standing.trained)
            total += len(standing.tunings) + self.n_runs - reused
        self.observer.stage(stage, what, done, total)


def setting_words(setting: Setting) -> str:
    """Return a method's setting in words: ``"lr 0.003, decay 0.75"``."""
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())
