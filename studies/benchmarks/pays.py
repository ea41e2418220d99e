"""When does a search pay? By effort, by the number of images, by skew, by how far ImageNet is.

    python studies/benchmarks/pays.py FOLDER ... [--axes size skew effort] [--repeats 3]
    python studies/benchmarks/pays.py            # the page and its figure from studies/pays.csv

The first trains on development data: BioTune, full fine-tuning and the probe, by the protocol of
`studies/evidence.py`. It goes on where it stopped, several may share it, and it writes `pays.csv`
into the current folder. The figure needs matplotlib, of the extra bench.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from biotune_optuna import open_storage
from biotune_optuna.compare import Comparison, Row, read_csv, read_rows, run_comparison, write_csv
from biotune_optuna.compare.over_tasks import Difference, Matrix, differences
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.effort import EFFORTS
from biotune_optuna.errors import StudyError
from biotune_optuna.page.parts import Heading, Markdown, Table, markdown

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "studies"))

from _sets import like_tune, own_place, settle, specs  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.storages import BaseStorage

METHODS = ("biotune", "full", "linear-probe")
RIVALS = {"full": "full fine-tuning", "linear-probe": "the probe"}
AXES: dict[str, tuple[Any, ...]] = {
    "size": (50, 100, 200, 400, 800),
    "skew": (1, 3, 10, 30),
    "effort": tuple(EFFORTS),
}
TITLES = {
    "size": "training images",
    "skew": "images of the largest class for one of the smallest",
    "effort": "effort",
}
TASKS = {
    "size": {"digits": 0.4, "mnist5000": 0.5, "dtd10": 0.2},  # so that 800 are left to train on
    "skew": {"mnist5000": 0.25, "dtd10": 0.25, "neu_steel": 0.25},
    "effort": {"dtd10": 0.5, "trashnet5": 0.5, "tomato_leaf10": 0.39},
}
"""The tasks of each axis, and the share of their images that is the test."""
SKEWED = (110, 60)
"""Images to train and to validate on where classes are skewed: as many at every skew."""


def plan(axis: str, value: Any, args: argparse.Namespace) -> Comparison:
    """The comparison of one value of an axis."""
    effort = EFFORTS[value if axis == "effort" else "quick"]
    tasks = specs(
        "development", args.folders, args.made, epochs=effort.epochs, names=tuple(TASKS[axis])
    )
    changed = []
    for spec in tasks:
        share = TASKS[axis][Path(spec.data).name]
        sizes: dict[str, Any] = {"test_fraction": share}
        if axis == "size":
            sizes |= {"train_size": value, "val_size": max(20, min(100, value // 2))}
        elif axis == "skew":
            folder = args.made / f"skew-{value}-{Path(spec.data).name}"
            sizes = {"data": str(skewed(spec.data, folder, ratio=value, share=share))}
            sizes |= dict(zip(("train_size", "val_size"), SKEWED, strict=True))
        changed.append(dataclasses.replace(spec, **sizes))
    return Comparison(
        tasks=tuple(changed),
        contenders=METHODS,
        repeats=args.repeats,
        **like_tune(effort, args.trials),
        name=f"pays-{axis}-{value}",
    )


def skewed(data: str, target: Path, *, ratio: float, share: float) -> Path:
    """Copy images so that each class has fewer to learn from than the one before, once.

    Args:
        data: A folder of images.
        target: The folder to make, with a training and a test part.
        ratio: Images of the first class for one of the last, in equal steps of the logarithm.
        share: Share of each class that is the test.
    """
    if target.exists():
        return target
    source = open_images(data)
    order = np.random.default_rng(0).permutation(len(source))
    weights = float(ratio) ** -np.linspace(0, 1, len(source.classes))
    wanted = np.maximum(np.rint(sum(SKEWED) * weights / weights.sum()), 4).astype(int)
    own = own_place(target)
    for label, name in enumerate(source.classes):
        images = [int(i) for i in order if source.labels[i] == label]
        test = round(share * len(images))
        if len(images) - test < wanted[label]:
            raise StudyError(f"{data} has too few images of {name!r} for a skew of {ratio}")
        for number, index in enumerate(images[: test + wanted[label]]):
            file = (
                own / ("test" if number < test else "train") / name / Path(source.ids[index]).name
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(data) / source.ids[index], file)
    settle(own, target)
    return target


def measure(args: argparse.Namespace) -> None:
    """Run what is missing, a repeat of everything before the next, and write the table."""
    backend = open_storage(args.storage)
    for repeat in range(1, args.repeats + 1):
        for axis in args.axes:
            for value in AXES[axis]:
                todo = dataclasses.replace(plan(axis, value, args), repeats=repeat)
                run_comparison(todo, storage=backend, tell=lambda one: print(one, flush=True))
                write_csv(gathered(backend), "pays.csv")


def gathered(backend: BaseStorage) -> list[Row]:
    """All rows so far; a task is called after its axis, its value and its data."""
    names = {study.study_name.partition("/")[0] for study in backend.get_all_studies()}
    return [
        dataclasses.replace(row, task=f"{axis} {value} {row.data.removeprefix(f'skew-{value}-')}")
        for axis, values in AXES.items()
        for value in values
        if f"pays-{axis}-{value}" in names
        for row in read_rows(backend, f"pays-{axis}-{value}")
    ]


# -- the page ------------------------------------------------------------------------------------


def leads(rows: Sequence[Row], axis: str) -> dict[str, list[Difference]]:
    """BioTune's lead over each rival, for each value of an axis that was measured."""
    found = {}
    for value in AXES[axis]:
        own = [row for row in rows if row.task.startswith(f"{axis} {value} ")]
        if own:
            found[str(value)] = differences(Matrix.of(own, METHODS))
    return found


def distances(rows: Sequence[Row]) -> list[tuple[str, float, float, float]]:
    """For each task: the probe's accuracy, and BioTune's lead over full fine-tuning and it."""
    full = "full@budget" if any(row.method == "full@budget" for row in rows) else "full"
    matrix = Matrix.of(rows, ("biotune", full, "linear-probe"))
    lines = [
        (task, float(probe), float(ours - full), float(ours - probe))
        for task, (ours, full, probe) in zip(matrix.tasks, matrix.means, strict=True)
    ]
    return sorted(lines, key=lambda line: line[1])


def page(rows: Sequence[Row], far: Sequence[tuple[str, float, float, float]]) -> str:
    """The page as Markdown."""
    parts: list[Any] = [
        Markdown("""
            # When does a search pay?

            BioTune minus full fine-tuning and minus the probe, each with as many members, in points
            of macro-accuracy on the test, with 95 % intervals of a bootstrap over tasks and
            repeats. Development data: choices were made on them.

            ![four panels](../images/pays.svg)
        """)
    ]
    for axis in AXES:
        lines = [
            (
                value,
                *(
                    f"{100 * d.value:+z.1f} ({100 * d.low:+z.1f} to {100 * d.high:+z.1f})"
                    for d in found
                ),
                *_costs(rows, f"{axis} {value} "),
            )
            for value, found in leads(rows, axis).items()
        ]
        if lines:
            head = (TITLES[axis], *(f"minus {words}" for words in RIVALS.values()))
            costs = ("passes of BioTune", "of full fine-tuning")
            parts += [Heading(f"By {axis}"), Table((*head, *costs), lines)]
    if far:
        lines = [(task, f"{x:.3f}", *(f"{100 * d:+z.1f}" for d in both)) for task, x, *both in far]
        head = ("task", "the probe has", *(f"minus {words}" for words in RIVALS.values()))
        parts += [Heading("By how well the frozen network does"), Table(head, lines)]
    parts.append(Markdown("Made by `python studies/benchmarks/pays.py` of `studies/pays.csv`."))
    return markdown(parts)


def _costs(rows: Sequence[Row], task: str) -> list[str]:
    own = [row for row in rows if row.task.startswith(task)]
    return [
        f"{np.mean([row.passes for row in own if row.method == method]):,.0f}"
        for method in METHODS[:2]
    ]


def draw(rows: Sequence[Row], far: Sequence[tuple[str, float, float, float]], target: Path) -> None:
    """Draw the figure: a panel an axis, and one of the distance from ImageNet."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "pays", "font.size": 9}  # equal data, equal files
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    for panel, axis in zip(panels.flat, AXES, strict=False):
        found = leads(rows, axis)
        for i, words in enumerate(RIVALS.values()):
            ends = [
                [100 * (d[i].value - d[i].low), 100 * (d[i].high - d[i].value)]
                for d in found.values()
            ]
            values = [100 * d[i].value for d in found.values()]
            if values:
                panel.errorbar(
                    [k + 0.06 * i for k in range(len(values))],
                    values,
                    np.transpose(ends),
                    marker="o",
                    capsize=3,
                    label=f"minus {words}",
                )
        panel.set_xticks(range(len(found)), list(found))
        panel.set_xlabel(TITLES[axis])
    last = panels.flat[3]
    for i, words in enumerate(RIVALS.values()):
        last.plot(
            [x for _, x, *_ in far], [100 * one[2 + i] for one in far], "o", label=f"minus {words}"
        )
    last.set_xlabel("macro-accuracy of the probe")
    for panel in panels.flat:
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set_ylabel("points that BioTune is ahead")
        if panel.get_legend_handles_labels()[0]:
            panel.legend(loc="best", frameon=False)
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure, where folders are given; else write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trials", type=int, help="default: the effort's")
    parser.add_argument("--made", type=Path, default=Path("evidence-data"))
    parser.add_argument("--storage", default="sqlite:///pays.db")
    args = parser.parse_args()
    if args.folders:
        measure(args)
        return
    table = ROOT / "studies" / "pays.csv"
    if not table.exists():
        print(f"{table} is not there yet: give the folders of the data")
        return
    rows = read_csv(table)
    others = [ROOT / "studies" / f"evidence-{one}.csv" for one in ("development", "report")]
    known = [row for one in others if one.exists() for row in read_csv(one)]
    far = distances(known or [row for row in rows if row.task.startswith("size 200 ")])
    draw(rows, far, ROOT / "docs" / "images" / "pays.svg")
    (ROOT / "docs" / "benchmarks" / "pays.md").write_text(page(rows, far), encoding="utf-8")


if __name__ == "__main__":
    main()
