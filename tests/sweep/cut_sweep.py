"""Which timm families can be trained on cached prefixes, and which fall back.

    python tests/sweep/cut_sweep.py --table docs/benchmarks/cuts.md

Takes the smallest architecture of each family (timm's module), asks for a checked cut behind every
second block, and trains one cached run beside an uncached one at the deepest cut that was accepted:
their losses must agree to rounding. A family without any cut trains without the cache. The exit
status is 1 if any loss differs or a family cannot be trained at all.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import timm
import torch

from biotune_optuna.errors import BioTuneError
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.models.blocks import model_blocks
from biotune_optuna.page.parts import Code, Heading, Markdown, Table, Text, markdown
from biotune_optuna.recipe import Recipe

COMMAND = "python tests/sweep/cut_sweep.py --table docs/benchmarks/cuts.md"
N, CLASSES = 8, 3
LARGEST = 20.0  # millions of parameters


class Images:
    """Noise images of one size."""

    n_classes = CLASSES

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(N, 3, size, size, generator=generator)
        self.numbers = torch.arange(N) % CLASSES

    def __len__(self) -> int:
        return N

    def batch(self, idx, *, augmentation="none", generator=None):
        return self.pixels[torch.as_tensor(idx)]

    def labels(self, idx):
        return self.numbers[torch.as_tensor(idx)]


def families(pattern: str) -> dict[str, tuple[int, str]]:
    """Module of timm -> parameters and name of its smallest architecture that matches."""
    found: dict[str, tuple[int, str]] = {}
    for name in timm.list_models(pattern):
        family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
        try:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=CLASSES)
        except Exception:  # noqa: BLE001 - the block sweep reports what cannot be built
            continue
        size = sum(p.numel() for p in model.parameters())
        found[family] = min(found.get(family, (size, name)), (size, name))
    return dict(sorted(found.items()))


def examine(name: str) -> str:
    """One cell of the table."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES)
    blocks = model_blocks(model)
    images = Images(model.default_cfg["input_size"][-1])
    losses, hits = [], 0
    settings = {"epochs": 1, "batch_size": 4, "patience": None}
    trainer = Trainer(model, blocks, images, TrainSettings(**settings), device="cpu")
    lengths = list(range(len(blocks) - 1, 0, -2))
    accepted = [length for length in lengths if trainer._prefixes._cut(length) is not None]
    if not accepted:
        return f"none of {len(lengths)}"
    recipe = Recipe.from_multipliers(
        blocks, [float(i >= accepted[0]) for i in range(len(blocks))], lr=1e-4
    )
    for budget in (512, 0):
        settings["prefix_cache_mb"] = budget
        trainer = Trainer(model, blocks, images, TrainSettings(**settings), device="cpu")
        result = trainer.fit(recipe, np.arange(N), seed=0)
        losses.append(result.epochs[0].train_loss)
        hits += result.cache_hits
        trainer.reset(0)
    assert hits == N
    if not np.isclose(*losses, rtol=1e-3):
        return f"WRONG: loss {losses[0]:.6f} cached, {losses[1]:.6f} not"
    return f"{len(accepted)} of {len(lengths)}"


def tried(name: str) -> str:
    """The same, whatever happens."""
    try:
        return examine(name)
    except BioTuneError as error:
        return f"refused: {error}".splitlines()[0][:90]
    except Exception as error:  # noqa: BLE001 - one family must not end the sweep
        return f"WRONG: {type(error).__name__}: {error}".splitlines()[0][:90]


def page(rows: dict[str, tuple[str, str]], largest: float, left_out: list[str]) -> str:
    """The sweep as a page of documentation."""
    cells = [cell for _, cell in rows.values()]
    whole = sum(cell.partition(" of ")[0] == cell.partition(" of ")[2] for cell in cells)
    nowhere = sum(cell.startswith("none") for cell in cells)
    return markdown(
        [
            Heading("Frozen prefixes that can be cached", 1),
            Markdown(
                f"The smallest architecture of each family of timm {timm.__version__}, of at most "
                f"{largest:g} million parameters: {len(rows)} families. Behind every second block "
                "the cut network's logits and gradients are compared with the whole one's, and at "
                "the deepest cut accepted one cached epoch is trained beside an uncached one; "
                "their losses must agree. Where a cut is refused, the next earlier one that agrees "
                "is taken; where all are, the network trains without the cache. "
                f"{whole} families are cut wherever it was tried, {nowhere} nowhere."
            ),
            Text("Command that made this page:"),
            Code(f"$ {COMMAND}", "console"),
            Table(
                ("family", "architecture", "cuts accepted"),
                [
                    (Markdown(family), Markdown(f"`{name}`"), Markdown(cell))
                    for family, (name, cell) in rows.items()
                ],
                words=3,
            ),
            Markdown(f"Left out, as their smallest is larger: {', '.join(left_out) or 'none'}."),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, help="markdown file to write")
    parser.add_argument("--filter", default="", help="architectures such as 'resnet*'")
    parser.add_argument("--largest", type=float, default=LARGEST, help="millions of parameters")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: dict[str, tuple[str, str]] = {}
    left_out = []
    for family, (size, name) in families(options.filter).items():
        if size > options.largest * 1e6:
            left_out.append(family)
            continue
        rows[family] = (name, tried(name))
        print(family, *rows[family], flush=True)
    if options.table:
        options.table.write_text(page(rows, options.largest, left_out), encoding="utf-8")
        print(f"wrote {options.table}")
    return int(any(cell.startswith("WRONG") for _, cell in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
