"""Probabilities that can be trusted: one temperature, and what a confidence has been worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.errors import BioTuneError, ModelError
from biotune_optuna.finetune.metrics import calibration_error

Labels = NDArray[np.int64]
Probabilities = NDArray[np.floating[Any]]

_LEAST = 1e-12  # a network may say 0
_BOUNDS = (math.log(0.05), math.log(20.0))
_PULL = 10
"""Images that the pull towards 1 is worth: a hundred images, all of them right, say little."""


def tempered(probs: Probabilities, temperature: float) -> NDArray[np.float32]:
    """Return probabilities as if the logits had been divided by a temperature (Guo et al., 2017).

    Args:
        probs: (n, C) or (C,).
        temperature: Above 1 makes them less sure, below 1 surer; 1 leaves them as they are.
    """
    if temperature == 1:
        return np.asarray(probs, dtype=np.float32)
    logs = np.log(np.maximum(probs, _LEAST).astype(np.float64)) / temperature
    found = np.exp(logs - logs.max(axis=-1, keepdims=True))
    shares: NDArray[np.float32] = (found / found.sum(axis=-1, keepdims=True)).astype(np.float32)
    return shares


def fit_temperature(labels: Labels, probs: Probabilities, *, pull: float = _PULL) -> float:
    """Return the temperature at which the cross-entropy of predictions is least.

    A pull towards 1 keeps it from what few images cannot tell.

    Args:
        labels: True classes of images that the networks were not trained on, (n,).
        probs: Their probabilities, (n, C).
        pull: Images that the pull is worth (10: docs/benchmarks/members.md).
    """
    from scipy.optimize import minimize_scalar

    def loss(log: float) -> float:
        found = cross_entropy(labels, tempered(probs, math.exp(log)))
        return found + 0.5 * pull * log**2 / len(labels)

    return math.exp(minimize_scalar(loss, bounds=_BOUNDS, method="bounded").x)


def cross_entropy(labels: Labels, probs: Probabilities) -> float:
    """Return the mean of -log of the true classes' probabilities, in nats.

    Args:
        labels: (n,).
        probs: (n, C).
    """
    own = np.maximum(probs[np.arange(len(labels)), labels].astype(np.float64), _LEAST)
    return float(-np.log(own).mean())


def brier_score(labels: Labels, probs: Probabilities) -> float:
    """Return the mean squared distance to the true class, summed over the classes; 0 to 2.

    Args:
        labels: (n,).
        probs: (n, C).
    """
    truth = np.eye(probs.shape[1])[labels]
    return float(((probs - truth) ** 2).sum(axis=1).mean())


class Trust(NamedTuple):
    """How far probabilities can be trusted; of all three less is better.

    Attributes:
        cross_entropy: Mean cross-entropy, in nats.
        brier: Brier score.
        calibration_error: Expected calibration error (ECE), 15 bins.
    """

    cross_entropy: float
    brier: float
    calibration_error: float

    @classmethod
    def of(cls, labels: Labels, probs: Probabilities) -> Trust:
        """Measure it on labelled images.

        Args:
            labels: (n,).
            probs: (n, C).
        """
        return cls(
            cross_entropy(labels, probs),
            brier_score(labels, probs),
            calibration_error(labels, probs),
        )


def reliability(
    labels: Labels, probs: Probabilities, bins: int = 10
) -> list[tuple[int, float, float]]:
    """Return what a reliability diagram shows: confidence against accuracy.

    Args:
        labels: (n,).
        probs: (n, C).
        bins: Bins of equal width over the highest probability.

    Returns:
        For each bin that has images: how many, their mean confidence, the share that is right.
    """
    sure, right = probs.max(axis=1).astype(np.float64), probs.argmax(axis=1) == labels
    place = np.minimum((sure * bins).astype(int), bins - 1)
    return [
        (int((place == i).sum()), float(sure[place == i].mean()), float(right[place == i].mean()))
        for i in range(bins)
        if (place == i).any()
    ]


@dataclass(frozen=True)
class Calibration:
    """What images that a model was not trained on say about its probabilities.

    Attributes:
        temperature: What its probabilities are tempered by.
        confidence: The highest probability of each of these images, tempered.
        right: Whether each was classified rightly.
    """

    temperature: float = 1.0
    confidence: tuple[float, ...] = ()
    right: tuple[bool, ...] = ()

    @classmethod
    def fit(cls, labels: Labels, probs: Probabilities) -> Calibration:
        """Fit the temperature and keep what the confidences are worth.

        Args:
            labels: True classes, (n,).
            probs: Probabilities of a model that was not trained on these images, (n, C).
        """
        warmth = fit_temperature(labels, probs)
        found = tempered(probs, warmth)
        sure, right = found.max(axis=1), found.argmax(axis=1) == labels
        order = np.argsort(-sure, kind="stable")
        return cls(
            temperature=warmth,
            confidence=tuple(round(float(sure[i]), 5) for i in order),
            right=tuple(bool(right[i]) for i in order),
        )

    def needed(self, accuracy: float) -> float:
        """Return the least confidence from which on predictions have an accuracy.

        Args:
            accuracy: Share of right predictions, above 0 and at most 1.

        Returns:
            The lowest confidence such that of these images with as much or more of it so many are
            right; 0 where all of them together are.

        Raises:
            BioTuneError: If the accuracy is none, or no confidence reaches it.
        """
        if not 0 < accuracy <= 1:
            raise BioTuneError(
                f"accuracy {accuracy:g} is no share; give a number above 0 and at most 1, as 0.95"
            )
        n = len(self.right)
        shares = np.cumsum(self.right) / np.arange(1, n + 1)
        # a threshold takes all images of one confidence or none
        last = [i for i in range(n) if i + 1 == n or self.confidence[i] > self.confidence[i + 1]]
        enough = [i for i in last if shares[i] >= accuracy]
        if not enough:
            raise BioTuneError(
                f"no confidence reached an accuracy of {accuracy:g} on the {n} validation images; "
                "give a lower one"
            )
        return 0.0 if enough[-1] == n - 1 else self.confidence[enough[-1]]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "temperature": self.temperature,
            "confidence": list(self.confidence),
            "right": [int(one) for one in self.right],
        }

    @classmethod
    def from_dict(cls, data: object, where: str) -> Calibration:
        """Read what `to_dict` returned.

        Args:
            data: The data.
            where: What to call it in the message.

        Raises:
            ModelError: If it is damaged.
        """
        stored = data if isinstance(data, Mapping) else {}
        try:
            confidence = tuple(float(one) for one in stored["confidence"])
            right = tuple(bool(one) for one in stored["right"])
            warmth = float(stored["temperature"])
        except (KeyError, TypeError, ValueError):
            warmth = math.nan
        if not (
            0 < warmth < math.inf
            and len(confidence) == len(right)
            and list(confidence) == sorted(confidence, reverse=True)
        ):
            raise ModelError(f"{where} is damaged; export the model again")
        return cls(warmth, confidence, right)
