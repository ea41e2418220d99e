"""Stochastic depth (Huang et al., 2016) for one run, in networks that were made without it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from timm.layers.drop import DropPath
from torch import nn

if TYPE_CHECKING:
    from torch.nn import Module


_NAMES = ("drop_path", "drop_path1", "drop_path2", "drop_path3")


def places(model: Module) -> list[tuple[Module, str]]:
    """Return where a timm network leaves out a residual branch, or would, from the input on.

    Args:
        model: The network.

    Returns:
        Modules, each with the name of the part that is an identity, a `DropPath` or nothing yet.
    """
    return [
        (module, name)
        for module in model.modules()
        for name in _NAMES
        if hasattr(module, name) and _may_drop(getattr(module, name))
    ]


def _may_drop(part: object) -> bool:
    return part is None or isinstance(part, (nn.Identity, DropPath))


@contextlib.contextmanager
def dropping(model: Module, rate: float) -> Iterator[None]:
    """Let residual branches be left out in training, and put back what was there.

    Args:
        model: A timm network; nothing happens in one without such branches.
        rate: Chance at the last branch; it rises to it evenly from 0 at the first. 0 changes
            nothing.
    """
    found = places(model) if rate else []
    before = [getattr(module, name) for module, name in found]
    try:
        for (module, name), chance in zip(found, np.linspace(0.0, rate, len(found)), strict=True):
            setattr(module, name, DropPath(float(chance)))
        yield
    finally:
        for (module, name), part in zip(found, before, strict=True):
            if part is None:  # else it would be registered as a part that is nothing
                delattr(module, name)
            setattr(module, name, part)
