"""LoRA: adapters of low rank beside frozen layers (Hu et al., 2021), by the optional `peft`."""

from __future__ import annotations

import copy
import dataclasses
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from biotune_optuna.errors import ModelError
from biotune_optuna.finetune.hooks import Hooks
from biotune_optuna.methods.base import Method, lr_and_decay
from biotune_optuna.recipe import BlockRecipe, Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from biotune_optuna.finetune.results import RunResult
    from biotune_optuna.finetune.trainer import Trainer
    from biotune_optuna.methods.base import Setting, Task

_log = logging.getLogger("biotune_optuna.finetune")

_BASE = ".base_layer."  # where peft keeps the layer that it adapts
_STANDARDISED = "StdConv2d"  # in the names of timm's convolutions that standardise their weight


@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """Low-rank adaptation (Hu et al., 2021, Sec. 4.1).

    Every ungrouped convolution and every linear layer outside the head gets an adapter
    ``alpha / r * B A`` beside its frozen weight, with B zero at first; adapters and head train.
    Grouped convolutions stay frozen, since `peft` cannot merge their adapters, and so do those that
    standardise their weight (BiT, NFNets): added to it, an adapter does not do what it did beside
    it. An adapter does nothing where a network takes the layer's weight without calling the layer
    (the qkv of Swin V2 and BEiT); it is not counted among what trains. Afterwards the adapters are
    merged, so that the trainer's model is the tuned network in its plain form.

    Attributes:
        rank: Rank of the adapters, r; more than 8 brings nothing in the paper (Sec. 7.2).
        alpha: Scale of the adapters; equal to the rank, so that their factor is 1.
    """

    rank: int = 8
    alpha: int = 8

    def train(self, task: Task, setting: Setting) -> RunResult:
        """Train adapters in a copy of the network, and merge them into the trainer's own.

        Raises:
            ModelError: If no layer can be adapted, or the merged network is another than the one
                that was trained.
        """
        from biotune_optuna.finetune.prefix.cache import PrefixCache

        trainer = task.trainer
        trainer.reset(task.seed)
        adapted = with_adapters(trainer, rank=self.rank, alpha=self.alpha, seed=task.seed)
        recipe = _recipe(adapted, trainer, **lr_and_decay(setting))
        given = (adapted, recipe.blocks, trainer.images, trainer.settings)
        inner = type(trainer)(*given, device=trainer.device, cache=PrefixCache(0))
        result = dataclasses.replace(task, trainer=inner).fit(recipe, _Whole())
        # the share that trains is of the network itself, adapters not counted in the whole
        result.total_parameters = sum(p.numel() for p in trainer.model.parameters())
        result.trainable_parameters -= _idle_parameters(adapted)
        _merge_checked(task, adapted)
        return result


class _Whole(Hooks):
    """Runs the whole network: adapters sit in its very first layers."""

    prefix_is_fixed = False


def adaptable_layers(trainer: Trainer) -> list[str]:
    """Paths of the layers that get adapters.

    These are the linear layers and the ungrouped, undilated convolutions outside the last block,
    but for those that standardise their weight. (peft's adapter beside a dilated convolution is not
    dilated, and its output has another size.)

    Raises:
        ModelError: If there is none.
    """
    from torch import nn

    head = tuple(trainer.blocks[-1].parameter_names)
    found = [
        path
        for path, module in trainer.model.named_modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.groups == 1 and module.dilation == (1, 1))
        if _STANDARDISED not in type(module).__name__ and f"{path}.weight" not in head
    ]
    if not found:
        raise ModelError("lora found no layer before the head that it can adapt")
    return found


def with_adapters(trainer: Trainer, *, rank: int, alpha: int, seed: int) -> nn.Module:
    """Return a copy of a trainer's model with adapters beside its layers.

    Args:
        trainer: Its model is left as it is.
        rank: Rank of the adapters.
        alpha: Their scale; the factor is ``alpha / rank``.
        seed: Seed of the adapters' first values.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    from biotune_optuna.finetune.device import isolated_randomness

    # A list would be matched by the ends of names, and "conv1" is the end of many.
    whole_names = "|".join(map(re.escape, adaptable_layers(trainer)))
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=whole_names)
    with isolated_randomness(seed, torch.device("cpu")):
        adapted: nn.Module = inject_adapter_in_model(config, copy.deepcopy(trainer.model))
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            # autocast casts for each adapter anyway; peft would first cast the other way
            module.cast_input_dtype_enabled = False
    return adapted


def merge_into(model: nn.Module, adapted: nn.Module) -> None:
    """Merge adapters into their layers and copy all values into the plain network."""
    from peft.tuners.lora import LoraLayer

    from biotune_optuna.finetune.device import full_precision
    from biotune_optuna.models.states import all_tensors, copy_into

    with full_precision(next(model.parameters()).device):
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                module.merge()
    values = {
        name.replace(_BASE, "."): tensor
        for name, tensor in all_tensors(adapted).items()
        if ".lora_" not in name
    }
    copy_into(model, values)


def _idle_parameters(adapted: nn.Module) -> int:
    """How many parameters belong to adapters that no gradient has reached: B is still zero."""
    adapters = {n: p for n, p in adapted.named_parameters() if ".lora_" in n}
    idle = [n for n, p in adapters.items() if ".lora_B." in n and not p.any()]
    if idle:
        layers = ", ".join(name.partition(".lora_")[0] for name in idle)
        _log.info("lora's adapters beside these layers have never acted: %s", layers)
    pairs = [name for b in idle for name in (b, b.replace(".lora_B.", ".lora_A."))]
    return sum(adapters[name].numel() for name in pairs)


def _merge_checked(task: Task, adapted: nn.Module) -> None:
    """Merge adapters into a trainer's model; refuse one that then gives other scores."""
    import numpy as np

    from biotune_optuna.finetune.prefix.cut import ALIKE, CHECKED_IMAGES, close

    trainer = task.trainer
    few = trainer.images.batch(np.asarray(task.train_idx)[:CHECKED_IMAGES])
    before = _logits(adapted, few)
    merge_into(trainer.model, adapted)
    after = _logits(trainer.model, few)
    if before.isfinite().all() and not close(before, after, ALIKE):
        raise ModelError(
            f"lora cannot train {type(trainer.model).__name__}: with its adapters merged it gives "
            "other scores than with them beside; choose another method or model"
        )


def _logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits (n, C) in eval mode and full precision."""
    import torch

    from biotune_optuna.finetune.device import full_precision
    from biotune_optuna.models.states import fresh_eval

    fresh_eval(model)
    with torch.no_grad(), full_precision(images.device):
        logits: torch.Tensor = model(images)
    return logits


def _recipe(adapted: nn.Module, trainer: Trainer, *, lr: float, weight_decay: float) -> Recipe:
    """Adapters and head train, the network stays frozen."""
    head = trainer.blocks[-1]
    in_head = {*head.parameter_names, *head.buffer_names}

    def part_of(name: str) -> str:
        return "adapters" if ".lora_" in name else "head" if name in in_head else "network"

    blocks = tuple(
        BlockRecipe(
            part,
            float(part != "network"),
            tuple(name for name, _ in adapted.named_parameters() if part_of(name) == part),
            tuple(name for name, _ in adapted.named_buffers() if part_of(name) == part),
        )
        for part in ("network", "adapters", "head")
    )
    return Recipe(blocks, lr=lr, weight_decay=weight_decay)


METHODS = (
    LoRA(
        name="lora",
        words="LoRA",
        equal_budget=True,
        package="peft",
        install="peft",
    ),
)
