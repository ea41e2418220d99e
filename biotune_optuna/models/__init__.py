"""Models: any timm network as blocks, with pre-trained weights from wherever they can be had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biotune_optuna.models.blocks import Block, model_blocks
    from biotune_optuna.models.weights import LoadedModel, create_model, reset_head

__all__ = ["Block", "LoadedModel", "create_model", "model_blocks", "reset_head"]

DEFAULT_MAX_BLOCKS = 16
MIN_MAX_BLOCKS = 3
"""Bounds of ``max_blocks``, here for those who need not load PyTorch to know them."""

_HOMES = {
    "Block": "blocks",
    "LoadedModel": "weights",
    "create_model": "weights",
    "model_blocks": "blocks",
    "reset_head": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
