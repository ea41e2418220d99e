"""Labelled images in, splits, and batches on the device."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biotune_optuna.data.cache_dir import default_cache_dir
    from biotune_optuna.data.decode import decode_image, preprocess, read_image
    from biotune_optuna.data.loaders import AUGMENTATIONS, DeviceImages, Normalize, augment
    from biotune_optuna.data.pixels import PixelStore
    from biotune_optuna.data.sources.open import ImageSource, open_source
    from biotune_optuna.data.splits import Duplicate, Splits, make_splits

__all__ = [
    "AUGMENTATIONS",
    "DeviceImages",
    "Duplicate",
    "ImageSource",
    "Normalize",
    "PixelStore",
    "Splits",
    "augment",
    "decode_image",
    "default_cache_dir",
    "make_splits",
    "open_source",
    "preprocess",
    "read_image",
]

_HOME = {
    "AUGMENTATIONS": "loaders",
    "DeviceImages": "loaders",
    "Duplicate": "splits",
    "ImageSource": "sources",
    "Normalize": "loaders",
    "PixelStore": "pixels",
    "Splits": "splits",
    "augment": "loaders",
    "decode_image": "decode",
    "default_cache_dir": "cache_dir",
    "make_splits": "splits",
    "open_source": "sources",
    "preprocess": "decode",
    "read_image": "decode",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
