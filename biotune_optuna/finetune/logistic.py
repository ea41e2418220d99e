"""Logistic regression on fixed features: a linear probe that has converged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from biotune_optuna.finetune import metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Labels = NDArray[np.int64]

ClassWeights = Literal["none", "balanced"]

STRENGTHS: Final = tuple(10.0**power for power in range(-1, -7, -1))
"""Strengths of the L2 penalty that are tried, the strongest first: the factor of
``||w||^2 / 2`` beside the mean cross-entropy, for features whose mean squared norm is 1."""

FOLDS: Final = 5
SKEWED: Final = 1.5
"""Balanced class weights are tried too where one class has so many times the images of another."""

_ENOUGH = 5_000  # images, of which a fifth alone says which strength is best
_USUAL = STRENGTHS[2]  # where there are too few images to choose by
_NEVER = -100.0  # score of a class that no training image shows
_STEPS = 1_000
_WORSE = 2  # strengths in a row that are worse than the best: a weaker penalty will not help
_LEAST = 1e-12


@dataclass(frozen=True, slots=True)
class Logistic:
    """A fitted linear classifier of features.

    Attributes:
        weight: (n_classes, n_features), for features as they were given.
        bias: (n_classes,).
        strength: The L2 penalty chosen, one of `STRENGTHS`.
        class_weights: ``"balanced"`` where images were weighed by class.
        judged: Positions of the images that folds have predicted, ascending, (m,).
        held_out: Their class probabilities by models that had not seen them, (m, n_classes).
    """

    weight: Array
    bias: Array
    strength: float
    class_weights: ClassWeights
    judged: NDArray[np.int64]
    held_out: Array

    def probabilities(self, features: NDArray[np.floating]) -> Array:
        """Return class probabilities of images.

        Args:
            features: (n, n_features).

        Returns:
            (n, n_classes).
        """
        return _softmax(features @ self.weight.T + self.bias)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Features with mean 0, standard deviation 1 and, on average, a squared norm of 1."""

    mean: Array
    spread: Array

    @classmethod
    def of(cls, features: Array) -> _Scale:
        spread = features.std(axis=0)
        varies = spread > 1e-6 * max(float(spread.max(initial=0.0)), _LEAST)
        size = max(1, int(varies.sum())) ** 0.5
        return cls(features.mean(axis=0), np.where(varies, spread * size, np.inf))

    def __call__(self, features: Array) -> Array:
        scaled: Array = (features - self.mean) / self.spread
        return scaled


def fit_logistic(
    features: NDArray[np.floating],
    labels: Labels,
    *,
    n_classes: int,
    metric: str = "macro_accuracy",
    class_weights: ClassWeights = "none",
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Logistic:
    """Fit a multinomial logistic regression with an L2 penalty, to convergence.

    The strength of the penalty is the one with the least cross-entropy in stratified folds. Where
    classes are skewed, the fit with balanced class weights is tried too, and the better of both by
    the metric, in the same folds, is taken. Scikit-learn's solver is L-BFGS.

    Args:
        features: (n, n_features), n at least 2.
        labels: Classes, (n,), in [0, n_classes).
        n_classes: Number of classes; one without images gets no probability.
        metric: Name of the metric that decides about class weights.
        class_weights: ``"balanced"`` weighs images by class in any case.
        groups: Images of one group stay in one fold, (n,); None keeps none together.
        seed: Decides the folds.
    """
    x = np.asarray(features, dtype=np.float64)
    folds = list(_folds(labels, groups, seed))
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    tried: list[ClassWeights] = [class_weights]
    if class_weights == "none" and counts.max() >= SKEWED * counts.min():
        tried.append("balanced")
    found = []
    for weighing in tried:
        strength, held_out = _choose_strength(x, labels, n_classes, weighing, folds)
        found.append((weighing, strength, held_out))
    judged = np.sort(np.concatenate([test for _, test in folds])) if folds else np.zeros(0, int)

    def value(one: tuple[ClassWeights, float, Array]) -> float:
        if not len(judged):
            return 0.0
        return metrics.METRICS[metric].function(labels[judged], one[2][judged], n_classes)

    weighing, strength, held_out = max(found, key=value)  # the first of equals
    scale = _Scale.of(x)
    weight, bias = next(_path(scale(x), labels, n_classes, weighing, [strength]))
    weight = weight / scale.spread
    return Logistic(
        weight, bias - weight @ scale.mean, strength, weighing, judged, held_out[judged]
    )


def _folds(
    labels: Labels, groups: NDArray[np.int64] | None, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield positions of images to fit on and to judge on; none where no class has two."""
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    most = int(np.bincount(labels).max()) if groups is None else len(np.unique(groups))
    n = min(FOLDS, most)
    if n < 2:
        return
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer images than folds
        pairs = kind(n, shuffle=True, random_state=seed % 2**32).split(labels, labels, groups)
        for number, pair in enumerate(pairs):
            if number == 0 or len(labels) <= _ENOUGH:
                yield pair


def _choose_strength(
    x: Array,
    labels: Labels,
    n_classes: int,
    weighing: ClassWeights,
    folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> tuple[float, Array]:
    """Return the best strength, and what its folds say of each image."""
    if not folds:
        return _USUAL, np.zeros((len(x), n_classes))
    judged = np.concatenate([test for _, test in folds])
    truth, mass = labels[judged], _image_weights(labels, weighing)[judged]
    parts = []
    for train, test in folds:
        scale = _Scale.of(x[train])
        path = _path(scale(x[train]), labels[train], n_classes, weighing, STRENGTHS)
        parts.append((path, scale(x[test]), test))
    best, least, worse = (STRENGTHS[0], np.zeros((len(x), n_classes))), np.inf, 0
    for strength in STRENGTHS:
        found = np.zeros((len(x), n_classes))
        for path, points, test in parts:
            weight, bias = next(path)
            found[test] = _softmax(points @ weight.T + bias)
        loss = -float((np.log(found[judged, truth].clip(_LEAST)) * mass).sum())
        if loss < least:  # the strongest of equals
            best, least, worse = (strength, found), loss, 0
        else:
            worse += 1
        if worse == _WORSE:
            break
    return best


def _path(
    x: Array,
    labels: Labels,
    n_classes: int,
    weighing: ClassWeights,
    strengths: tuple[float, ...] | list[float],
) -> Iterator[tuple[Array, Array]]:
    """Yield weight and bias for each strength, each fit begun where the one before it ended."""
    from sklearn.linear_model import LogisticRegression

    present = np.unique(labels)
    if len(present) == 1:
        bias = np.full(n_classes, _NEVER)
        bias[present] = 0.0
        for _ in strengths:
            yield np.zeros((n_classes, x.shape[1])), bias
        return
    # the solution is a mix of the images, so that as many coordinates as images are enough
    turned = len(x) < x.shape[1]
    basis, rows = np.linalg.qr(x.T) if turned else (None, None)
    points = rows.T if rows is not None else x
    mass = _image_weights(labels, weighing)
    solver = LogisticRegression(max_iter=_STEPS, warm_start=True)
    halves = 2 if len(present) == 2 else 1  # of two classes it fits one weight, the difference
    for strength in strengths:
        solver.set_params(C=halves / (strength * len(x)))
        solver.fit(points, labels, sample_weight=mass)
        weight, bias = solver.coef_, solver.intercept_
        if len(present) == 2:
            weight, bias = np.vstack([-weight, weight]) / 2, np.array([-bias[0], bias[0]]) / 2
        if basis is not None:
            weight = weight @ basis.T
        all_weights, all_biases = np.zeros((n_classes, x.shape[1])), np.full(n_classes, _NEVER)
        all_weights[present], all_biases[present] = weight, bias
        yield all_weights, all_biases


def _image_weights(labels: Labels, weighing: ClassWeights) -> Array:
    """Return what each image weighs, 1 on average."""
    if weighing == "none":
        return np.ones(len(labels))
    counts = np.bincount(labels)
    mass: Array = len(labels) / ((counts > 0).sum() * counts[labels].astype(np.float64))
    return mass


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares
