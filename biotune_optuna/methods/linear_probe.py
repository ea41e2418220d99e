"""The linear probe: the head alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from biotune_optuna.methods.base import Method, Setting, lr_and_decay
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from biotune_optuna.recipe import BlockLike


class LinearProbe(Method):
    """The head trains, everything else is frozen."""

    def recipe(self, blocks: Sequence[BlockLike], setting: Setting) -> Recipe:
        """Return the probe's recipe."""
        return Recipe.linear_probe(blocks, **lr_and_decay(setting))


METHODS = (LinearProbe(name="linear-probe", words="the linear probe", in_confirmation=True),)
