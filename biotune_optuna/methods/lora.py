"""LoRA as a rival, through the optional `peft` package."""

from __future__ import annotations

import copy
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from biotune_optuna.errors import ModelError
from biotune_optuna.finetune.device import ONE_AT_A_TIME, full_precision, isolated_randomness
from biotune_optuna.finetune.prefix.cache import PrefixCache
from biotune_optuna.finetune.prefix.cut import close
from biotune_optuna.finetune.tactic import Tactic
from biotune_optuna.methods.base import RateMethod, base
from biotune_optuna.models.states import fresh_eval
from biotune_optuna.recipe import BlockRecipe, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from biotune_optuna.finetune.results import RunResult
    from biotune_optuna.finetune.trainer import Trainer
    from biotune_optuna.methods.base import Setting

__all__ = ["LoRA", "adaptable_layers", "with_adapters"]

_log = logging.getLogger("biotune_optuna.finetune")

_BASE = ".base_layer."  # where peft keeps the layer that it adapts
_STANDARDISED = "StdConv2d"  # in the names of timm's convolutions that standardise their weight
_CHECKED_IMAGES = 4
_LIKENESS = 1e-2  # rounding stays far below, an adapter that is merged wrongly does not


@dataclass(frozen=True, slots=True)
class LoRA(RateMethod):
    """Low-rank adaptation (Hu et al., 2021, Sec. 4.1).

    Every ungrouped convolution and every linear layer outside the head gets an adapter
    ``alpha / r * B A`` beside its frozen weight, with B zero at first; adapters and head train.
    Grouped convolutions stay frozen, since `peft` cannot merge their adapters, and so do those that
    standardise their weight (BiT, NFNets): added to it, an adapter does not do what it did beside
    it. An adapter does nothing where a network takes the layer's weight without calling the layer
    (the qkv of Swin V2 and BEiT); it is not counted among what trains. Afterwards the adapters are
    merged, so that the trainer's model is the tuned network in its plain form.

    Attributes:
        name: The name users type.
        rank: Rank of the adapters, r.
        alpha: Scale of the adapters.
    """

    rank: int = 8
    alpha: int = 8

    def run(
        self,
        trainer: Trainer,
        train_idx: ArrayLike,
        val_idx: ArrayLike | None = None,
        *,
        setting: Setting,
        seed: int,
        **options: Any,
    ) -> RunResult:
        """Trains once; see `Method.run`.

        Raises:
            ModelError: If `peft` is not installed, no layer can be adapted, or the merged network
                is another than the one that was trained.
        """
        with ONE_AT_A_TIME:
            trainer.reset(seed)
            adapted = with_adapters(trainer, rank=self.rank, alpha=self.alpha, seed=seed)
            recipe = _recipe(adapted, trainer, **base(setting))
            inner = type(trainer)(
                adapted,
                recipe.blocks,
                trainer.images,
                trainer.settings,
                device=trainer.device,
                cache=PrefixCache(0),
            )
            result = inner.fit(recipe, train_idx, val_idx, seed=seed, tactic=_Whole(), **options)
            # the share that trains is of the network itself, adapters not counted in the whole
            result.total_parameters = sum(p.numel() for p in trainer.model.parameters())
            result.trainable_parameters -= _idle_parameters(adapted)
            _merge_checked(trainer, adapted, np.asarray(train_idx)[:_CHECKED_IMAGES])
        return result


class _Whole(Tactic):
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

    Raises:
        ModelError: If `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ModelError(
            "method 'lora' needs the package peft: pip install 'biotune-optuna[lora]'"
        ) from None
    # A list would be matched by the ends of names, and "conv1" is the end of many.
    whole_names = "|".join(map(re.escape, adaptable_layers(trainer)))
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=whole_names)
    with isolated_randomness(seed, torch.device("cpu")):
        adapted: nn.Module = inject_adapter_in_model(config, copy.deepcopy(trainer.model))
    return adapted


def merge_into(model: nn.Module, adapted: nn.Module) -> None:
    """Merge adapters into their layers and copies all values into the plain network."""
    for module in _adapted_layers(adapted):
        module.merge()
    values = {
        name.replace(_BASE, "."): tensor
        for name, tensor in (*adapted.named_parameters(), *adapted.named_buffers())
        if ".lora_" not in name
    }
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor.copy_(values[name])


def _idle_parameters(adapted: nn.Module) -> int:
    """How many parameters belong to adapters that no gradient has reached: B is still zero."""
    adapters = {n: p for n, p in adapted.named_parameters() if ".lora_" in n}
    idle = [n for n, p in adapters.items() if ".lora_B." in n and not p.any()]
    if idle:
        layers = ", ".join(name.partition(".lora_")[0] for name in idle)
        _log.info("lora's adapters beside these layers have never acted: %s", layers)
    pairs = [name for b in idle for name in (b, b.replace(".lora_B.", ".lora_A."))]
    return sum(adapters[name].numel() for name in pairs)


def _merge_checked(trainer: Trainer, adapted: nn.Module, idx: NDArray[np.int64]) -> None:
    """Merge adapters into a trainer's model and sees whether it still gives the same scores.

    Raises:
        ModelError: If it does not.
    """
    few = trainer.images.batch(idx)
    before = _logits(adapted, few)
    merge_into(trainer.model, adapted)
    after = _logits(trainer.model, few)
    if torch.isfinite(before).all() and not close(before, after, _LIKENESS):
        raise ModelError(
            f"lora cannot train {type(trainer.model).__name__}: with its adapters merged it gives "
            "other scores than with them beside; choose another method or model"
        )


def _logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits (n, C) in eval mode and full precision."""
    fresh_eval(model)
    with torch.no_grad(), full_precision(images.device):
        logits: torch.Tensor = model(images)
    return logits


def _adapted_layers(model: nn.Module) -> Iterator[Any]:
    from peft.tuners.lora import LoraLayer

    return (module for module in model.modules() if isinstance(module, LoraLayer))


def _recipe(adapted: nn.Module, trainer: Trainer, *, lr: float, weight_decay: float) -> Recipe:
    """Adapters and head train, the network stays frozen."""
    head_names = set(trainer.blocks[-1].parameter_names)
    head_buffers = set(trainer.blocks[-1].buffer_names)
    parts: dict[str, list[str]] = {"network": [], "adapters": [], "head": []}
    for name, _ in adapted.named_parameters():
        part = "adapters" if ".lora_" in name else "head" if name in head_names else "network"
        parts[part].append(name)
    buffers = [name for name, _ in adapted.named_buffers()]
    kept = {
        "network": [name for name in buffers if name not in head_buffers],
        "head": [name for name in buffers if name in head_buffers],
    }
    blocks = tuple(
        BlockRecipe(part, float(part != "network"), tuple(names), tuple(kept.get(part, ())))
        for part, names in parts.items()
    )
    return Recipe(blocks, lr=lr, weight_decay=weight_decay)
