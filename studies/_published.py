"""The paper's own numbers, to be printed beside a run of its protocol."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np

from biotune_optuna.page.parts import Items, Table, Text, markdown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from biotune_optuna.compare.rows import Row

__all__ = ["DIFFERENCES", "PUBLISHED", "beside"]

PUBLISHED: Final[dict[str, dict[str, float]]] = {
    "biotune": {
        "flowers102": 91.68,
        "aircraft": 64.40,
        "isic2020": 82.90,
        "dtd": 69.27,
        "usps": 97.57,
        "cifar10": 96.09,
        "stl10": 97.50,
        "mnist": 99.13,
        "svhn": 95.85,
    },
    "full": {
        "flowers102": 85.33,
        "aircraft": 58.68,
        "isic2020": 78.91,
        "dtd": 68.03,
        "usps": 97.05,
        "cifar10": 95.65,
        "stl10": 97.33,
        "mnist": 98.96,
        "svhn": 96.08,
    },
    "linear-probe": {"flowers102": 82.72},
    "auto-rgn": {"flowers102": 85.5},
    "lora": {"flowers102": 86.01},
    "l1-sp": {"flowers102": 87.82},
    "l2-sp": {"flowers102": 85.29},
}
"""Test accuracy in percent of ResNet-50, as the README of the authors' repository states it."""

MODEL = "resnet50"

DIFFERENCES: Final = (
    "Every rival's rate is the best of five on validation images; the paper gives one rate.",
    "The score is macro-accuracy, the paper's accuracy; they differ where classes are unbalanced "
    "(ISIC 2020, SVHN, USPS).",
    "It is of the data's own test part, but of ISIC 2020, whose test labels are unpublished, of "
    "patients held out of its training images, others in each repeat.",
    "Frozen blocks are in evaluation mode, so that their BatchNorm statistics stay.",
    "Per-block rates reach the optimiser, and exploitation keeps the genes that it evaluated.",
    "Where data come without a validation part, 20 % of the training part are held out.",
    "The best three genomes are trained again on fresh seeds before one of them is tested.",
    "ImageNet weights are timm's default ones for the architecture.",
)
"""In what this project's run of the protocol differs from the published one."""


def beside(results: Iterable[Row]) -> str:
    """Return the paper's table and ours as Markdown, in percent.

    Args:
        results: Results of the paper's protocol.

    Returns:
        One line for each data set and method: the published accuracy, and ours for each
        architecture with the number of repeats; a dash where there is none.
    """
    ours: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in results:
        ours[row.data, row.method, row.model].append(100 * row.score)
    models = sorted({model for _, _, model in ours}, key=lambda name: (name != MODEL, name))
    methods = [*PUBLISHED, *sorted({m for _, m, _ in ours} - set(PUBLISHED))]
    data = [*PUBLISHED["biotune"], *sorted({d for d, _, _ in ours} - set(PUBLISHED["biotune"]))]
    rows = []
    for name in data:
        for method in methods:
            theirs = PUBLISHED.get(method, {}).get(name)
            values = [ours.get((name, method, model), []) for model in models]
            if theirs is None and not any(values):
                continue
            cells = ["–" if theirs is None else f"{theirs:.2f}"]
            cells += [f"{np.mean(v):.2f} (n = {len(v)})" if v else "–" for v in values]
            rows.append((name, method, *cells))
    head = ("data", "method", f"paper, {MODEL}", *(f"ours, {model}" for model in models))
    return markdown(
        [Table(head, rows, words=2), Text("Differences in protocol:"), Items(DIFFERENCES)]
    )
