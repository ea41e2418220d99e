"""The default preset's moves, in place of the paper's mutation: small changes of what genes mean.

A genome means which blocks train, and at which log rates (docs/method.md, `structured`). The moves
need a genome space whose genes are log multipliers (the "exponential" variant).

All chances and step sizes were chosen by hand while the preset was developed. Only all of them
together were measured: the paper's operators in their place made no difference that the intervals
can tell (docs/benchmarks/search.md, "default, not structured").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from biotune_optuna.evolution.domain import Domain
    from biotune_optuna.evolution.generation import Vector


_SHIFT, _TILT, _SINGLE = 0.3, 0.25, 0.35  # decades, standard deviation of a step
_REST = 0.15  # the same for a parameter that is no gene, as a share of its range
_REST_CHANCE = 0.2  # of moving such a parameter instead of the blocks
_LOG_BOUNDS = (-1.0, 1.0)  # decades: a gene says 0.1 to 10 times the base rate
_FURTHEST = 2  # blocks that the end of the frozen prefix moves at most


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
    space = domain.genomes
    own = genes[: space.n_genes]
    return Meaning(
        mask=space.mask(own),
        logs=2.0 * (own[: space.n_blocks] - 0.5),
        rest=genes[space.n_genes :].copy(),
    )


def write(domain: Domain, meaning: Meaning) -> Vector:
    """Return the genome that means it; genes of frozen blocks get one value, so none drifts."""
    genes = domain.genomes.with_mask(0.5 + 0.5 * meaning.logs, meaning.mask)
    return np.concatenate([genes, np.clip(meaning.rest, 0.0, 1.0)])


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


def random_move(domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Make one move in place: of a parameter that is no gene, or one of ``_MOVES``."""
    others = [i for i in range(len(meaning.rest)) if i != _lr(domain)]
    if others and rng.random() < _REST_CHANCE:
        i = others[int(rng.integers(len(others)))]
        meaning.rest[i] = np.clip(meaning.rest[i] + _REST * rng.standard_normal(), 0.0, 1.0)
        return
    moves = _MOVES if len(meaning.mask) > 1 else _MOVES_OF_ONE_BLOCK
    chances = list(moves.values())
    drawn = int(np.searchsorted(np.cumsum(chances), rng.random() * sum(chances), side="right"))
    list(moves)[min(drawn, len(moves) - 1)](domain, meaning, rng)


def _lr(domain: Domain) -> int:
    """Position of the base rate within ``rest``, −1 where it is not searched."""
    return -1 if domain.lr_index is None else domain.lr_index - domain.genomes.n_genes


def _shift(domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Multiply all rates by the same factor."""
    step = _SHIFT * float(rng.standard_normal())
    index = _lr(domain)
    if index >= 0:
        low, high = domain.genomes.extra_bounds["lr"]
        decades = float(np.log10(high / low))
        wanted = meaning.rest[index] + step / decades
        meaning.rest[index] = min(max(wanted, 0.0), 1.0)
        step = (wanted - meaning.rest[index]) * decades  # what the base rate cannot take
    meaning.logs = np.clip(meaning.logs + step, *_LOG_BOUNDS)


def _tilt(_domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Raise the rates with depth, or lower them."""
    depth = np.linspace(-1.0, 1.0, len(meaning.logs))
    meaning.logs = np.clip(meaning.logs + _TILT * rng.standard_normal() * depth, *_LOG_BOUNDS)


def _boundary(_domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Move the end of the frozen prefix by up to two blocks."""
    blocks = len(meaning.mask)
    prefix = int(np.argmax(meaning.mask)) if meaning.mask.any() else blocks - 1
    steps = [s for s in range(-_FURTHEST, _FURTHEST + 1) if s and 0 <= prefix + s < blocks]
    new = prefix + steps[int(rng.integers(len(steps)))]
    if new < prefix:
        meaning.mask[new:prefix] = True
        meaning.logs[new:prefix] = meaning.logs[prefix]
    else:
        meaning.mask[:new] = False
        if not meaning.mask.any():
            meaning.mask[new] = True


def _flip(domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Freeze a block, or let it train at the rate of the nearest block that trains."""
    b = int(rng.integers(domain.genomes.n_freezable))
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
    meaning.logs[b] = np.clip(meaning.logs[b] + _SINGLE * rng.standard_normal(), *_LOG_BOUNDS)


def _swap(domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Exchange the states of two neighbouring blocks."""
    if domain.genomes.n_freezable < 2:
        return
    b = int(rng.integers(domain.genomes.n_freezable - 1))
    for state in (meaning.mask, meaning.logs):
        state[b], state[b + 1] = state[b + 1], state[b]


# Each move and its chance.
_MOVES = {_shift: 0.3, _tilt: 0.1, _boundary: 0.2, _flip: 0.15, _single: 0.15, _swap: 0.1}
_MOVES_OF_ONE_BLOCK = {_shift: 0.6, _single: 0.4}
