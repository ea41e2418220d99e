"""Images per second of full fine-tuning against a bare hand-written loop of the same recipe.

    python studies/benchmarks/throughput.py

The bare loop has the same good manners (channels_last, fused AdamW, uint8 pixels in memory) and no
more: no schedule, no checks, no accounting, no blocks. Both train on the same images in turns.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from _engine_common import (
    MEAN,
    STD,
    interleaved,
    made_up_images,
    make_model,
    per_epoch,
    per_epoch_of_run,
    ratio,
    setting,
    unit,
)

from biotune_optuna.finetune.trainer import Trainer, TrainSettings
from biotune_optuna.models.blocks import model_blocks
from biotune_optuna.page.parts import Table
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from biotune_optuna.data.loaders import DeviceImages

EPOCHS = 3  # of each turn; the first is not timed


class BareLoop:
    """What one writes by hand for one task."""

    def __init__(self, name: str, images: DeviceImages, batch_size: int, device: str) -> None:
        self.model = make_model(name).to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, weight_decay=0.0, fused=True
        )
        everything = torch.arange(len(images))
        self.pixels = images.raw(everything).permute(0, 2, 3, 1).contiguous()
        self.labels = images.labels(everything)
        self.batch_size = batch_size
        self.mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(STD, device=device).view(1, 3, 1, 1)
        self.amp = device != "cpu"
        self.device = device

    def epoch(self) -> None:
        self.model.train()
        for idx in torch.randperm(len(self.pixels), device=self.device).split(self.batch_size):
            images = self.pixels[idx].permute(0, 3, 1, 2).float().div_(255)
            images = images.sub_(self.mean).div_(self.std)
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.amp):
                logits = self.model(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), self.labels[idx])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()


@click.command()
@click.option("--models", default="resnet18,tf_efficientnet_lite0", show_default=True)
@click.option("--size", default=96, show_default=True, help="Side of the images in pixels.")
@click.option("--images", "n", default=256, show_default=True, help="Images of an epoch.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--repeats", default=9, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
def main(  # noqa: PLR0917 - one argument an option
    models: str, size: int, n: int, batch_size: int, repeats: int, device: str, threads: int
) -> None:
    """Prints a Markdown table."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = device != "cpu"  # as the engine does for full batches
    rows = []
    for name in models.split(","):
        images = made_up_images(n, size, device)
        bare = BareLoop(name, images, batch_size, device)
        model = make_model(name)
        settings = TrainSettings(epochs=EPOCHS, batch_size=batch_size, patience=None)
        trainer = Trainer(model, model_blocks(model), images, settings, device=device)
        recipe = Recipe.full(trainer.blocks, lr=1e-3)
        seconds = interleaved(
            {
                "bare": lambda bare=bare: per_epoch(bare.epoch, EPOCHS, device),
                "engine": lambda t=trainer, r=recipe: per_epoch_of_run(
                    t, r, np.arange(n), EPOCHS, device
                ),
            },
            repeats,
        )
        middle, low, high = ratio(seconds["bare"], seconds["engine"])
        speeds = [n / statistics.median(seconds[kind]) for kind in ("bare", "engine")]
        rows.append(
            [name, *(f"{s:.0f}" for s in speeds), f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]
        )
    how = f"{size} px, batches of {batch_size}, {repeats} rounds, {unit(device)}"
    print(f"{setting(device)}; {how}\n")
    head = ("model", "bare loop, images/s", "engine, images/s", "ratio", "quartiles")
    print(Table(head, rows))


if __name__ == "__main__":
    main()
