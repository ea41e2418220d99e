"""The default preset's moves, in place of the paper's mutation: changes of what genes mean.

A genome means which blocks train, and at which log rates (docs/method.md, `structured`). The moves
need a genome space whose genes are log multipliers (the "exponential" variant). They reach every
subset of blocks and every rate: the model of the landscape chooses among many of their outcomes,
so their chances matter little and were chosen by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.recipe import MODES

if TYPE_CHECKING:
    from biotune_optuna.evolution.domain import Domain
    from biotune_optuna.evolution.generation import Vector


_SHIFT, _TILT, _RETUNE = 0.3, 0.25, 0.35  # decades, standard deviation of a step
_REST = 0.15  # the same for a parameter that is no gene, as a share of its range
_REST_CHANCE = 0.2  # of moving such a parameter instead of the blocks
_LOG_BOUNDS = (-1.0, 1.0)  # decades: a gene says 0.1 to 10 times the base rate
_FURTHEST = 2  # blocks that the end of the frozen prefix moves at most
_AS_NEIGHBOUR = 0.5  # chance that a block that is added has its neighbour's rate
_FEW = 3  # blocks of a surgical genome at most
_REMODE_CHANCE = 0.15  # of changing what trains of a block, where that is searched
_ALL_MODES = 0.5  # chance that it changes for all blocks at once
_USUAL = 0.5  # chance that a random genome has a training gene's usual value, or full blocks


@dataclass(slots=True)
class Meaning:
    """What a genome says.

    Attributes:
        mask: True where the block trains, shape (B,).
        logs: log10 multiplier of each block, shape (B,); a frozen block's is never read.
        rest: All parameters behind the genes, in [0, 1]; among them the base rate, where searched.
        modes: What of each block trains (`GenomeSpace.block_modes`), shape (B,).
    """

    mask: NDArray[np.bool_]
    logs: Vector
    rest: Vector
    modes: NDArray[np.int64]


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
        logs=2.0 * (space.places(own) - 0.5),
        rest=genes[space.n_genes :].copy(),
        modes=space.block_modes(own),
    )


def write(domain: Domain, meaning: Meaning) -> Vector:
    """Return the genome that means it; genes of frozen blocks get one value, so none drifts."""
    genes = domain.genomes.with_mask(0.5 + 0.5 * meaning.logs, meaning.mask, meaning.modes)
    return np.concatenate([genes, np.clip(meaning.rest, 0.0, 1.0)])


def crossover(domain: Domain, one: Meaning, other: Meaning, rng: np.random.Generator) -> Meaning:
    """Return the lower blocks of one, the upper blocks of the other, and a mixture of the rest.

    Of each training gene it takes the value that one of both has. Draws: the cut, a vector of
    shares.
    """
    cut = int(rng.integers(1, len(one.mask))) if len(one.mask) > 1 else 1
    lower = np.arange(len(one.mask)) < cut
    share = rng.random(len(one.rest))
    chosen = _training(domain)
    share[chosen] = np.round(share[chosen])
    return Meaning(
        np.where(lower, one.mask, other.mask),
        np.where(lower, one.logs, other.logs),
        share * one.rest + (1.0 - share) * other.rest,
        np.where(lower, one.modes, other.modes),
    )


def random_move(domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Make one move in place: of a parameter that is no gene, or one of ``_MOVES``."""
    others = [i for i in range(len(meaning.rest)) if i != _lr(domain)]
    if others and rng.random() < _REST_CHANCE:
        i = others[int(rng.integers(len(others)))]
        if i in range(*_training(domain).indices(domain.size)):
            meaning.rest[i] = _other_value(domain, meaning.rest[i], i, rng)
            return
        meaning.rest[i] = np.clip(meaning.rest[i] + _REST * rng.standard_normal(), 0.0, 1.0)
        return
    moves = _MOVES if len(meaning.mask) > 1 else _MOVES_OF_ONE_BLOCK
    if domain.genomes.modes and len(meaning.mask) > 1:
        moves = {**moves, _remode: _REMODE_CHANCE}
    chances = list(moves.values())
    drawn = int(np.searchsorted(np.cumsum(chances), rng.random() * sum(chances), side="right"))
    list(moves)[min(drawn, len(moves) - 1)](domain, meaning, rng)


def _lr(domain: Domain) -> int:
    """Position of the base rate within ``rest``, −1 where it is not searched."""
    return -1 if domain.lr_index is None else domain.lr_index - domain.genomes.n_genes


def _training(domain: Domain) -> slice:
    """Positions of the training genes within ``rest``."""
    first = domain.genomes.n_genes
    return slice(domain.training.start - first, domain.training.stop - first)


def _other_value(domain: Domain, unit: float, i: int, rng: np.random.Generator) -> float:
    """Return another value of a training gene: the usual one, if it has not that already."""
    values = list(domain.genomes.training.values())[i - _training(domain).start]
    now = min(int(unit * len(values)), len(values) - 1)
    new = 0 if now else 1 + int(rng.integers(len(values) - 1))
    return (new + 0.5) / len(values)


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
        meaning.modes[new:prefix] = meaning.modes[prefix]
    else:
        meaning.mask[:new] = False
        if not meaning.mask.any():
            meaning.mask[new] = True


def _add(domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Let a frozen block train, at its nearest neighbour's rate or at any."""
    frozen = np.flatnonzero(~meaning.mask[: domain.genomes.n_freezable])
    if not len(frozen):
        return
    b = int(frozen[rng.integers(len(frozen))])
    active = np.flatnonzero(meaning.mask)
    near = rng.random() < _AS_NEIGHBOUR and len(active)
    nearest = active[np.argmin(np.abs(active - b))] if near else None
    meaning.logs[b] = rng.uniform(*_LOG_BOUNDS) if nearest is None else meaning.logs[nearest]
    meaning.modes[b] = len(MODES) - 1 if nearest is None else meaning.modes[nearest]
    meaning.mask[b] = True


def _drop(domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Freeze a block that trains, if it is not the last one."""
    active = np.flatnonzero(meaning.mask[: domain.genomes.n_freezable])
    if len(active) and meaning.mask.sum() > 1:
        meaning.mask[active[rng.integers(len(active))]] = False


def _swap(domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Let a frozen block train in place of one that does, wherever they are."""
    free = meaning.mask[: domain.genomes.n_freezable]
    active, frozen = np.flatnonzero(free), np.flatnonzero(~free)
    if len(active) and len(frozen):
        gone, new = active[rng.integers(len(active))], frozen[rng.integers(len(frozen))]
        meaning.mask[[gone, new]] = False, True
        meaning.logs[new] = meaning.logs[gone]
        meaning.modes[new] = meaning.modes[gone]


def _retune(_domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Change the rate of one block that trains a little."""
    b = _any_active(meaning, rng)
    meaning.logs[b] = np.clip(meaning.logs[b] + _RETUNE * rng.standard_normal(), *_LOG_BOUNDS)


def _redraw(_domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Give one block that trains any rate."""
    meaning.logs[_any_active(meaning, rng)] = rng.uniform(*_LOG_BOUNDS)


def _remode(domain: Domain, meaning: Meaning, rng: np.random.Generator) -> None:
    """Change what trains of one block, or of all that do: nothing of a frozen one."""
    mode = int(rng.integers(len(MODES)))
    active = np.flatnonzero(meaning.mask[: domain.genomes.n_freezable])
    if len(active):
        some = active if rng.random() < _ALL_MODES else active[[rng.integers(len(active))]]
        meaning.modes[some] = mode


def _any_active(meaning: Meaning, rng: np.random.Generator) -> int:
    active = np.flatnonzero(meaning.mask)
    return int(active[rng.integers(len(active))])


# Each move and its chance.
_MOVES = {
    _shift: 0.2,
    _tilt: 0.1,
    _boundary: 0.15,
    _add: 0.15,
    _drop: 0.1,
    _swap: 0.1,
    _retune: 0.1,
    _redraw: 0.1,
}
_MOVES_OF_ONE_BLOCK = {_shift: 0.6, _retune: 0.2, _redraw: 0.2}


def stranger(domain: Domain, rng: np.random.Generator) -> Meaning:
    """Return a random genome's meaning: of every kind of subset, at rates of every spread.

    A third each: any number of blocks anywhere; the blocks from one on; one to three blocks.
    Uniform genes would nearly always train about half of the blocks at unlike rates.
    """
    space = domain.genomes
    n, free = space.n_blocks, space.n_freezable
    kind = int(rng.integers(3))
    if kind == 1:
        mask = np.arange(n) >= rng.integers(free + 1)
    else:
        most = free if kind == 0 else min(_FEW, free)
        count = int(rng.integers(0 if kind == 0 else min(1, free), most + 1))
        mask = np.isin(np.arange(n), rng.permutation(free)[:count])
    mask[free:] = True
    if not mask.any():
        mask[-1] = True
    logs = rng.random() * rng.uniform(*_LOG_BOUNDS, n)
    rest = rng.random(domain.size - space.n_genes)
    genes = rest[_training(domain)]  # a view
    if len(genes):
        genes[rng.random(len(genes)) < _USUAL] = 0.0
    modes = np.full(n, len(MODES) - 1)
    if space.modes and rng.random() >= _USUAL:
        modes[:-1] = rng.integers(len(MODES))
    return Meaning(mask, logs, rest, modes)
