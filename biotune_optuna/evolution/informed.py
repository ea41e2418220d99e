"""What a practitioner would try first: the informed individuals of generation 0.

Which recipes these are, and their order, was chosen by hand. What beginning with them is worth is
measured in docs/benchmarks/search.md, "default, not informed".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from biotune_optuna.genome import Genome, GenomeSpace


def informed_genomes(space: GenomeSpace) -> list[Genome]:
    """Return well-known recipes as genomes, the most promising first.

    Full fine-tuning at three rates, layer-wise decay, the stem frozen, the lower half frozen and
    a linear probe. Rates are the quarter points of the log range of ``lr``, or 1/3, 1 and 3 times
    the rate where it is fixed.

    Args:
        space: The genome space.

    Returns:
        Different valid genomes.
    """
    # Nine times both ways has 1/3, 1 and 3 times the rate as its quarter points.
    bounds = space.extra_bounds.get("lr", (space.base_lr / 9.0, space.base_lr * 9.0))
    slow, middle, fast = (
        float(10**x) for x in np.linspace(np.log10(bounds[0]), np.log10(bounds[1]), 5)[1:4]
    )
    n = space.n_blocks

    def frozen(count: int) -> list[float]:
        return [0.0] * count + [1.0] * (n - count)

    # The first block at a tenth of the last one's rate, the least that a gene can say.
    strength = 0.1 ** (1.0 / max(n - 1, 1))
    layered = [strength ** (n - 1 - b) for b in range(n)]
    recipes = (
        (frozen(n // 2), middle),
        (frozen(0), middle),  # full fine-tuning
        (layered, middle),
        (frozen(min(1, n - 1)), middle),
        (frozen(0), slow),
        (frozen(n // 2), fast),
        (layered, fast),
        (frozen(n - 1), fast),  # linear probe
        (frozen(0), fast),
    )
    found: dict[tuple[object, ...], Genome] = {}
    for multipliers, lr in recipes:
        decay = space.base_weight_decay
        recipe = Recipe.from_multipliers(space.blocks, multipliers, lr=lr, weight_decay=decay)
        genome = space.encode(recipe)
        if space.is_valid(genome.values):
            found.setdefault(genome.decode().key(), genome)
    return list(found.values())
