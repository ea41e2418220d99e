"""The informed individuals of generation 0: recipes that did well on other tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from biotune_optuna.evolution import experience
from biotune_optuna.recipe import MODES, Mode, Recipe

if TYPE_CHECKING:
    from biotune_optuna.evolution.generation import Vector
    from biotune_optuna.genome import Genome, GenomeSpace


def informed_genomes(space: GenomeSpace) -> list[Genome]:
    """Return recipes to begin with as genomes, the most promising first.

    They were chosen so that one of them did well on each of several image sets
    (docs/benchmarks/starts.md). Single blocks with the head are among them, and always
    full fine-tuning and a linear probe, which the comparison at the end needs. Where modes are
    searched, two more train the norms and biases of all blocks, and all weights at a low rank.

    Args:
        space: The genome space; rates are told from the middle of its range.

    Returns:
        Different valid genomes.
    """
    found: dict[tuple[object, ...], Genome] = {}
    genomes = [
        encode(space, start.log_rates(space.n_blocks)) for start in experience.learned().starts
    ]
    if space.modes:  # norm tuning, and low-rank adaptation: all blocks at the middle rate
        genomes += [encode(space, np.zeros(space.n_blocks), mode) for mode in MODES[:-1]]
    for genome in genomes:
        if space.is_valid(genome.values):
            found.setdefault(genome.decode().key(), genome)
    return list(found.values())


def encode(space: GenomeSpace, logs: Vector, mode: Mode = "full") -> Genome:
    """Return the genome of rates that are told from the middle of the space's range.

    Args:
        space: The genome space.
        logs: Decades for each block, −inf where it is frozen, shape (B,).
        mode: How the blocks below the head train, where they do.
    """
    low, high = np.log10(space.extra_bounds.get("lr", (space.base_lr, space.base_lr)))
    logs = logs + np.log10(space.base_lr)
    trained = logs[np.isfinite(logs)]
    # In the middle of the blocks' rates, where genes reach farthest either way.
    base = float(np.clip((trained.min() + trained.max()) / 2.0, low, high))
    multipliers = (10.0 ** (logs - base)).tolist()
    decay = space.base_weight_decay
    modes: list[Mode] = [*[mode] * (space.n_blocks - 1), "full"]
    return space.encode(
        Recipe.from_multipliers(
            space.blocks, multipliers, lr=10.0**base, weight_decay=decay, modes=modes
        )
    )
