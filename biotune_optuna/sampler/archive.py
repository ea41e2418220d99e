"""Builds the archive of evaluated genomes as trials finish, at a cost that does not grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.evolution.generation import Archive

if TYPE_CHECKING:
    from biotune_optuna.evolution.domain import Domain
    from biotune_optuna.evolution.generation import Individual


class ArchiveBuilder:
    """Pools evaluations of the same genome.

    Args:
        domain: The search space; a new space needs a new builder.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._positions: dict[bytes, int] = {}
        self._dismissed: set[bytes] = set()
        self._seen = (0, 0)  # how many of the finished and of the dismissed trials
        self._size = 0
        self._numbers = np.zeros(64, dtype=np.int64)
        self._genes = np.zeros((64, domain.size))
        self._sums = np.zeros(64)
        self._counts = np.zeros(64)

    def add(
        self,
        finished: Sequence[int],
        dismissed: Sequence[int],
        individual: Callable[[int], Individual | None],
    ) -> None:
        """Add what is new in two lists of trials since the last call.

        Args:
            finished: Trials with finite values, in the order in which they were seen to finish.
            dismissed: Those that finished without one, in the order seen: not worth a second
                evaluation.
            individual: Looks up the individual of a trial.
        """
        for number in finished[self._seen[0] :]:
            one = individual(number)
            if one is not None:
                self._pool(one)
        for number in dismissed[self._seen[1] :]:
            one = individual(number)
            if one is not None:
                self._dismissed.add(self._domain.key(one.genes))
        self._seen = len(finished), len(dismissed)

    def _pool(self, one: Individual) -> None:
        key = self._domain.key(one.genes)
        position = self._positions.get(key)
        if position is None:
            position = self._size
            if position == len(self._numbers):
                self._grow()
            self._positions[key] = position
            self._size += 1
        if self._counts[position] == 0 or one.number < self._numbers[position]:
            self._numbers[position] = one.number
            self._genes[position] = one.genes
        self._sums[position] += one.cost
        self._counts[position] += 1

    def _grow(self) -> None:
        """Double the room."""
        for name in ("_numbers", "_genes", "_sums", "_counts"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros_like(old)]))

    def build(self, running: Sequence[NDArray[np.float64]], most: int) -> Archive:
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
        return Archive(
            numbers=numbers[order],
            genes=self._genes[:n][order],
            costs=costs[order],
            counts=counts[order],
            evaluated=self._positions,
            dismissed=self._dismissed,
            running=np.array(running).reshape(len(running), self._domain.size),
            running_keys=frozenset(self._domain.key(genes) for genes in running),
        )
