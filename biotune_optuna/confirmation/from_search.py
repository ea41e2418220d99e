"""The model as an ensemble of what the search has trained: chosen on the validation images.

Nothing is confirmed on fresh seeds and nothing is trained again. The models that the search has
kept (`biotune_optuna.study.keeping`) are added to the ensemble one by one, whichever lowers the
cross-entropy on the validation images most; one may be added again. Caruana et al., "Ensemble
Selection from Libraries of Models" (ICML 2004).
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.confirmation.calibrate import pack
from biotune_optuna.confirmation.protocol import Entrant
from biotune_optuna.confirmation.record import Contender, Ledger, Training, model_name
from biotune_optuna.errors import StudyError
from biotune_optuna.models.states import all_tensors
from biotune_optuna.schema import TrialRecord
from biotune_optuna.study.keeping import SearchModel, best_kept
from biotune_optuna.study.kept import digest_of
from biotune_optuna.study.objective import recipe_summary

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from torch import Tensor

    from biotune_optuna.confirmation.record import Confirmation
    from biotune_optuna.finetune.results import EpochRecord
    from biotune_optuna.study.objective import Observer
    from biotune_optuna.study.study import TuningStudy


_log = logging.getLogger("biotune_optuna.study")


def greedy(
    probs: Sequence[NDArray[np.floating[Any]]], labels: NDArray[np.int64], count: int
) -> list[int]:
    """Return which predictions to take the mean of, in the order in which they are added.

    Args:
        probs: Predictions to choose from, (n, C) each.
        labels: True classes, (n,).
        count: How many are taken; one may be taken again.
    """
    rows = np.arange(len(labels))
    right = np.stack([one[rows, labels].astype(np.float64) for one in probs])
    total, picks = np.zeros(len(labels)), list[int]()
    for n in range(1, count + 1):
        losses = -np.log(np.maximum((total + right) / n, 1e-30)).mean(axis=1)
        picks.append(int(np.argmin(losses)))
        total += right[picks[-1]]
    return picks


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The models of an ensemble, in the order in which they were first added.

    Attributes:
        entrants: The trials that they are of, with their recipes.
        models: The models.
        weights: How often each was added.
        among: How many models there were to choose from.
    """

    entrants: tuple[Entrant, ...]
    models: tuple[SearchModel, ...]
    weights: tuple[int, ...]
    among: int

    @property
    def why(self) -> str:
        """Why these, in words."""
        return (
            f"of {self.among} models that the search kept, these were added one by one, whichever"
            " lowered the cross-entropy on the validation images most; nothing was trained on fresh"
            " seeds, and nothing on the validation images"
        )


def choose_models(
    study: TuningStudy, finished: Sequence[FrozenTrial], count: int, views: Sequence[str] = ()
) -> Chosen:
    """Choose an ensemble among the models that a search has kept.

    What each predicts for the validation images is written into the study, for its calibration.

    Args:
        study: The study.
        finished: Its finished trials.
        count: Models to add up, one more than once perhaps.
        views: In which views the model will be shown images besides. The choice does without.

    Raises:
        StudyError: If no model can be had here.
    """
    setup, models = study.setup, study.models
    named = best_kept(finished, models.most)
    probs = {trial.number: _predictions(study, trial) for trial in named}
    known = [trial for trial in named if probs[trial.number] is not None]
    if not known:
        lost = f"; none of the {len(named)} that it names lies in {models.folder}" if named else ""
        raise StudyError(
            f"study {study.name!r} has kept no models of its trials to choose from{lost}; search "
            "with keep_models (--keep-models N), or have the study confirmed"
        )
    if len(known) < len(named):
        _log.warning(
            "%d of %d kept models do not lie in %s; the others are chosen from",
            *(len(named) - len(known), len(named), models.folder),
        )
    labels = setup.source.labels[setup.splits.val]
    library = [one for trial in known if (one := probs[trial.number]) is not None]
    times = Counter(greedy(library, labels, count))  # in the order of the first time
    entrants, chosen = [], [_model(study, known[place]) for place in times]
    for place, model in zip(times, chosen, strict=True):
        trial, said = known[place], library[place]
        if views:
            setup.trainer.put(model.changed)
            said = setup.trainer.predict(setup.splits.val, views)
        entrant = Entrant.of_trial(trial, setup.space.genome(trial.params).decode())
        entrants.append(entrant)
        assert entrant.recipe is not None
        training = Training(
            key=entrant.recipe.key(),
            score=float(trial.value or 0.0),
            probabilities=pack(said),
            views=tuple(views),
        )
        Ledger(study.study).add(model_name(trial.number), training)
    return Chosen(
        tuple(entrants),
        tuple(chosen),
        tuple(times.values()),
        len(known),
    )


def contender_of(entrant: Entrant, trial: FrozenTrial) -> Contender:
    """Return a chosen model's trial as a contender that nobody has confirmed."""
    assert entrant.recipe is not None
    record = TrialRecord(trial)
    return Contender(
        name=entrant.name,
        method=entrant.method,
        recipe=recipe_summary(entrant.recipe),
        trial=entrant.trial,
        search_value=entrant.search_value,
        search_stderr=entrant.search_stderr,
        trainable_pct=record.trainable_pct or 0.0,
    )


def weights_of(
    study: TuningStudy,
    confirmed: Confirmation,
    *,
    observer: Observer | None = None,
    checkpoint: Callable[[], None] | None = None,
) -> tuple[Mapping[str, Tensor], ...]:
    """Return what the trainings of an ensemble have made of the model.

    A training whose file is gone is made again: same images, seed and epochs.

    Args:
        study: The study.
        confirmed: Its confirmation, whose model is of the search.
        observer: Told of what is trained again.
        checkpoint: Called after each epoch; raises to stop.
    """
    trials = study.study.get_trials(deepcopy=False)
    found = []
    for number in confirmed.from_search:
        model = study.models.get(trials[number])
        if model is None or not _fits(study, model):
            if observer:
                observer.stage("final training", f"trial {number}, whose file is gone", 0, 0)
            found.append(_again(study, trials[number], checkpoint))
        else:
            found.append(model.changed)
    return tuple(found)


def _predictions(study: TuningStudy, trial: FrozenTrial) -> NDArray[np.float32] | None:
    """Return what a trial's model predicts for the validation images; None without the model."""
    model = study.models.get(trial)
    return model.probabilities if model is not None and _fits(study, model) else None


def _model(study: TuningStudy, trial: FrozenTrial) -> SearchModel:
    model = study.models.get(trial)
    if model is None:
        raise StudyError(
            f"the model of trial {trial.number} has just been deleted from {study.models.folder}; "
            "let the search end first"
        )
    return model


def _fits(study: TuningStudy, model: SearchModel) -> bool:
    """Whether a file's tensors are the study's network's and its predictions of its images."""
    setup = study.setup
    own = all_tensors(setup.trainer.model)
    return model.probabilities.shape == (len(setup.splits.val), len(setup.classes)) and all(
        name in own and own[name].shape == tensor.shape and own[name].dtype == tensor.dtype
        for name, tensor in model.changed.items()
    )


def _again(
    study: TuningStudy, trial: FrozenTrial, checkpoint: Callable[[], None] | None
) -> Mapping[str, Tensor]:
    setup, run = study.setup, TrialRecord(trial).runs[0]

    def on_epoch(_record: EpochRecord) -> None:
        if checkpoint:
            checkpoint()

    _log.warning("the model of trial %d is gone; it is trained again", trial.number)
    result = setup.trainer.fit(
        setup.space.genome(trial.params).decode(),
        *setup.splits.run(run.fold),
        seed=run.seed,
        epochs=run.epochs,
        on_epoch=on_epoch,
        keep_weights=True,
    )
    model = None if result.diverged else SearchModel.of(setup.trainer, result)
    if model is None:
        raise StudyError(
            f"the model of trial {trial.number} is gone, and diverged when it was trained again; "
            "have the study confirmed"
        )
    if digest_of(model.tensors) != TrialRecord(trial).kept.digest:
        _log.warning(
            "trial %d came to other numbers than before; the test was of the model that is gone",
            trial.number,
        )
    return model.changed
