"""A first answer within seconds: what a linear probe of the frozen network reaches."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from biotune_optuna.errors import ModelError
from biotune_optuna.finetune.logistic import Logistic, fit_logistic
from biotune_optuna.finetune.statistics import Interval, bootstrap_interval
from biotune_optuna.schema import PROBE_KEY, Cost, as_mapping

if TYPE_CHECKING:
    from biotune_optuna.study.setup import Setup
    from biotune_optuna.study.study import TuningStudy

_log = logging.getLogger("biotune_optuna.study")


@dataclass(frozen=True, slots=True)
class Probe:
    """What a linear probe reached.

    Attributes:
        metric: The metric of all scores.
        validation: On the validation images, fitted on the training images, with its 95 % interval.
        folds: On training images by folds that had not seen them, with its 95 % interval; NaN
            where there were too few images for folds.
        n_train: Training images.
        n_val: Validation images.
        n_features: Features of an image.
        fitted: The fitted classifier.
        cost: One pass over the images.
    """

    metric: str
    validation: Interval
    folds: Interval
    n_train: int
    n_val: int
    n_features: int
    fitted: Logistic
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstAnswer(Cost):
    """What a study keeps of its linear probe.

    Attributes:
        value: The metric on validation images; NaN before the probe.
        low: Lower end of its 95 % interval.
        high: Upper end.
        n: Validation images.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0

    @classmethod
    def of(cls, user_attrs: Mapping[str, Any]) -> FirstAnswer:
        """Read a study's from its user attributes; an empty one where it has none."""
        return cls.from_dict(as_mapping(user_attrs.get(PROBE_KEY)))


def first_answer(study: TuningStudy) -> FirstAnswer:
    """Fit a linear probe once for a study, and keep what came of it there.

    Args:
        study: The study. A network that gives no features to fit on gets an empty answer.
    """
    attributes = study.study.user_attrs
    if PROBE_KEY in attributes:
        return FirstAnswer.of(attributes)
    try:
        found = linear_probe(study.setup)
    except ModelError as error:
        _log.info("no linear probe: %s", error)
        return FirstAnswer()
    value, low, high = found.validation
    answer = FirstAnswer(value=value, low=low, high=high, n=found.n_val, **found.cost.to_dict())
    study.study.set_user_attr(PROBE_KEY, answer.to_dict())
    return answer


def linear_probe(setup: Setup) -> Probe:
    """Fit a linear probe on the training images and score it on the validation images.

    The test images are not looked at.

    Args:
        setup: Data, model and trainer. The trainer holds the pre-trained weights afterwards.

    Raises:
        ModelError: If the network gives no features.
    """
    start = time.perf_counter()
    trainer, settings, source = setup.trainer, setup.spec.train, setup.source
    train, val = setup.splits.run(None)
    features = trainer.features(train)
    groups = None
    if source.groups is not None:
        groups = np.unique(source.groups[train], return_inverse=True)[1].astype(np.int64)
    balanced = "balanced" in (settings.class_weights, settings.sampling)
    fitted = fit_logistic(
        features,
        source.labels[train],
        n_classes=len(setup.classes),
        metric=settings.metric,
        class_weights="balanced" if balanced else "none",
        groups=groups,
        seed=setup.spec.search_runs()[0].seed,
    )
    probs = fitted.probabilities(trainer.features(val))
    judged = train[fitted.judged]
    return Probe(
        metric=settings.metric,
        validation=bootstrap_interval(settings.metric, source.labels[val], probs),
        folds=bootstrap_interval(settings.metric, source.labels[judged], fitted.held_out)
        if len(judged)
        else Interval(np.nan, np.nan, np.nan),
        n_train=len(train),
        n_val=len(val),
        n_features=features.shape[1],
        fitted=fitted,
        cost=Cost(forward=len(train) + len(val), seconds=round(time.perf_counter() - start, 3)),
    )
