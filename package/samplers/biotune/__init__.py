"""BioTuneSampler as an OptunaHub package; the implementation is the package biotune-optuna."""

from biotune_optuna.genome import Genome, GenomeSpace
from biotune_optuna.recipe import BlockRecipe, Recipe
from biotune_optuna.sampler.sampler import BioTuneSampler, rank_finished, slot_of

__all__ = [
    "BioTuneSampler",
    "BlockRecipe",
    "Genome",
    "GenomeSpace",
    "Recipe",
    "rank_finished",
    "slot_of",
]
