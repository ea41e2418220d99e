"""The space that the strategy searches: a box of numbers, some of which are block genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from biotune_optuna.evolution.generation import Vector
    from biotune_optuna.genome import GenomeSpace


@dataclass(frozen=True, slots=True)
class Domain:
    """What the strategy knows of the parameters, each mapped to [0, 1].

    Attributes:
        names: Parameter names; those of the genome space come first.
        choices: For each, its number of choices where they have no order, else 0.
        space: The genome space, None for a generic search.
        cells: For each, its number of values with equal shares of [0, 1], 0 where it is
            continuous; empty where none is known.
    """

    names: tuple[str, ...]
    choices: NDArray[np.int64]
    space: GenomeSpace | None = None
    cells: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.space is None or self.names[: len(self.space.names)] == self.space.names

    @property
    def size(self) -> int:
        """Number of parameters n."""
        return len(self.names)

    def active(self, genes: Vector) -> NDArray[np.int64]:
        """Return the indices of the genes that elite exploitation may move.

        With a genome space these are the genes of blocks that train, without one all parameters
        that have an order (all, where none has).
        """
        if self.space is not None:
            return np.flatnonzero(self.space.mask(genes[: self.space.n_genes]))
        ordered = np.flatnonzero(self.choices == 0)
        return ordered if len(ordered) else np.arange(self.size)

    def is_valid(self, genes: Vector) -> bool:
        """Whether the genome means something that can be evaluated."""
        return self.space is None or self.space.is_valid(genes[: self.space.n_genes])

    def repair(self, genes: Vector) -> Vector:
        """Return a valid genome near this one."""
        if self.space is None:
            return genes
        n = self.space.n_genes
        return np.concatenate([self.space.repair(genes[:n]), genes[n:]])

    def key(self, genes: Vector) -> bytes:
        """Return the identity of what a genome means: equal keys are evaluated alike.

        Args:
            genes: Shape (n,).
        """
        own = genes[: self.space.n_genes] if self.space else genes
        if any(self.cells):
            sizes = np.array(self.cells)
            cell = np.minimum(np.floor(genes * sizes), sizes - 1)
            genes = np.where(sizes > 0, cell, genes)
        if self.space is None:
            return np.round(genes, 9).tobytes()  # equal but for the codec's rounding
        rates = self.log_rates(genes[None, :])[0]
        rest = [i for i in range(self.space.n_genes, self.size) if i != self.lr_index]
        if "drop_path" in self.space.training and not np.isfinite(rates[:-1]).any():
            # what is frozen leaves out no branch
            rest.remove(self.training.start + list(self.space.training).index("drop_path"))
        # -99 stands for a frozen block, as no rate has it; six digits are those of `Recipe.key`.
        parts = np.concatenate([np.where(np.isfinite(rates), rates, -99.0), genes[rest]])
        if self.genomes.modes:
            modes = np.where(np.isfinite(rates), self.genomes.block_modes(own), -1)
            parts = np.append(parts, modes[:-1])  # the head has but one
        return (np.round(parts, 6) + 0.0).tobytes()  # + 0.0: a zero has no sign

    @property
    def allows_moves(self) -> bool:
        """Whether genes are log multipliers, which `moves` needs."""
        return self.space is not None and self.space.variant == "exponential"

    # What genes mean, for a domain with a genome space.

    @property
    def genomes(self) -> GenomeSpace:
        """The genome space, which there must be."""
        assert self.space is not None
        return self.space

    def log_rates(self, genes: Vector) -> Vector:
        """log10 of every block's learning rate, −inf where it is frozen.

        Args:
            genes: Shape (N, n).

        Returns:
            Shape (N, B).
        """
        with np.errstate(divide="ignore"):
            rates: Vector = np.log10(self.genomes.multipliers(genes[:, : self.genomes.n_genes]))
        return rates + self.log_base(genes)[:, None]

    def relative_rates(self, genes: Vector) -> Vector:
        """Decades of every block's learning rate from the middle of the base rate's range.

        Args:
            genes: Shape (N, n).

        Returns:
            Shape (N, B), −inf where the block is frozen.
        """
        middle: Vector = self.log_rates(genes) - np.log10(self.genomes.base_lr)
        return middle

    def log_base(self, genes: Vector) -> Vector:
        """log10 of the base learning rate of each genome, shape (N,)."""
        if self.lr_index is None:
            return np.full(len(genes), np.log10(self.genomes.base_lr))
        low, high = np.log10(self.genomes.extra_bounds["lr"])
        base: Vector = low + genes[:, self.lr_index] * (high - low)
        return base

    @property
    def training(self) -> slice:
        """Where the training genes lie."""
        if self.space is None:
            return slice(0, 0)
        stop = len(self.space.names)
        return slice(stop - len(self.space.training), stop)

    def training_cells(self, genes: Vector) -> NDArray[np.int64]:
        """Position of each training gene's value among its values; 0 is the usual one.

        Args:
            genes: Shape (N, n).

        Returns:
            Shape (N, T).
        """
        sizes = np.array([len(values) for values in self.genomes.training.values()], dtype=np.int64)
        cells = np.floor(genes[:, self.training] * sizes).astype(np.int64)
        return np.minimum(cells, sizes - 1)

    @property
    def lr_index(self) -> int | None:
        """Position of the base learning rate, None where it is fixed.

        A parameter of that name beside a space whose rate is fixed is somebody else's.
        """
        searched = self.space is not None and "lr" in self.space.extra_bounds
        return self.names.index("lr") if searched else None

    @property
    def log_rate_bounds(self) -> tuple[float, float]:
        """Least and greatest log10 of a block's learning rate: a gene says 0.1 to 10 times λ."""
        base = self.genomes.base_lr
        low, high = self.genomes.extra_bounds.get("lr", (base, base))
        return float(np.log10(low)) - 1.0, float(np.log10(high)) + 1.0
