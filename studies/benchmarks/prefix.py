"""Seconds per epoch as the frozen prefix grows, beside the physical floor.

    python studies/benchmarks/prefix.py

The floor is the suffix alone, written by hand for each network as a plain sequence of its layers
and trained on features that are there: gather, forward, backward, optimiser step. The engine is
measured with its cache and without. Everything is a ratio to full fine-tuning in the same round.
"""

from __future__ import annotations

import statistics
from itertools import chain
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from _engine_common import (
    interleaved,
    made_up_images,
    make_model,
    per_epoch,
    per_epoch_of_run,
    ratio,
    setting,
    unit,
)
from torch import nn

from biotune_optuna.finetune.trainer import Trainer, TrainSettings
from biotune_optuna.models.blocks import model_blocks
from biotune_optuna.page.parts import Table
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from biotune_optuna.data.loaders import DeviceImages

EPOCHS = 3  # of each turn; the first is not timed
PROBE_EPOCHS = 40  # where only the head is left and an epoch takes milliseconds


def layers_by_block(name: str, model: nn.Module) -> list[list[nn.Module]]:
    """The layers of a network in the order they run, one list a block."""
    if name.startswith("resnet"):
        return [
            [model.conv1, model.bn1, model.act1, model.maxpool],
            [model.layer1],
            [model.layer2],
            [model.layer3],
            [model.layer4, model.global_pool],
            [model.fc],
        ]
    if "efficientnet" in name:
        stages = [[stage] for stage in model.blocks]
        stages[-1] += [model.conv_head, model.bn2, model.global_pool]
        return [[model.conv_stem, model.bn1], *stages, [model.classifier]]
    raise click.BadParameter(f"{name}: only resnet and efficientnet are written out by hand here")


class Floor:
    """The suffix alone, by hand."""

    def __init__(self, name: str, length: int, images: DeviceImages, batch_size: int) -> None:
        model = make_model(name).to(images.device, memory_format=torch.channels_last)
        layers = layers_by_block(name, model)
        prefix = nn.Sequential(*chain(*layers[:length])).eval()
        self.suffix = nn.Sequential(*chain(*layers[length:])).train()
        everything = torch.arange(len(images))
        with torch.no_grad():
            features = torch.cat([prefix(images.batch(i)) for i in everything.split(64)])
        self.channels_last = features.ndim == 4
        self.features = (features.permute(0, 2, 3, 1) if self.channels_last else features).clone()
        self.features = self.features.contiguous()
        self.labels = images.labels(everything)
        self.batch_size = batch_size
        self.optimizer = torch.optim.AdamW(
            self.suffix.parameters(), lr=1e-3, weight_decay=0.0, fused=True
        )

    def epoch(self) -> None:
        order = torch.randperm(len(self.features), device=self.features.device)
        for idx in order.split(self.batch_size):
            batch = self.features.index_select(0, idx)
            if self.channels_last:
                batch = batch.permute(0, 3, 1, 2)
            loss = nn.functional.cross_entropy(self.suffix(batch), self.labels[idx])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()


def turns(
    name: str, images: DeviceImages, batch_size: int, lengths: list[int]
) -> dict[str, Callable[[], float]]:
    """What is timed: full fine-tuning, and for each length floor, cached and uncached."""
    device, idx = images.device.type, np.arange(len(images))
    trainers = {}
    for kind, megabytes in (("cached", 4096), ("uncached", 0)):
        model = make_model(name)
        settings = TrainSettings(
            epochs=EPOCHS,
            batch_size=batch_size,
            patience=None,
            prefix_cache_mb=megabytes,
            amp="off",
        )
        trainers[kind] = Trainer(model, model_blocks(model), images, settings, device=device)

    n_blocks = len(trainers["cached"].blocks)

    def epochs(length: int) -> int:
        return PROBE_EPOCHS if length == n_blocks - 1 else EPOCHS

    def run(kind: str, length: int) -> float:
        trainer = trainers[kind]
        multipliers = [0.0] * length + [1.0] * (len(trainer.blocks) - length)
        recipe = Recipe.from_multipliers(trainer.blocks, multipliers, lr=1e-3)
        count = epochs(length) if kind == "cached" else EPOCHS
        return per_epoch_of_run(trainer, recipe, idx, count, device)

    found: dict[str, Callable[[], float]] = {"full": lambda: run("uncached", 0)}
    for length in lengths:
        floor = Floor(name, length, images, batch_size)
        found[f"floor {length}"] = lambda f=floor, n=length: per_epoch(f.epoch, epochs(n), device)
        for kind in trainers:
            found[f"{kind} {length}"] = lambda k=kind, n=length: run(k, n)
    return found


def row(seconds: dict[str, list[float]], length: int, n_blocks: int) -> list[str]:
    """One line of the table."""
    cached, floor = seconds[f"cached {length}"], seconds[f"floor {length}"]
    shares = (
        ratio(seconds[f"{kind} {length}"], seconds["full"])[0]
        for kind in ("uncached", "cached", "floor")
    )
    middle, low, high = ratio(cached, floor)
    return [
        f"{length} of {n_blocks}",
        *(f"{share:.4f}" for share in shares),
        f"{middle:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{1000 * statistics.median(floor):.1f}",
    ]


@click.command()
@click.option("--models", default="resnet18,tf_efficientnet_lite0", show_default=True)
@click.option("--size", default=96, show_default=True, help="Side of the images in pixels.")
@click.option("--images", "n", default=128, show_default=True, help="Images of an epoch.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--frozen", default="", help="Lengths of the prefix, as 2,5; default all.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
def main(  # noqa: PLR0917 - one argument an option
    models: str,
    size: int,
    n: int,
    batch_size: int,
    frozen: str,
    repeats: int,
    device: str,
    threads: int,
) -> None:
    """Prints one Markdown table a model."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = device != "cpu"  # as the engine does for full batches
    for name in models.split(","):
        images = made_up_images(n, size, device)
        n_blocks = len(layers_by_block(name, make_model(name)))
        lengths = [int(f) for f in frozen.split(",") if f] or list(range(1, n_blocks))
        seconds = interleaved(turns(name, images, batch_size, lengths), repeats)
        how = f"{size} px, {n} images, batches of {batch_size}, {repeats} rounds, {unit(device)}"
        full = statistics.median(seconds["full"])
        print(f"\n{name}; {setting(device)}; {how}; full fine-tuning {full:.2f} s an epoch\n")
        header = ["frozen", "uncached / full", "cached / full", "floor / full"]
        header += ["cached / floor", "quartiles", "floor, ms"]
        print(Table(header, [row(seconds, n, n_blocks) for n in lengths]))


if __name__ == "__main__":
    main()
