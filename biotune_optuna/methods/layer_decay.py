"""Layer-wise rate decay: rates fall by a constant factor from the head to the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from biotune_optuna.methods.base import Method, Setting, lr_and_decay
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from biotune_optuna.recipe import BlockLike

RATES_AND_DECAYS = ((1e-3, 0.75), (3e-3, 0.65), (3e-3, 0.75), (3e-3, 0.9), (1e-2, 0.75))
"""The pairs tried. MAE (He et al., 2022) takes 0.65 and 0.75 for transformers of 12 and 24 layers,
ELECTRA (Clark et al., 2020) 0.9; where a block is many layers, less decay suits. The rate is the
head's, and all others are below it: so the least of `RATES` are not among them."""


class LayerDecay(Method):
    """Block b of B trains at ``lr * decay ** (B - 1 - b)`` (Clark et al., 2020, ELECTRA)."""

    def settings(self) -> list[dict[str, float]]:
        """Return five pairs of rate and decay."""
        return [{"lr": lr, "decay": decay} for lr, decay in RATES_AND_DECAYS]

    def recipe(self, blocks: Sequence[BlockLike], setting: Setting) -> Recipe:
        """Return the recipe of a rate and a decay."""
        return Recipe.layer_decay(blocks, decay=setting["decay"], **lr_and_decay(setting))


METHODS = (
    LayerDecay(
        name="layer-decay",
        words="layer-wise rate decay",
        equal_budget=True,
        # 0.5 leaves the fourth block from the head an eighth; 0.95 is nearly full fine-tuning
        ranges={"decay": (0.5, 0.95)},
    ),
)
