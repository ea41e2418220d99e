"""Keeps the archive of evaluated genomes as trials finish, at a cost that does not grow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from biotune_optuna.evolution.breeding import Archive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from biotune_optuna.evolution.domain import Domain
    from biotune_optuna.evolution.strategy import Individual

__all__ = ["Archivist"]


class Archivist:
    """Pools evaluations of the same genome.

    Args:
        domain: The search space; a new space needs a new archivist.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._positions: dict[bytes, int] = {}
        self._taken = 0
        self._dismissed: set[bytes] = set()
        self._n_dismissed = 0
        self._size = 0
        self._numbers = np.zeros(64, dtype=np.int64)
        self._genes = np.zeros((64, domain.size))
        self._sums = np.zeros(64)
        self._counts = np.zeros(64)

    def take(self, numbers: Sequence[int], individual: Callable[[int], Individual | None]) -> None:
        """Take in what has been added to a list of trials since the last call.

        Args:
            numbers: Trials with finite values, in the order in which they were seen to finish.
            individual: Looks up the individual of a trial.
        """
        for number in numbers[self._taken :]:
            one = individual(number)
            if one is not None:
                self._add(one)
        self._taken = len(numbers)

    def dismiss(
        self, numbers: Sequence[int], individual: Callable[[int], Individual | None]
    ) -> None:
        """Note the genomes that need no second look, as `take` does those with values.

        Args:
            numbers: Trials that finished without a finite value, in the order seen.
            individual: Looks up the individual of a trial.
        """
        for number in numbers[self._n_dismissed :]:
            one = individual(number)
            if one is not None:
                self._dismissed.add(self._domain.key(one.genes))
        self._n_dismissed = len(numbers)

    def _add(self, one: Individual) -> None:
        key = self._domain.key(one.genes)
        position = self._positions.get(key)
        if position is None:
            position = self._size
            if position == len(self._numbers):
                self._grow()
            self._positions[key] = position
            self._numbers[position] = one.number
            self._genes[position] = one.genes
            self._size += 1
        elif one.number < self._numbers[position]:
            self._numbers[position] = one.number
            self._genes[position] = one.genes
        self._sums[position] += one.cost
        self._counts[position] += 1

    def _grow(self) -> None:
        self._numbers = np.concatenate([self._numbers, np.zeros_like(self._numbers)])
        self._genes = np.concatenate([self._genes, np.zeros_like(self._genes)])
        self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])

    def archive(self, running: Sequence[NDArray[np.float64]], most: int) -> Archive:
        """Return the archive as it stands.

        Args:
            running: Genomes that are being evaluated.
            most: Genomes beyond this number are left out: neither among the best nor the latest.
        """
        n = self._size
        numbers, counts = self._numbers[:n], self._counts[:n]
        costs = self._sums[:n] / np.maximum(counts, 1.0)
        order = np.argsort(numbers, kind="stable")
        if n > most:
            half = most // 2
            earlier = order[: n - half]
            best = earlier[np.argsort(costs[earlier], kind="stable")[: most - half]]
            order = np.concatenate([best[np.argsort(numbers[best])], order[n - half :]])
        size = self._domain.size
        return Archive(
            numbers=numbers[order],
            genes=self._genes[:n][order],
            costs=costs[order],
            counts=counts[order],
            evaluated=self._positions,
            dismissed=self._dismissed,
            running=np.array(running).reshape(len(running), size),
            running_keys=frozenset(self._domain.key(genes) for genes in running),
        )
