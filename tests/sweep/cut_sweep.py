"""Which timm families can be trained on cached prefixes, and which fall back.

    python tests/sweep/cut_sweep.py [--largest MILLIONS] [--only FAMILY,...] [--table FILE]

Takes the smallest architecture of each family (timm's module), asks for a checked cut behind every
second block, and trains one cached run beside an uncached one at the deepest cut that was accepted:
their losses must agree to rounding. A family without any cut trains without the cache.
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
from biotune_optuna.finetune import Trainer, TrainSettings
from biotune_optuna.models import model_blocks
from biotune_optuna.recipe import Recipe

N, CLASSES = 8, 3


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


def families() -> dict[str, str]:
    """Module of timm -> its architecture with the fewest parameters."""
    found: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
        try:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=CLASSES)
        except Exception:  # noqa: BLE001 - the block sweep reports what cannot be built
            continue
        size = sum(p.numel() for p in model.parameters())
        if family not in found or size < found[family][0]:
            found[family] = (size, name)
    return {family: name for family, (_, name) in sorted(found.items())}


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
        return f"falls back at all {len(lengths)}"
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
    return f"{len(accepted)} of {len(lengths)} cuts"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=float, default=20.0, help="millions of parameters")
    parser.add_argument("--only", default="", help="families, separated by commas")
    parser.add_argument("--table", type=Path, help="file to write the table to")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = ["| family | architecture | cached prefix |", "|---|---|---|"]
    wrong = 0
    for family, name in families().items():
        if options.only and family not in options.only.split(","):
            continue
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=CLASSES)
        if sum(p.numel() for p in model.parameters()) > options.largest * 1e6:
            continue
        try:
            found = examine(name)
        except BioTuneError as error:
            found = f"refused: {error}"[:90]
        wrong += found.startswith("WRONG")
        lines.append(f"| {family} | `{name}` | {found} |")
        print(lines[-1], flush=True)
    if options.table:
        options.table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
