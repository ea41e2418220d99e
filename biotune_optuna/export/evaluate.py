"""How good a tuned model is on labelled images: numbers with intervals, and what it gets wrong."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.data.sources.image_source import SPLIT_NAMES
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.data.thumbnail import thumbnail
from biotune_optuna.errors import BioTuneError, DataError
from biotune_optuna.export.evaluation_page import SEEN, TITLES, page, percent, words
from biotune_optuna.files import csv_cell, replace_file
from biotune_optuna.finetune.metrics import calibration_error, mean_auc, mean_f1, score
from biotune_optuna.finetune.statistics import Interval, proportion_interval, resampled_interval

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource
    from biotune_optuna.export.predict import Predictor

_TIMES_AUC = 200  # ranking is slow, and the interval needs no third digit


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One class.

    Attributes:
        name: The class.
        n: Images of it.
        recall: Share of them that were found, with its interval; None without images.
        precision: Share of the images given this name that are of the class; None if none was.
        f1: Harmonic mean of both, 0 where nothing was found; None without images.
    """

    name: str
    n: int
    recall: Interval | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class Wrong:
    """One image with another label than the one predicted.

    Attributes:
        id: Name of the image within the data.
        label: Its label.
        predicted: What the model said.
        probability: How sure it was of that.
        thumbnail: The image made small, as a data URI; "" where it cannot be read any more.
    """

    id: str
    label: str
    predicted: str
    probability: float
    thumbnail: str


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What `Predictor.evaluate` found.

    Attributes:
        model: timm's name of the model.
        data: Name of the data.
        part: The part that was evaluated: ``"train"``, ``"val"``, ``"test"`` or ``"all"``.
        seen: Whether the model was made of these very data, so that it has been trained on some of
            the images and the numbers are too good.
        classes: The model's classes.
        ids: Names of the images, n of them.
        labels: True classes, (n,), as positions in `classes`.
        probabilities: (n, C), float32.
        values: ``accuracy``, ``macro_accuracy``, ``macro_f1``, ``roc_auc`` and
            ``calibration_error``, each with its 95 % bootstrap interval; without ``roc_auc`` where
            there is only one class to rank.
        by_class: Every class, in the model's order.
        worst: Wrong images, those first of which the model was surest.
        skipped: One line for each image that could not be read.
    """

    model: str
    data: str
    part: str
    seen: bool
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    values: dict[str, Interval]
    by_class: tuple[ClassResult, ...]
    worst: tuple[Wrong, ...]
    skipped: tuple[str, ...]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Most probable class of each image, (n,)."""
        best: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return best

    @property
    def confusion(self) -> list[list[int]]:
        """C rows (true) of C counts (predicted)."""
        counts = np.zeros((len(self.classes), len(self.classes)), dtype=int)
        np.add.at(counts, (self.labels, self.predicted), 1)
        return counts.tolist()

    def __str__(self) -> str:
        return "\n".join(_lines(self))

    def to_dict(self) -> dict[str, Any]:
        """All numbers and names, without the thumbnails; JSON-ready."""
        return {
            "model": self.model,
            "data": self.data,
            "part": self.part,
            "seen_in_training": self.seen,
            "n": len(self.ids),
            "classes": list(self.classes),
            **{name: value._asdict() for name, value in self.values.items()},
            "by_class": [
                asdict(one) | {"recall": one.recall._asdict() if one.recall else None}
                for one in self.by_class
            ],
            "confusion": self.confusion,
            "worst": [
                {key: value for key, value in asdict(one).items() if key != "thumbnail"}
                for one in self.worst
            ],
            "skipped": list(self.skipped),
        }

    def write_json(self, path: str | Path) -> Path:
        """Write `to_dict` as a JSON file, whole or not at all.

        Args:
            path: The file; an existing one is replaced.

        Raises:
            BioTuneError: If the file cannot be written.
        """
        return replace_file(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    def write_csv(self, path: str | Path) -> Path:
        """Write one line per image: name, label, prediction, right or not, every probability.

        Args:
            path: The file; an existing one is replaced.

        Raises:
            BioTuneError: If the file cannot be written.
        """
        table = io.StringIO()
        writer = csv.writer(table)
        columns = (f"p({name})" for name in self.classes)
        writer.writerow(["image", "label", "predicted", "right", "probability", *columns])
        rows = zip(self.ids, self.labels, self.predicted, self.probabilities, strict=True)
        for name, true, said, p in rows:
            right = "yes" if true == said else "no"
            cells = (f"{value:.4f}" for value in (p[said], *p))
            texts = map(csv_cell, (name, self.classes[true], self.classes[said]))
            writer.writerow([*texts, right, *cells])
        return replace_file(Path(path), table.getvalue())

    def write_html(self, path: str | Path) -> Path:
        """Write a page that works offline: numbers, confusion, classes, worst images.

        Args:
            path: The file; an existing one is replaced.

        Raises:
            BioTuneError: If the file cannot be written.
        """
        return replace_file(Path(path), page(self))


def evaluate(
    predictor: Predictor,
    data: Any,
    labels: Any = None,
    *,
    part: str | None = None,
    batch_size: int | None = None,
    n_worst: int = 24,
) -> Evaluation:
    """Compare predictions with labels; see `Predictor.evaluate`."""
    source = open_images(data, labels=labels, skip_bad_images=True)
    chosen, index = _choose(source, part)
    known = {name: position for position, name in enumerate(predictor.classes)}
    true = _labels(source, index, known)
    loads = (functools.partial(source.load, int(i)) for i in index)
    kept: list[int] = []
    probabilities: list[NDArray[np.float32]] = []
    skipped = list(source.skipped)
    for position, one in enumerate(predictor.iter_predict(loads, batch_size=batch_size)):
        if one.error:
            skipped.append(one.error)
            continue
        kept.append(position)
        probabilities.append(one.probabilities)
    if not kept:
        raise DataError(f"{source.name}: none of the {len(index)} images can be read any more")
    index, true, probs = index[kept], true[kept], np.stack(probabilities)
    ids = tuple(source.ids[i] for i in index)
    return Evaluation(
        model=predictor.name,
        data=source.name,
        part=chosen,
        seen=chosen != "test" and predictor.trained_on == source.fingerprint,
        classes=predictor.classes,
        ids=ids,
        labels=true,
        probabilities=probs,
        values=_values(true, probs),
        by_class=_by_class(predictor.classes, true, probs),
        worst=tuple(islice(_worst(source, index, predictor.classes, true, probs), n_worst)),
        skipped=tuple(skipped),
    )


def _choose(source: ImageSource, part: str | None) -> tuple[str, NDArray[np.int64]]:
    """Return the part to evaluate, and the positions of its images."""
    if part not in (None, "all", *SPLIT_NAMES):
        raise DataError(f"part {part!r} is unknown; choose train, val, test or all")
    parts = np.full(len(source), "") if source.splits is None else source.splits
    if part is None:
        part = "test" if "test" in parts else "all"
    index = np.arange(len(source)) if part == "all" else np.flatnonzero(parts == part)
    if not len(index):
        has = ", ".join(name for name in SPLIT_NAMES if name in parts) or "not divided into parts"
        raise DataError(f"{source.name} has no {part} part ({has}); choose another part, or all")
    return part, index


def _labels(
    source: ImageSource, index: NDArray[np.int64], known: dict[str, int]
) -> NDArray[np.int64]:
    """Return the labels as positions among the model's classes."""
    names = [source.classes[label] for label in source.labels[index]]
    strange = Counter(name for name in names if name not in known)
    if strange:
        name, n = strange.most_common(1)[0]
        some = ", ".join(list(known)[:10]) + (", ..." if len(known) > 10 else "")
        raise DataError(
            f"class {name!r} of {source.name} ({n} image{'' if n == 1 else 's'}) is none of the "
            f"model's; they are {some}"
        )
    return np.array([known[name] for name in names], dtype=np.int64)


def _values(labels: NDArray[np.int64], probs: NDArray[np.float32]) -> dict[str, Interval]:
    n_classes = probs.shape[1]
    values = {
        name: resampled_interval(functools.partial(_score, name, n_classes), labels, probs)
        for name in ("accuracy", "macro_accuracy")
    }
    values["macro_f1"] = resampled_interval(mean_f1, labels, probs)
    if len(np.unique(labels)) > 1:
        values["roc_auc"] = resampled_interval(mean_auc, labels, probs, times=_TIMES_AUC)
    values["calibration_error"] = resampled_interval(calibration_error, labels, probs)
    return values


def _score(
    name: str, n_classes: int, labels: NDArray[np.int64], probs: NDArray[np.floating]
) -> float:
    return score(name, labels, probs, n_classes)


def _by_class(
    classes: tuple[str, ...], labels: NDArray[np.int64], probs: NDArray[np.float32]
) -> tuple[ClassResult, ...]:
    said = probs.argmax(axis=1)
    found = []
    for position, name in enumerate(classes):
        true, named = labels == position, said == position
        n, hits, calls = int(true.sum()), int((true & named).sum()), int(named.sum())
        found.append(
            ClassResult(
                name=name,
                n=n,
                recall=proportion_interval(hits, n) if n else None,
                precision=hits / calls if calls else None,
                f1=2 * hits / (n + calls) if n else None,
            )
        )
    return tuple(found)


def _worst(
    source: ImageSource,
    index: NDArray[np.int64],
    classes: tuple[str, ...],
    labels: NDArray[np.int64],
    probs: NDArray[np.float32],
) -> Iterator[Wrong]:
    """Yield wrong images, those first of which the model was surest."""
    said = probs.argmax(axis=1)
    wrong = np.flatnonzero(said != labels)
    wrong = wrong[np.argsort(-probs[wrong, said[wrong]], kind="stable")]
    for i in wrong:
        try:
            small = thumbnail(source.load(int(index[i])), side=96)
        except BioTuneError:
            small = ""
        yield Wrong(
            id=source.ids[index[i]],
            label=classes[labels[i]],
            predicted=classes[said[i]],
            probability=round(float(probs[i, said[i]]), 4),
            thumbnail=small,
        )


def _lines(found: Evaluation) -> Iterator[str]:
    """Say it for a terminal."""
    n, right = len(found.ids), int((found.predicted == found.labels).sum())
    part = "" if found.part == "all" else f", part {found.part}"
    yield f"{found.model} on {found.data}{part}: {right:,} of {n:,} images right"
    if found.seen:
        yield f"  {SEEN}"
    for name, value in found.values.items():
        said, interval = words(name, value)
        yield f"  {TITLES[name]:43} {said:>7}  (95 % {interval})"
    wide = min(32, max(len("class"), *map(len, found.classes)))
    yield f"\n  {'class':{wide}}  images   recall  precision"
    for one in found.by_class:
        recall, precision = percent(_value(one.recall)), percent(one.precision)
        yield f"  {one.name:{wide}}  {one.n:6}  {recall:>7}  {precision:>9}"
    if found.skipped:
        yield f"\n{len(found.skipped)} left out, first: {found.skipped[0]}"


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value
