"""A tiny real task: random images whose classes differ in brightness, and timm's small networks.

They are on the device that ``pytest --device`` names, by default the CPU.
"""

from __future__ import annotations

import os

import numpy as np
import timm
import torch
from torch import nn

from biotune_optuna.finetune.hooks import Hooks
from biotune_optuna.finetune.trainer import Trainer, TrainSettings
from biotune_optuna.models.blocks import model_blocks
from biotune_optuna.recipe import Recipe

DEVICE = os.environ.get("BIOTUNE_TEST_DEVICE", "cpu")
# what makes runs on a GPU equal to the bit, as those on a CPU are by themselves, and as exact
SETTINGS = {} if DEVICE == "cpu" else {"deterministic": True, "amp": "off"}


class TensorImages:
    """The least that a trainer asks of images: tensors in memory."""

    def __init__(self, pixels, labels, n_classes):
        self.pixels = pixels.to(DEVICE)
        self._labels = torch.as_tensor(labels, dtype=torch.int64).to(DEVICE)
        self.n_classes = n_classes
        self.served = []

    def __len__(self):
        return len(self.pixels)

    def batch(self, idx, *, augmentation="none", generator=None):
        self.served.append(np.array(idx))
        batch = self.pixels[torch.as_tensor(idx).to(self.pixels.device)].clone()
        if augmentation == "flip":
            mirrored = (torch.rand(len(batch), generator=generator) < 0.5).to(batch.device)
            batch[mirrored] = batch[mirrored].flip(3)
        return batch

    def labels(self, idx):
        return self._labels[torch.as_tensor(idx).to(self._labels.device)]


def make_images(n=60, n_classes=3, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % n_classes
    pixels = torch.randn(n, 3, size, size, generator=generator)
    # each class lights up one colour
    pixels[torch.arange(n), labels % 3] += 1.5
    return TensorImages(pixels, labels, n_classes)


def make_model(name="test_resnet", n_classes=3, **kwargs):
    if name == "test_resnet":
        # timm starts residual branches at zero, where nothing inside them has a gradient
        kwargs.setdefault("zero_init_last", False)
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=n_classes, **kwargs)
    torch.random.set_rng_state(state)
    for path, parameter in model.named_parameters():
        if path.endswith("conv3.gain"):  # as in NFNets
            nn.init.ones_(parameter)
    return model, model_blocks(model)


def make_trainer(images, name="test_resnet", model_options=None, **settings):
    model, blocks = make_model(name, n_classes=images.n_classes, **(model_options or {}))
    defaults = {"epochs": 3, "batch_size": 16, "patience": None, **SETTINGS}
    return Trainer(model, blocks, images, TrainSettings(**{**defaults, **settings}), device=DEVICE)


def recipe_for(trainer, multipliers, **options):
    multipliers = [*multipliers, *[1.0] * (len(trainer.blocks) - len(multipliers))]
    return Recipe.from_multipliers(trainer.blocks, multipliers, **{"lr": 1e-3, **options})


def state_of(trainer):
    both = (*trainer.model.named_parameters(), *trainer.model.named_buffers())
    return {name: t.detach().clone() for name, t in both}


def curve(result):
    return [(r.epoch, r.train_loss, r.score) for r in result.epochs]


class Spy(Hooks):
    """Reads the run at the start of each epoch."""

    def __init__(self, look):
        self.look = look
        self.seen = []

    def before_epoch(self, run, epoch):
        self.seen.append(self.look(run))
