"""Moves in the space of what a genome means: which blocks train, and at which log rates.

They need a genome space whose genes are log multipliers (the "exponential" variant).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from biotune_optuna.evolution.domain import Domain

    Vector = NDArray[np.float64]

__all__ = ["Meaning", "crossover", "mutate", "read", "write"]

_SHIFT, _TILT, _SINGLE, _REST = 0.3, 0.25, 0.35, 0.15
_LEAST_GENE = 0.01


@dataclass(slots=True)
class Meaning:
    """What a genome says.

    Attributes:
        mask: True where the block trains, shape (B,).
        logs: log10 multiplier of each block, shape (B,); a frozen block's is never read.
        rest: All parameters behind the genes, in [0, 1]; among them the base rate, where searched.
    """

    mask: NDArray[np.bool_]
    logs: Vector
    rest: Vector


def read(domain: Domain, genes: Vector) -> Meaning:
    """Return what a genome means.

    Args:
        domain: A domain with a genome space.
        genes: Shape (n,).
    """
    space = domain.space
    assert space is not None
    own = genes[: space.n_genes]
    return Meaning(
        mask=space.mask(own),
        logs=2.0 * (own[: space.n_blocks] - 0.5),
        rest=genes[space.n_genes :].copy(),
    )


def write(domain: Domain, meaning: Meaning) -> Vector:
    """Return the genome that means it; genes of frozen blocks get one value, so none drifts."""
    space = domain.space
    assert space is not None
    genes = np.clip(0.5 + 0.5 * meaning.logs, _LEAST_GENE, 1.0)
    ruled = meaning.mask.copy()
    if space.head_trains:
        ruled[-1] = False
    if space.threshold == "gene":
        threshold = 0.5 * float(genes[ruled].min()) if ruled.any() else 0.5
    else:
        threshold = float(space.threshold or 0.0)
        genes[ruled] = np.maximum(genes[ruled], np.nextafter(threshold, 2.0))
    genes[~meaning.mask] = 0.5 * threshold
    tail = [threshold] if space.threshold == "gene" else []
    return np.concatenate([genes, tail, np.clip(meaning.rest, 0.0, 1.0)])


def crossover(one: Meaning, other: Meaning, rng: np.random.Generator) -> Meaning:
    """Return the lower blocks of one, the upper blocks of the other, and a mixture of the rest.

    Draws: the cut, a vector of shares.
    """
    cut = int(rng.integers(1, len(one.mask))) if len(one.mask) > 1 else 1
    lower = np.arange(len(one.mask)) < cut
    share = rng.random(len(one.rest))
    return Meaning(
        np.where(lower, one.mask, other.mask),
        np.where(lower, one.logs, other.logs),
        share * one.rest + (1.0 - share) * other.rest,
    )


def mutate(domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Make one move, chosen at random, in place."""
    blocks = len(meaning.mask)
    kinds = [_shift, _tilt, _boundary, _flip, _single, _swap]
    weights = [0.3, 0.1, 0.2, 0.15, 0.15, 0.1]
    if blocks < 2:
        kinds, weights = [_shift, _single], [0.6, 0.4]
    others = [i for i in range(len(meaning.rest)) if i != _lr(domain)]
    if others and rng.random() < 0.2:
        i = others[int(rng.integers(len(others)))]
        meaning.rest[i] = np.clip(meaning.rest[i] + _REST * rng.standard_normal(), 0.0, 1.0)
        return
    pick = int(np.searchsorted(np.cumsum(weights), rng.random() * sum(weights), side="right"))
    kinds[min(pick, len(kinds) - 1)](domain, meaning, rng)


def _lr(domain: Domain) -> int:
    """Position of the base rate within ``rest``, −1 where it is not searched."""
    assert domain.space is not None
    return -1 if domain.lr_index is None else domain.lr_index - domain.space.n_genes


def _shift(domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Multiplies all rates by the same factor."""
    step = _SHIFT * float(rng.standard_normal())
    index = _lr(domain)
    if index >= 0:
        assert domain.space is not None
        low, high = domain.space.extra_bounds["lr"]
        decades = float(np.log10(high / low))
        wanted = meaning.rest[index] + step / decades
        meaning.rest[index] = min(max(wanted, 0.0), 1.0)
        step = (wanted - meaning.rest[index]) * decades  # what the base rate cannot take
    meaning.logs = np.clip(meaning.logs + step, -1.0, 1.0)


def _tilt(_domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Raise the rates with depth, or lowers them."""
    depth = np.linspace(-1.0, 1.0, len(meaning.logs))
    meaning.logs = np.clip(meaning.logs + _TILT * rng.standard_normal() * depth, -1.0, 1.0)


def _boundary(_domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Move the end of the frozen prefix by up to two blocks."""
    blocks = len(meaning.mask)
    prefix = int(np.argmax(meaning.mask)) if meaning.mask.any() else blocks - 1
    steps = [s for s in (-2, -1, 1, 2) if 0 <= prefix + s < blocks]
    new = prefix + steps[int(rng.integers(len(steps)))]
    if new < prefix:
        meaning.mask[new:prefix] = True
        meaning.logs[new:prefix] = meaning.logs[prefix]
    else:
        meaning.mask[:new] = False
        if not meaning.mask.any():
            meaning.mask[new] = True


def _flip(domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Freezes a block, or lets it train at its nearest training neighbour's rate."""
    assert domain.space is not None
    free = len(meaning.mask) - 1 if domain.space.head_trains else len(meaning.mask)
    b = int(rng.integers(free))
    active = np.flatnonzero(meaning.mask)
    if meaning.mask[b]:
        meaning.mask[b] = len(active) == 1
    else:
        nearest = active[np.argmin(np.abs(active - b))] if len(active) else b
        meaning.mask[b] = True
        meaning.logs[b] = meaning.logs[nearest]


def _single(_domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Change the rate of one block that trains."""
    active = np.flatnonzero(meaning.mask)
    b = int(active[rng.integers(len(active))])
    moved = meaning.logs[b] + _SINGLE * rng.standard_normal()
    meaning.logs[b] = min(max(moved, -1.0), 1.0)


def _swap(domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Exchanges the states of two neighbouring blocks."""
    assert domain.space is not None
    free = len(meaning.mask) - 1 if domain.space.head_trains else len(meaning.mask)
    if free < 2:
        return
    b = int(rng.integers(free - 1))
    for state in (meaning.mask, meaning.logs):
        state[b], state[b + 1] = state[b + 1], state[b]
