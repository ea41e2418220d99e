"""The linear probe: the head alone, fitted to convergence or trained by steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from biotune_optuna.methods.base import Method, Setting, lr_and_decay
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from biotune_optuna.recipe import BlockLike


class LinearProbe(Method):
    """Logistic regression on the frozen network's last features; see `Recipe.fitted_probe`.

    It chooses its one strength itself, in folds of the training images: there is nothing to tune.
    """

    def settings(self) -> list[dict[str, float]]:
        """Return the one setting: nothing to choose."""
        return [{}]

    def recipe(self, blocks: Sequence[BlockLike], setting: Setting) -> Recipe:
        """Return the probe's recipe."""
        return Recipe.fitted_probe(blocks, weight_decay=setting.get("weight_decay", 0.0))


class LinearProbeBySteps(Method):
    """The head trains by steps of the optimiser, everything else is frozen."""

    def recipe(self, blocks: Sequence[BlockLike], setting: Setting) -> Recipe:
        """Return the probe's recipe."""
        return Recipe.linear_probe(blocks, **lr_and_decay(setting))


METHODS = (
    LinearProbe(name="linear-probe", words="the linear probe", in_confirmation=True),
    LinearProbeBySteps(
        name="linear-probe-sgd", words="the linear probe by gradient steps", in_confirmation=True
    ),
)
