"""The space that the strategy searches: a box of numbers, some of which are block genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from biotune_optuna.genome import GenomeSpace

    Vector = NDArray[np.float64]

__all__ = ["Domain"]


@dataclass(frozen=True, slots=True)
class Domain:
    """What the strategy knows of the parameters, each mapped to [0, 1].

    Attributes:
        names: Parameter names; those of the genome space come first.
        choices: For each, its number of choices where they have no order, else 0.
        space: The genome space, None for a generic search.
    """

    names: tuple[str, ...]
    choices: NDArray[np.int64]
    space: GenomeSpace | None = None

    @property
    def size(self) -> int:
        """Number of parameters n."""
        return len(self.names)

    def active(self, genes: Vector) -> NDArray[np.int64]:
        """Indices of the genes that elite exploitation may move.

        With a genome space these are the genes of blocks that train, without one all parameters
        that have an order (all, where none has).
        """
        if self.space is not None:
            mask = self.space.mask(genes[: self.space.n_genes])
            return np.flatnonzero(mask)
        ordered = np.flatnonzero(self.choices == 0)
        return ordered if len(ordered) else np.arange(self.size)

    def is_valid(self, genes: Vector) -> bool:
        """Whether the genome means something that can be evaluated."""
        return self.space is None or self.space.is_valid(genes[: self.space.n_genes])

    def repair(self, genes: Vector) -> Vector:
        """A valid genome near this one."""
        if self.space is None:
            return genes
        n = self.space.n_genes
        return np.concatenate([self.space.repair(genes[:n]), genes[n:]])
