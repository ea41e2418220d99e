"""What a confirmation found, as it is stored in the study: frozen values, and each of them as JSON.

The whole result is one study attribute (`Confirmation`), and every training that led to it another
(`Training`). What is stored stays readable: whatever an older version left out reads as absent, and
what a newer one adds is passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from optuna.trial import TrialState

from biotune_optuna.confirmation.settled import Settled
from biotune_optuna.finetune.results import epochs_of_final_run, standard_error
from biotune_optuna.finetune.statistics import PairedTest
from biotune_optuna.recipe import Recipe, describe, mode_of
from biotune_optuna.schema import (
    CONFIRM_KEY,
    LEDGER_KEY,
    LEDGER_PREFIX,
    Cost,
    RecipeSummary,
    Stored,
    as_mapping,
)

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from biotune_optuna.finetune.results import RunResult
    from biotune_optuna.recipe import BlockLike


ONE_MEMBER: Final = (
    "A head that is fitted is not trained by steps, so this model has one member, and no members"
    " that could disagree."
)
"""What is said of a model that would have had several members, were its head not fitted."""

_MOST_STORED = 60_000  # bytes; an attribute of a study holds 64 KB on MySQL


@dataclass(frozen=True, kw_only=True)
class Training(Cost):
    """One training, its cost, and what came of it.

    Attributes:
        key: What it depends on beside images and seed: `Recipe.key`, where there is a recipe.
        score: Validation score of its best epoch; NaN without validation images.
        best_epoch: That epoch, counted from 1.
        trainable_pct: Share of the parameters that train, in percent.
        probabilities: What it predicted for validation images, see
            `biotune_optuna.confirmation.calibrate`; "" where that was not kept.
        views: In which views these were shown besides.
    """

    key: tuple[str, ...] = ()
    score: float = math.nan
    best_epoch: int = 0
    trainable_pct: float = 0.0
    probabilities: str = ""
    views: tuple[str, ...] = ()

    @classmethod
    def of(cls, key: tuple[str, ...], result: RunResult) -> Training:
        """Return the record of a run."""
        return cls(
            key=key,
            score=result.score,
            best_epoch=result.best_epoch,
            trainable_pct=round(100 * result.trainable_fraction, 4),
            forward=result.images_forward,
            backward=result.images_backward,
            seconds=round(result.seconds, 3),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data, without predictions where there are none."""
        data = super().to_dict()
        for name in ("probabilities", "views"):
            if not data[name]:
                del data[name]
        return data


@dataclass(frozen=True, kw_only=True)
class Contender(Cost):
    """A recipe of the search, or a rival at its best setting, and what fresh seeds made of it.

    The cost is that of the runs on the fresh seeds.

    Attributes:
        name: ``"trial 12"`` or the rival's name.
        method: ``"biotune"`` or the rival's name.
        recipe: The recipe; empty for a method that has none.
        trial: Trial number, None for a rival.
        search_value: Its value in the search (rivals: the best of the settings tried).
        search_stderr: Standard error of that value, where it is a mean.
        grid: Settings tried, each with its score under ``"value"`` (rivals only).
        expected: The value expected at each base rate, where a model of the search chose among
            them: ``"lr"`` and ``"value"`` (rivals only).
        scores: Validation scores on the fresh seeds.
        reused: How many of them the search had trained; they come last.
        best_epochs: Best epoch of each of those runs, counted from 1.
        trainable_pct: Share of the parameters that train, in percent.
    """

    name: str = ""
    method: str = ""
    recipe: RecipeSummary = RecipeSummary()  # noqa: RUF009 - it is frozen
    trial: int | None = None
    search_value: float = math.nan
    search_stderr: float | None = None
    grid: tuple[dict[str, float], ...] | None = None
    expected: tuple[dict[str, float], ...] | None = None
    scores: tuple[float, ...] = ()
    reused: int = 0
    best_epochs: tuple[int, ...] = ()
    trainable_pct: float = 0.0

    @property
    def is_rival(self) -> bool:
        """Whether it is a rival of BioTune."""
        return self.method != "biotune"

    @property
    def mean(self) -> float:
        """Mean confirmed score; NaN before the first run."""
        return float(np.mean(self.scores)) if self.scores else math.nan

    @property
    def stderr(self) -> float:
        """Standard error of the confirmed mean; 0 with one run."""
        return standard_error(self.scores)

    @property
    def backward_cost(self) -> float:
        """Image passes backward times the share of blocks that train."""
        rates = self.recipe.multipliers.values()
        return self.backward * sum(rate > 0 for rate in rates) / max(1, len(rates))

    @property
    def final_epochs(self) -> int:
        """Median best epoch, the length of the final training; at least 1."""
        return epochs_of_final_run(self.best_epochs or (1,))

    @property
    def describe(self) -> str:
        """The recipe in words."""
        recipe = self.recipe
        return describe(
            recipe.multipliers,
            recipe.lr,
            fitted=recipe.fitted,
            modes=recipe.modes,
            training=recipe.training,
        )

    def rebuild(self, blocks: Sequence[BlockLike]) -> Recipe:
        """Return the recipe over a model's blocks."""
        assert self.recipe.lr is not None
        recipe = Recipe.from_multipliers(
            blocks,
            [self.recipe.multipliers[block.name] for block in blocks],
            lr=self.recipe.lr,
            weight_decay=self.recipe.weight_decay or 0.0,
            modes=[mode_of(self.recipe.modes.get(block.name, "full")) for block in blocks],
            training=self.recipe.training,
        )
        return replace(recipe, fitted=self.recipe.fitted)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what was stored; what is absent has its default, what is unknown is left out."""
        recipe = RecipeSummary.of(data.get("recipe"))
        return super().from_dict({**data, "recipe": recipe})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data: the fields, the cost, and what follows from them."""
        data = super().to_dict() | {"recipe": self.recipe.to_dict()}
        data |= {name: data.pop(name) for name in ("forward", "backward", "seconds")}
        for name in ("expected", "reused"):
            if not data[name]:  # as earlier versions stored it
                del data[name]
        data |= {"describe": self.describe, "lr": self.recipe.lr}
        derived = ("mean", "stderr", "backward_cost", "final_epochs")
        return data | {name: getattr(self, name) for name in derived}


@dataclass(frozen=True, kw_only=True)
class TestResult(Stored):
    """One model on the test images.

    Attributes:
        name: Name of the contender.
        method: Its method.
        score: The metric.
        low: Lower end of its 95 % interval.
        high: Upper end.
        n: Number of test images.
        metrics: Further metrics; by class as a mapping.
        confusion: Counts, rows the true classes; None where it was not kept.
    """

    __test__ = False  # no test of pytest's

    name: str = ""
    method: str = ""
    score: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class CalibrationResult(Stored):
    """How far the final model's probabilities can be trusted.

    Each trust is cross-entropy, Brier score and expected calibration error.

    Attributes:
        temperature: What the probabilities are tempered by.
        n: Validation images that it was fitted on.
        before: Trust on the test images, as the networks say it; empty without test images.
        after: The same, tempered.
        bins_before: Number of test images, mean confidence and accuracy of each bin of confidence,
            see `biotune_optuna.finetune.calibration.reliability`.
        bins_after: The same, tempered.
    """

    temperature: float = 1.0
    n: int = 0
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    bins_before: tuple[tuple[float, ...], ...] = ()
    bins_after: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mistake(Stored):
    """A test image that the winner gets wrong.

    Attributes:
        id: The image's name.
        label: Its class.
        predicted: The class that the winner says.
        probability: How sure it is.
        wrong: How many of the tested models get it wrong.
        models: How many there are.
        thumbnail: Data URI of a small picture, "" where there is none.
    """

    id: str = "?"
    label: str = "?"
    predicted: str = "?"
    probability: float = math.nan
    wrong: int = 0
    models: int = 0
    thumbnail: str = ""


@dataclass(frozen=True, kw_only=True)
class Confirmation(Stored):
    """Which recipe really is best: what fresh seeds and one look at the test images say.

    One without a winner, as a study has before its confirmation, is false.

    Attributes:
        basis: What it stands on: the number of finished trials (``"trials"``) and the plan.
        metric: Metric of all scores.
        classes: Names of the classes.
        candidates: The search's best recipes.
        rivals: What they were compared with.
        chosen: Name of the winner.
        plateau: Names of all whose mean is within the tolerance of the best one's.
        why: Why the winner was chosen, in words.
        time: When, in ISO 8601.
        n_train: Training images.
        n_val: Validation images.
        n_test: Test images, 0 where none were held out.
        tests: Test results, the winner's last; none without test images.
        paired: The winner's test score minus another's, by the other's name.
        mistakes: Test images most often wrong.
        final_training: What each final training cost, by name; the winner's with all members.
        seconds: Wall time of everything.
        members: How many times the winner is trained finally, where so many trainings hold.
        ensemble: Test result of all members together, in all views; None where there is one member
            and one view. The winner's among `tests` is that of the first, trained and shown as the
            others were.
        gain: That score minus that of the first.
        calibration: How far the model's probabilities can be trusted; None where the predictions
            for validation images were not kept.
        from_search: Numbers of the trials whose models the model is made of, the chosen one first;
            empty where the winner was confirmed and trained finally.
        weights: How much each of these counts; empty where all members count alike.
        views: In which views each image is shown to the model besides.
    """

    basis: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""
    classes: tuple[str, ...] = ()
    candidates: tuple[Contender, ...] = ()
    rivals: tuple[Contender, ...] = ()
    chosen: str = ""
    plateau: tuple[str, ...] = ()
    why: str = ""
    time: str = ""
    n_train: int = 0
    n_val: int = 0
    n_test: int = 0
    tests: tuple[TestResult, ...] = ()
    paired: Mapping[str, PairedTest] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    final_training: Mapping[str, Cost] = field(default_factory=dict)
    seconds: float = 0.0
    members: int = 1
    ensemble: TestResult | None = None
    gain: PairedTest | None = None
    calibration: CalibrationResult | None = None
    from_search: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    views: tuple[str, ...] = ()

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """Candidates, then rivals."""
        return (*self.candidates, *self.rivals)

    @property
    def ranked(self) -> list[Contender]:
        """All of them by what decides, the mean on fresh seeds; those without one last."""
        return sorted(self.contenders, key=lambda one: -one.mean if one.scores else math.inf)

    @property
    def winner(self) -> Contender:
        """The contender that was chosen.

        Raises:
            KeyError: If the record holds no such contender.
        """
        return {one.name: one for one in self.contenders}[self.chosen]

    @property
    def winner_test(self) -> TestResult | None:
        """The winner's test result, None where it was not tested."""
        return self.test(self.chosen)

    @property
    def model_test(self) -> TestResult | None:
        """The test result of the model that is kept: of all its members, where it has several."""
        return self.ensemble or self.winner_test

    def __bool__(self) -> bool:
        return bool(self.chosen)

    def contender(self, name: str) -> Contender | None:
        """Return a candidate or rival by its name, None where there is none."""
        return next((one for one in self.contenders if one.name == name), None)

    def test(self, name: str) -> TestResult | None:
        """Return the test result of a contender, None where it was not tested."""
        return next((one for one in self.tests if one.name == name), None)

    def unconfirmed(
        self, trials: Sequence[FrozenTrial], user_attrs: Mapping[str, Any]
    ) -> str | None:
        """Return a sentence where the search went on after this, None where all is confirmed.

        Args:
            trials: The study's trials as they are now.
            user_attrs: Its user attributes.
        """
        confirmed = self.basis.get("trials")
        complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
        if confirmed is None or confirmed == complete:
            return None
        settled = Settled.of(user_attrs)
        if settled and len(settled.among(trials)) == confirmed and not settled.went_on(trials):
            return None
        return (
            f"Confirmed on {confirmed:,} of {complete:,} trials;"
            " run the same tune or demo command again to confirm the rest."
        )

    # -- keeping -------------------------------------------------------------------------------

    @classmethod
    def of(cls, user_attrs: Mapping[str, Any]) -> Confirmation:
        """Read a study's confirmation from its user attributes; an empty one where it has none."""
        return cls.from_dict(as_mapping(user_attrs.get(CONFIRM_KEY)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what was stored; what is absent has its default, what is unknown is left out."""
        pairs = {pair["against"]: _paired(pair) for pair in data.get("paired", ())}
        ensemble, gain, trust = (
            as_mapping(data.get(name)) for name in ("ensemble", "gain", "calibration")
        )
        costs = data.get("final_training", {}).items()
        read: dict[str, Any] = {
            "chosen": str(data.get("winner", "")),
            "candidates": [Contender.from_dict(one) for one in data.get("candidates", ())],
            "rivals": [Contender.from_dict(one) for one in data.get("rivals", ())],
            "tests": [TestResult.from_dict(one) for one in data.get("tests", ())],
            "paired": pairs,
            "mistakes": [Mistake.from_dict(one) for one in data.get("mistakes", ())],
            "final_training": {name: Cost.from_dict(cost) for name, cost in costs},
            "ensemble": TestResult.from_dict(ensemble) if ensemble else None,
            "calibration": CalibrationResult.from_dict(trust) if trust else None,
        }
        found = super().from_dict({**data, **read})
        return replace(found, gain=_paired(gain)) if gain else found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        stored = super().to_dict()
        data = {("winner" if name == "chosen" else name): stored[name] for name in stored}
        for name in ("candidates", "rivals"):
            data[name] = [one.to_dict() for one in getattr(self, name)]
        data["paired"] = [{"against": n, **one._asdict()} for n, one in self.paired.items()]
        data["gain"] = self.gain and self.gain._asdict()
        if not self.tests:
            del data["final_training"]
        for name in (
            "members",
            "ensemble",
            "gain",
            "calibration",
            "from_search",
            "weights",
            "views",
        ):
            if data[name] in (1, None, []):  # as earlier versions stored it
                del data[name]
        return data

    def store(self, study: optuna.Study) -> None:
        """Write it into the study, without those of its details that a row has no room for.

        First those by class of all tests but that of the model that is kept go, then the
        thumbnails, then those of that model.
        """
        data = self.to_dict()
        tests = sorted(data["tests"], key=lambda test: test["name"] == self.chosen)
        tests += [data["ensemble"]] if self.ensemble else []
        *others, winners = [test["metrics"] for test in tests] or [{}]
        for details in [*others, *data["mistakes"], winners]:
            if len(json.dumps(data)) <= _MOST_STORED:
                break
            for name in ("recall", "precision", "support", "thumbnail"):
                details.pop(name, None)
        study.set_user_attr(CONFIRM_KEY, data)


def _paired(pair: Mapping[str, Any]) -> PairedTest:
    return PairedTest(*(pair.get(name, math.nan) for name in PairedTest._fields))


# -- the ledger --------------------------------------------------------------------------------


def model_name(trial: int) -> str:
    """Return what the ledger keeps the predictions of a search's model under."""
    return f"trial {trial} | model of the search"


def trainings(user_attrs: Mapping[str, Any]) -> dict[str, Training]:
    """Return what has been trained to confirm a study, by name.

    Args:
        user_attrs: User attributes of the study.
    """
    found = dict(as_mapping(user_attrs.get(LEDGER_KEY))) | {
        key.removeprefix(LEDGER_PREFIX): value
        for key, value in user_attrs.items()
        if key.startswith(LEDGER_PREFIX)
    }
    return {n: Training.from_dict(one) for n, one in found.items() if isinstance(one, Mapping)}


@dataclass(frozen=True)
class Ledger:
    """Trainings by name: in a study, where other processes see them, or in memory.

    In a study each has an attribute of its own, so that no attribute outgrows a database's row.

    Args:
        study: The study; None keeps them in memory.
    """

    study: optuna.Study | None = None
    _own: dict[str, Training] = field(default_factory=dict, init=False)

    def read(self) -> Mapping[str, Training]:
        """Return what has been trained, by whomever."""
        return self._own if self.study is None else trainings(self.study.user_attrs)

    def add(self, name: str, training: Training) -> None:
        """Write a training down."""
        if self.study is None:
            self._own[name] = training
        else:
            self.study.set_user_attr(LEDGER_PREFIX + name, training.to_dict())
