"""Scikit-learn's classification metrics under the names users know.

All take class probabilities, so that one interface serves threshold and ranking metrics alike, and
all are better when larger.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    Labels = NDArray[np.int64]
    Probabilities = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: The name users type.
        title: The name in tables and figures.
        worst: The least value it can take; a diverged run scores this.
        function: Maps (labels (n,), probabilities (n, C), C) to a value.
        two_classes_only: Whether it is defined for two classes alone.
    """

    name: str
    title: str
    worst: float
    function: Callable[[Labels, Probabilities, int], float]
    two_classes_only: bool = False


def _macro_accuracy(y_true: Labels, probs: Probabilities, n_classes: int) -> float:
    # balanced accuracy as scikit-learn defines it, without the warning about unseen classes that
    # a mere prediction of them would raise at each epoch
    hits = probs.argmax(axis=1) == y_true
    counts = np.bincount(y_true, minlength=n_classes)
    recalled = np.bincount(y_true, weights=hits, minlength=n_classes)
    present = counts > 0
    return float(np.mean(recalled[present] / counts[present]))


def _accuracy(y_true: Labels, probs: Probabilities, _n_classes: int) -> float:
    return float(np.mean(probs.argmax(axis=1) == y_true))


def _macro_f1(y_true: Labels, probs: Probabilities, n_classes: int) -> float:
    from sklearn.metrics import f1_score

    labels, predicted = np.arange(n_classes), probs.argmax(axis=1)
    return float(f1_score(y_true, predicted, labels=labels, average="macro", zero_division=0))


def _kappa(y_true: Labels, probs: Probabilities, n_classes: int) -> float:
    from sklearn.metrics import cohen_kappa_score

    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore")
        value = float(cohen_kappa_score(y_true, probs.argmax(axis=1), labels=np.arange(n_classes)))
    # one class alone, all of it predicted: agreement and chance agreement are both 1
    return value if np.isfinite(value) else 0.0


def _average_precision(y_true: Labels, probs: Probabilities, n_classes: int) -> float:
    from sklearn.metrics import average_precision_score

    if n_classes == 2:
        return float(average_precision_score(y_true == 1, probs[:, 1])) if y_true.any() else 0.0
    present = np.unique(y_true).tolist()
    return float(np.mean([average_precision_score(y_true == c, probs[:, c]) for c in present]))


def _roc_auc(y_true: Labels, probs: Probabilities, _n_classes: int) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y_true, probs[:, 1]))


METRICS: Final[dict[str, Metric]] = {
    m.name: m
    for m in (
        Metric("macro_accuracy", "macro accuracy", 0.0, _macro_accuracy),
        Metric("accuracy", "accuracy", 0.0, _accuracy),
        Metric("macro_f1", "macro F1", 0.0, _macro_f1),
        Metric("kappa", "Cohen's kappa", -1.0, _kappa),
        Metric("average_precision", "average precision", 0.0, _average_precision),
        Metric("roc_auc", "ROC-AUC", 0.0, _roc_auc, two_classes_only=True),
    )
}
"""The metrics by name. ``macro_accuracy`` (mean recall of the classes present, the paper's),
``accuracy``, ``macro_f1`` (over all classes; one without images or predictions counts 0),
``kappa`` (Cohen's), ``average_precision`` (of class 1 where there are two, else the mean over the
classes present) and ``roc_auc`` (two classes)."""


def _named(name: str) -> Metric:
    if name not in METRICS:
        raise DataError(f"metric {name!r} is not one of {', '.join(METRICS)}")
    return METRICS[name]


def check(name: str, y_true: Labels, n_classes: int) -> None:
    """Refuse a metric that these labels do not define.

    Args:
        name: A name in `METRICS`.
        y_true: Labels that will be scored, (n,).
        n_classes: Number of classes.

    Raises:
        DataError: If there are no labels, ROC-AUC is asked for more than two classes or of labels
            that hold one class only, or average precision of two classes without the second.
    """
    metric = _named(name)
    if len(y_true) == 0:
        raise DataError(f"metric {name!r} has no images to score; give at least one")
    if metric.two_classes_only and n_classes != 2:
        raise DataError(
            f"metric {name!r} is for two classes and there are {n_classes}; "
            "use average_precision or macro_accuracy"
        )
    if metric.two_classes_only and len(np.unique(y_true)) < 2:
        raise DataError(f"metric {name!r} needs images of both classes to score; one has none")
    if name == "average_precision" and n_classes == 2 and not (np.asarray(y_true) == 1).any():
        raise DataError(f"metric {name!r} needs images of the second class to score; it has none")


def score(name: str, y_true: Labels, probs: Probabilities, n_classes: int) -> float:
    """Score predictions.

    Args:
        name: A name in `METRICS`.
        y_true: Labels, (n,), integers in [0, n_classes).
        probs: Class probabilities, (n, n_classes).
        n_classes: Number of classes.

    Returns:
        The value, larger is better; `worst` of the metric if a probability is not finite.

    Raises:
        DataError: If the metric is unknown or not defined for these labels.
    """
    metric = _named(name)
    check(name, y_true, n_classes)
    if not np.isfinite(probs).all():
        return metric.worst
    return metric.function(y_true, probs, n_classes)


def worst(name: str) -> float:
    """Return the least value that a metric can take."""
    return _named(name).worst


def report(y_true: Labels, probs: Probabilities, classes: Sequence[str]) -> dict[str, Any]:
    """Everything there is to say about a set of predictions, JSON-ready.

    Args:
        y_true: Labels, (n,).
        probs: Class probabilities, (n, C), all finite.
        classes: The C class names.

    Returns:
        ``n``; each metric by name that the labels define; ``recall``, ``precision`` and
        ``support`` by class name; ``confusion`` as C rows (true) of C counts (predicted).
    """
    from sklearn.metrics import confusion_matrix

    n_classes = len(classes)
    confusion = confusion_matrix(y_true, probs.argmax(axis=1), labels=np.arange(n_classes))
    support, predicted, hits = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    values: dict[str, float] = {}
    for name in METRICS:
        with contextlib.suppress(DataError):  # these labels do not define it
            values[name] = score(name, y_true, probs, n_classes)
    return {
        "n": len(y_true),
        **values,
        "recall": _ratios(classes, hits, support),
        "precision": _ratios(classes, hits, predicted),
        "support": {c: int(k) for c, k in zip(classes, support, strict=True)},
        "confusion": confusion.tolist(),
    }


def mean_f1(y_true: Labels, probs: Probabilities) -> float:
    """Return the mean F1 of the classes that have images or predictions.

    Args:
        y_true: Labels, (n,).
        probs: Class probabilities, (n, C).
    """
    from sklearn.metrics import f1_score

    return float(f1_score(y_true, probs.argmax(axis=1), average="macro", zero_division=0))


def mean_auc(y_true: Labels, probs: Probabilities) -> float:
    """Return the mean ROC-AUC of each class against the rest, over the classes with images.

    Args:
        y_true: Labels, (n,), of two classes at least.
        probs: Class probabilities, (n, C).
    """
    from sklearn.metrics import roc_auc_score

    present = np.unique(y_true).tolist()
    return float(np.mean([roc_auc_score(y_true == c, probs[:, c]) for c in present]))


def calibration_error(y_true: Labels, probs: Probabilities, bins: int = 15) -> float:
    """Return the expected calibration error (ECE) of the most probable class.

    The images are divided into bins of equal width by their highest probability. The error is the
    mean of |accuracy - mean probability| over the bins, weighted by their images
    (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Args:
        y_true: Labels, (n,).
        probs: Class probabilities, (n, C).
        bins: Number of bins.
    """
    sure, hits = probs.max(axis=1), probs.argmax(axis=1) == y_true
    place = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=hits - sure.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(y_true))


def _ratios(
    classes: Sequence[str], hits: NDArray[np.int64], totals: NDArray[np.int64]
) -> dict[str, float | None]:
    """Hits over totals by class; None where a class has none."""
    return {c: float(h / t) if t else None for c, h, t in zip(classes, hits, totals, strict=True)}
