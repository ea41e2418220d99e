"""An evaluation as one HTML page that works offline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from biotune_optuna.page.confusion import draw_confusion
from biotune_optuna.page.html import document
from biotune_optuna.page.parts import Figure, Part, Pictures, Section, Table, Text, Tiles
from biotune_optuna.page.text import plural

if TYPE_CHECKING:
    from biotune_optuna.export.evaluate import ClassResult, Evaluation
    from biotune_optuna.finetune.statistics import Interval

TITLES = {
    "accuracy": "accuracy",
    "macro_accuracy": "macro accuracy (mean of the classes)",
    "macro_f1": "macro F1",
    "roc_auc": "ROC-AUC (each class against the rest, mean)",
    "calibration_error": "calibration error (ECE, 15 bins; 0 is best)",
}
"""What each of `Evaluation.values` is called on pages."""
SEEN = (
    "These images are those the model was made of: it was trained on most of them, so the numbers "
    "are too good. Give images that it has never seen, or read the test in the report."
)
"""What is said about such an evaluation."""


def words(name: str, value: Interval) -> tuple[str, str]:
    """Return one of `Evaluation.values` and its interval as pages say them.

    Accuracies are in percent, as in the report; other scores are plain numbers.

    Args:
        name: The value's name.
        value: The value with its interval.
    """
    if "accuracy" in name:
        return percent(value.value), f"{100 * value.low:.1f} to {percent(value.high)}"
    return f"{value.value:.3f}", f"{value.low:.3f} to {value.high:.3f}"


def percent(share: float | None, none: str = "-") -> str:
    """Return a share in percent: ``66.7 %``; ``none`` where there is none."""
    return none if share is None else f"{100 * share:.1f} %"


def page(found: Evaluation) -> str:
    """Return the page's HTML.

    Args:
        found: The evaluation.
    """
    part = "all images" if found.part == "all" else f"the {found.part} part"
    return document(
        f"{found.model} on {found.data}",
        list(_parts(found)),
        eyebrow="Evaluation",
        title=f"{found.data} · evaluation",
        below=f"{part} · {plural(len(found.ids), 'image')} · 95 % bootstrap intervals",
    )


def _parts(found: Evaluation) -> Iterator[Part]:
    if found.seen:
        yield Text(SEEN)
    yield Tiles(
        [
            (said, f"{TITLES[name]}, {interval}")
            for name, value in found.values.items()
            for said, interval in [words(name, value)]
        ]
    )
    drawn = draw_confusion(found.confusion, found.classes, images="images")
    if drawn is not None:
        caption = (
            "Rows are what the image shows, columns what the model said; the shade is the share of "
            "the row."
        )
        yield Section(
            "confusion", "Confusion", [Figure(drawn, caption, "confusion-matrix", "Confusion")]
        )
    yield Section("classes", "Classes", list(_classes(found)))
    yield Section("worst", "Wrong images, the surest first", list(_wrong(found)))
    if found.skipped:
        lines = [Text(line, "soft") for line in found.skipped[:50]]
        more = len(found.skipped) - len(lines)
        rest = [Text(f"and {more:,} more", "soft")] if more else []
        yield Section("left-out", f"Left out: {len(found.skipped):,}", [*lines, *rest])


def _classes(found: Evaluation) -> Iterator[Part]:
    """List the hardest class first, those without images last."""
    rows = sorted(found.by_class, key=lambda one: one.recall.value if one.recall else 2.0)
    yield Table(("Class", "Images", "Recall", "Precision", "F1"), [_row(one) for one in rows])
    yield Text(
        "Recall: share of the class's images that got its name, with Wilson's 95 % interval. "
        "Precision: share of the images given this name that are of the class. F1: their harmonic "
        "mean.",
        "soft",
    )


def _row(one: ClassResult) -> tuple[str, ...]:
    recall = "–"
    if one.recall is not None:
        low, high = 100 * one.recall.low, 100 * one.recall.high
        recall = f"{percent(one.recall.value)} ({low:.1f} to {high:.1f})"
    rest = (percent(one.precision, "–"), "–" if one.f1 is None else f"{one.f1:.3f}")
    return (one.name, f"{one.n:,}", recall, *rest)


def _wrong(found: Evaluation) -> Iterator[Part]:
    if not found.worst:
        yield Text("Every image was classified rightly.")
        return
    yield Text("Wrong labels often turn up here.", "soft")
    yield Pictures(
        [
            (
                one.thumbnail,
                (f"{one.label}, said {one.predicted} ({one.probability:.0%})", one.id),
            )
            for one in found.worst
        ]
    )
