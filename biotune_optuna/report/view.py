"""One reading of a study, for everything that shows it.

Whatever is absent (no specification, no recipe, no confirmation) reads as absent, never as an
error: a study that plain Optuna made with somebody's own objective is as welcome as one of ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.confirmation.record import Confirmation, trainings
from biotune_optuna.data.left_out import sentence
from biotune_optuna.errors import StudyError
from biotune_optuna.recipe import describe
from biotune_optuna.schema import (
    LEFT_OUT_KEY,
    LOOKS_KEY,
    METRIC_KEY,
    MODEL_KEY,
    RACE_KEY,
    SPEC_KEY,
    Cost,
    TrialRecord,
    as_mapping,
)
from biotune_optuna.storage.urls import StorageURL
from biotune_optuna.study.choice import Choice
from biotune_optuna.study.probe import FirstAnswer
from biotune_optuna.study.race import Race
from biotune_optuna.study.rates import RateCheck
from biotune_optuna.study.totals import count_trials

if TYPE_CHECKING:
    from optuna import Study

    from biotune_optuna.confirmation.record import Contender
    from biotune_optuna.finetune.statistics import PairedTest
    from biotune_optuna.genome import GenomeSpace


ACCURACIES = frozenset({"accuracy", "macro_accuracy"})
_METRIC_WORDS = {
    "accuracy": "accuracy",
    "macro_accuracy": "macro accuracy",
    "macro_f1": "macro F1",
    "kappa": "Cohen's kappa",
    "average_precision": "average precision",
    "roc_auc": "ROC AUC",
}


class NothingToShow(StudyError):  # noqa: N818 - it is no fault: the study is young or has no such data
    """A figure has no data yet; the message is the sentence to print in its place."""


class DoesNotApply(NothingToShow):
    """A figure is about what this study does not have; a report leaves it out without a word."""


@dataclass(frozen=True)
class StudyView:
    """What a study holds at one moment, read once.

    Args:
        study: Any single-objective Optuna study.
        trials: Its trials in the order of their numbers.
        direction: Whether larger or smaller values are better.
        user_attrs: The study's user attributes.
    """

    study: Study
    trials: tuple[FrozenTrial, ...]
    direction: StudyDirection
    user_attrs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.study.study_name)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The stored specification, or an empty dict."""
        return dict(as_mapping(as_mapping(self.user_attrs.get(SPEC_KEY)).get("spec")))

    @cached_property
    def confirmation(self) -> Confirmation:
        """The stored confirmation; an empty one, which is false, before it."""
        return Confirmation.of(self.user_attrs)

    @property
    def left_out(self) -> str:
        """Which files of the data are not used, in a sentence; "" where all are."""
        return sentence(as_mapping(self.user_attrs.get(LEFT_OUT_KEY)))

    @property
    def unconfirmed(self) -> str | None:
        """The sentence to begin with where trials were completed after the confirmation."""
        return self.confirmation.unconfirmed(self.trials, self.user_attrs)

    @property
    def test_looks(self) -> list[Mapping[str, Any]]:
        """Every recorded look at the test data, oldest first."""
        stored = self.user_attrs.get(LOOKS_KEY)
        return [look for look in stored if isinstance(look, Mapping)] if stored else []

    # ---- the value -------------------------------------------------------------------------

    @cached_property
    def metric(self) -> str:
        """Name of what the study optimises."""
        stored = (*_find(self.spec, "metric"), self.user_attrs.get(METRIC_KEY))
        for said in (self.confirmation.metric, *stored):
            if said and isinstance(said, str):
                return said
        names = self.study.metric_names
        return names[0] if names else "value"

    @property
    def metric_words(self) -> str:
        """The metric as it is said in a sentence."""
        return _METRIC_WORDS.get(self.metric, self.metric.replace("_", " "))

    @property
    def is_accuracy(self) -> bool:
        """Whether values are shares of right answers and read best in percent."""
        return self.metric in ACCURACIES

    @property
    def axis_format(self) -> str:
        """D3 format of an axis of values."""
        return ".3~%" if self.is_accuracy else ".4~g"

    def say(self, value: float | None) -> str:
        """Return a value for the reader: ``93.1 %`` for accuracies, ``0.931`` for anything else."""
        if value is None or not math.isfinite(value):
            return "–"
        return f"{100 * value:.1f}\u00a0%" if self.is_accuracy else f"{value:.4g}"

    def say_difference(self, value: float, *, sign: bool = True) -> str:
        """Return a difference of two values: points for accuracies, plain numbers otherwise."""
        form = "+" if sign else ""
        scaled, digits, unit = (
            (100 * value, 1, "\u00a0points") if self.is_accuracy else (value, 4, "")
        )
        rounded = round(scaled, digits) + 0.0  # no minus before a zero
        text = f"{rounded:{form if rounded else ''}.{digits}f}{unit}"
        return text.replace("-", "−")

    def say_interval(self, low: float, high: float, *, difference: bool = False) -> str:
        """Return an interval: ``91.0 to 94.9 %``, or of differences ``−0.4 to +2.2 points``."""
        say = self.say_difference if difference else self.say
        return f"{say(low).partition(chr(0xA0))[0]} to {say(high)}"

    def better(self, one: float, other: float) -> bool:
        """Whether ``one`` is strictly better than ``other``."""
        return one > other if self.direction == StudyDirection.MAXIMIZE else one < other

    def sort_key(self, trial: FrozenTrial) -> tuple[float, int]:
        """Best first; among equals the older trial."""
        value = float(trial.value) if trial.value is not None else math.nan
        return (-value if self.direction == StudyDirection.MAXIMIZE else value, trial.number)

    # ---- trials ----------------------------------------------------------------------------

    def in_state(self, state: TrialState) -> tuple[FrozenTrial, ...]:
        """Trials in one state, in the order of their numbers."""
        return tuple(t for t in self.trials if t.state == state)

    @cached_property
    def complete(self) -> tuple[FrozenTrial, ...]:
        """Complete trials with a finite value, in the order of their numbers."""
        return tuple(t for t in self.in_state(TrialState.COMPLETE) if finite(t.value))

    @property
    def none_complete(self) -> str:
        """The beginning of a sentence for a study without a `complete` trial."""
        ended = self.in_state(TrialState.COMPLETE)
        return "No trial has a finite value yet" if ended else "No trial is complete yet"

    @property
    def evaluated(self) -> int:
        """Trials that count towards a study's total: complete, stopped early, slots given up."""
        return count_trials(self.trials).finished

    @cached_property
    def ranked(self) -> tuple[FrozenTrial, ...]:
        """Complete trials, best first."""
        return tuple(sorted(self.complete, key=self.sort_key))

    @property
    def best(self) -> FrozenTrial | None:
        """The best complete trial, or None."""
        return self.ranked[0] if self.ranked else None

    @cached_property
    def by_number(self) -> dict[int, FrozenTrial]:
        """Trials by number."""
        return {t.number: t for t in self.trials}

    @cached_property
    def recipes(self) -> dict[int, dict[str, float]]:
        """Per trial number the learning-rate multiplier of each block; 0 is frozen.

        Trials of somebody's own objective carry no recipe: theirs is decoded from the genome, when
        the sampler stored its space in the study.
        """
        found = {}
        space = self.space
        for trial in self.trials:
            multipliers = dict(TrialRecord(trial).recipe.multipliers)
            if not multipliers and space is not None and set(space.names) <= trial.params.keys():
                multipliers = space.genome(trial.params).decode().multipliers
            if multipliers:
                found[trial.number] = multipliers
        return found

    def recipe_words(self, trial: FrozenTrial) -> str | None:
        """Return a trial's recipe in words, None where it has none."""
        multipliers = self.recipes.get(trial.number)
        recipe, drawn = TrialRecord(trial).recipe, trial.params.get("lr")
        rate = recipe.lr
        if rate is None and isinstance(drawn, float):
            rate = drawn
        if not multipliers:
            return None
        return describe(multipliers, rate, modes=recipe.modes, training=recipe.training)

    @cached_property
    def space(self) -> GenomeSpace | None:
        """The genome space that the sampler stored in the study, None where it stored none."""
        from biotune_optuna.genome import GenomeSpace
        from biotune_optuna.sampler.claims import study_config

        stored = (study_config(self.study) or {}).get("space")
        return GenomeSpace.from_dict(stored) if isinstance(stored, Mapping) else None

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """Block names from the input to the head; empty when no trial carries a recipe."""
        longest: dict[str, float] = max(self.recipes.values(), key=len, default={})
        return tuple(longest)

    @property
    def winner(self) -> Contender | None:
        """The confirmed winner, None before a confirmation."""
        return self.confirmation.contender(self.confirmation.chosen)

    @property
    def paired(self) -> dict[str, PairedTest]:
        """Differences on the test, the winner's score minus another's, by the other's name."""
        pairs = self.confirmation.paired.items()
        return {name: pair for name, pair in pairs if all(map(finite, pair[:3]))}

    @property
    def model_dir(self) -> str | None:
        """Folder of the exported winner, when it was exported."""
        path = as_mapping(self.user_attrs.get(MODEL_KEY)).get("path")
        return str(path) if path else None

    @property
    def storage_url(self) -> str | None:
        """URL of the study's storage where that is a file; servers are named in no report."""
        url = getattr(self.study._storage, "url", None)
        return url.shown if isinstance(url, StorageURL) and url.path is not None else None

    @property
    def chosen_trial(self) -> FrozenTrial | None:
        """The trial the study stands for: BioTune's best confirmed one, else the best so far."""
        winner = self.winner
        if winner and winner.trial in self.by_number:
            return self.by_number[winner.trial]
        means = {c.trial: c.mean for c in self.confirmation.contenders if c.trial in self.by_number}
        known = {number: mean for number, mean in means.items() if math.isfinite(mean)}
        if not known:
            return self.best
        best = max if self.direction == StudyDirection.MAXIMIZE else min
        return self.by_number[best(known, key=known.__getitem__)]

    # ---- training --------------------------------------------------------------------------

    @property
    def passes(self) -> tuple[int, int]:
        """Image passes forward and backward of search, confirmations and test, all trainings."""
        spent: list[TrialRecord | Cost] = [
            *(self.model_choice.cost, self.race.cost, self.rate_check, self.first_answer),
            *self._confirming,
        ]
        spent += map(TrialRecord, self.trials)
        return sum(one.forward for one in spent), sum(one.backward for one in spent)

    @property
    def rate_check(self) -> RateCheck:
        """What showed between which bounds base rates are searched; empty if that was given."""
        stored = as_mapping(self.user_attrs.get(SPEC_KEY))
        return RateCheck.from_dict(as_mapping(stored.get("rates")))

    @property
    def model_choice(self) -> Choice:
        """How the network was chosen; empty where the user named it."""
        return Choice.of(as_mapping(self.user_attrs.get(SPEC_KEY)).get("choice"))

    @property
    def race(self) -> Race:
        """The networks that were searched side by side with this one; empty without others."""
        return Race.of(self.user_attrs.get(RACE_KEY))

    @property
    def first_answer(self) -> FirstAnswer:
        """What a linear probe reached before the search; empty where there was none."""
        return FirstAnswer.of(self.user_attrs)

    @property
    def confirm_seconds(self) -> float:
        """Seconds that confirmations took, also for recipes that a later one left out."""
        return max(self.confirmation.seconds, Cost.sum(self._confirming).seconds)

    @property
    def _confirming(self) -> list[Cost]:
        """What was trained to confirm, and finally."""
        known: Iterable[Cost] = trainings(self.user_attrs).values() or self.confirmation.contenders
        return [*known, *self.confirmation.final_training.values()]

    @property
    def max_epochs(self) -> int | None:
        """Epochs a run may last, when the specification says so."""
        from biotune_optuna.genome import TRAINING_GENES

        epochs = next(_find(self.spec, "epochs"), None)
        if not isinstance(epochs, int) or epochs <= 0:
            return None
        is_gene = "length" in (self.spec.get("genes") or ())
        return round(epochs * max(TRAINING_GENES["length"])) if is_gene else epochs

    def curves(self, trial: FrozenTrial) -> list[list[tuple[int, float]]]:
        """Learning curves of a trial: per run the (epoch, validation score) pairs, epochs from 1.

        A step is run index × epochs per run + epoch, the epoch counted from 1 or from 0 (then a
        step 0 exists). Without the number of epochs the reported steps make one curve.
        """
        steps = [(s, v) for s, v in sorted(trial.intermediate_values.items()) if finite(v)]
        per_run = self.max_epochs
        if per_run is None:
            return [[(s, float(v)) for s, v in steps]] if steps else []
        runs: dict[int, list[tuple[int, float]]] = {}
        first = 0 if 0 in trial.intermediate_values else 1
        for step, value in steps:
            run, epoch = divmod(step - first, per_run)
            runs.setdefault(run, []).append((epoch + 1, float(value)))
        return list(runs.values())


def as_view(study: Study | StudyView) -> StudyView:
    """Read a study once; a reading passes through.

    Args:
        study: A study of one objective, or an earlier reading.

    Raises:
        NothingToShow: The study has several objectives.
    """
    if isinstance(study, StudyView):
        return study
    if len(study.directions) != 1:
        raise NothingToShow(
            f"study {study.study_name!r} has {len(study.directions)} objectives;"
            " these figures read studies of one objective"
        )
    trials = tuple(study.get_trials(deepcopy=False))
    return StudyView(study, trials, study.direction, study.user_attrs)


def seconds(trial: FrozenTrial) -> float | None:
    """Seconds of training, or the wall-clock time of a finished trial that did not say."""
    said = TrialRecord(trial).seconds
    if said is not None:
        return said
    return trial.duration.total_seconds() if trial.duration is not None else None


def _find(tree: Mapping[str, Any], key: str) -> Iterator[Any]:
    if key in tree:
        yield tree[key]
    for value in tree.values():
        if isinstance(value, Mapping):
            yield from _find(value, key)


def finite(value: object) -> bool:
    """Whether a value is a number, and neither infinite nor NaN."""
    return isinstance(value, (int, float)) and math.isfinite(value)
