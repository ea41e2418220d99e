"""Surgical fine-tuning: one block alone trains, with the head (Lee et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from biotune_optuna.methods.base import Method, Setting
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from biotune_optuna.recipe import BlockLike

DEPTHS: Final = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where the block lies, from 0, the input, to 1, the head: the middles of five equal parts, so that
networks of any number of blocks are tried all over."""

RATE: Final = 1e-2
"""The rate at which they are tried: few weights train, and bear a higher rate than all would."""


class SingleBlock(Method):
    """One block and the head train at one rate, all others are frozen (Lee et al., 2023, Sec. 3).

    Of B - 1 blocks below the head, the one at depth d is number ``floor(d * (B - 1))`` from the
    input, at most the last.
    """

    def settings(self) -> list[dict[str, float]]:
        """Return five depths at one rate."""
        return [{"lr": RATE, "depth": depth} for depth in DEPTHS]

    def recipe(self, blocks: Sequence[BlockLike], setting: Setting) -> Recipe:
        """Return the recipe of a depth and a rate."""
        below = len(blocks) - 1
        chosen = min(int(setting["depth"] * below), below - 1)
        multipliers = [float(b in (chosen, below)) for b in range(len(blocks))]
        decay = setting.get("weight_decay", 0.0)
        return Recipe.from_multipliers(blocks, multipliers, lr=setting["lr"], weight_decay=decay)


METHODS = (
    SingleBlock(
        name="single-block",
        words="one block alone, and the head",
        ranges={"depth": (0.0, 1.0)},
    ),
)
