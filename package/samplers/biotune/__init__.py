"""BioTuneSampler as an OptunaHub package; the implementation is the package biotune-optuna."""

from biotune_optuna import (
    BioTuneSampler,
    BlockRecipe,
    Genome,
    GenomeSpace,
    Recipe,
    SearchSettings,
    rank_finished,
    slot_of,
)

__all__ = [
    "BioTuneSampler",
    "BlockRecipe",
    "Genome",
    "GenomeSpace",
    "Recipe",
    "SearchSettings",
    "rank_finished",
    "slot_of",
]
