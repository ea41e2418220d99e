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

__all__ = ["informed_genomes"]


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
    blocks, decay = space.blocks, space.base_weight_decay
    n = len(blocks)

    def frozen(count: int, lr: float) -> Recipe:
        multipliers = [0.0 if b < count else 1.0 for b in range(n)]
        return Recipe.from_multipliers(blocks, multipliers, lr=lr, weight_decay=decay)

    def layered(lr: float) -> Recipe:
        return Recipe.layer_decay(blocks, lr=lr, decay=strength, weight_decay=decay)

    # The first block at a tenth of the last one's rate, the least that a gene can say.
    strength = 0.1 ** (1.0 / max(n - 1, 1))
    recipes = [
        frozen(n // 2, middle),
        Recipe.full(blocks, lr=middle, weight_decay=decay),
        layered(middle),
        frozen(min(1, n - 1), middle),
        Recipe.full(blocks, lr=slow, weight_decay=decay),
        frozen(n // 2, fast),
        layered(fast),
        Recipe.linear_probe(blocks, lr=fast, weight_decay=decay),
        Recipe.full(blocks, lr=fast, weight_decay=decay),
    ]
    found: dict[tuple[object, ...], Genome] = {}
    for recipe in recipes:
        genome = space.encode(recipe)
        if space.is_valid(genome.values):
            found.setdefault(genome.decode().key(), genome)
    return list(found.values())
