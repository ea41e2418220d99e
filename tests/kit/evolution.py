"""What several tests of the evolution share: domains, and an archive of a smooth landscape."""

from __future__ import annotations

import numpy as np

from biotune_optuna.evolution.domain import Domain
from biotune_optuna.evolution.generation import Archive
from biotune_optuna.genome import GenomeSpace
from biotune_optuna.recipe import BlockRecipe
from biotune_optuna.sampler import codec


def make_domain(blocks=6, **options):
    space = GenomeSpace([BlockRecipe(f"b{i}", 1.0) for i in range(blocks)], **options)
    distributions = space.distributions().values()
    choices = np.array([codec.n_choices(one) for one in distributions])
    return Domain(space.names, choices, space, tuple(map(codec.n_cells, distributions)))


SPACES = {
    "default": {},
    "paper": {"head_trains": False, "lr": 1e-3},
    "fixed threshold": {"threshold": 0.3},
    "no threshold": {"threshold": None},
    "weight decay": {"weight_decay": (1e-5, 1e-1)},
    "modes and training": {
        "modes": True,
        "weight_decay": (1e-5, 1e-1),
        "training": {"augment": ("none", "crop", "trivial"), "ema": (0.0, 0.9)},
    },
}


def bowl(domain, genes):
    rates = domain.log_rates(genes)
    active = np.isfinite(rates)
    overall = np.where(active, rates, 0).sum(1) / active.sum(1)
    return 0.05 * (overall + 2.2) ** 2 + 0.02 * active[:, :3].mean(1)


def make_archive(domain, n=20, seed=0, running=0, dismissed=(), noise=0.0):
    rng = np.random.default_rng(seed)
    genes = rng.random((n, domain.size))
    costs = bowl(domain, genes)
    keys = {domain.key(one): i for i, one in enumerate(genes)}
    others = rng.random((running, domain.size))
    costs += noise * rng.standard_normal(n)
    return Archive(
        np.arange(n), genes, costs, np.ones(n), keys,
        frozenset(domain.key(one) for one in dismissed), others,
        frozenset(domain.key(one) for one in others),
    )  # fmt: skip
