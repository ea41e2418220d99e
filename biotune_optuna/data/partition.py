"""Dealing images into parts of given shares: by class, or by class and whole groups.

Both dealers order images by a keyed hash of their content, which is a random order that depends on
the seed and on nothing else but what the images are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource

    Indices = NDArray[np.int64]


class StratifiedDealer:
    """Deals the images of each class into parts, each to within one image of its share.

    Args:
        source: The images.
        seed: Seed of the random order.
    """

    def __init__(self, source: ImageSource, seed: int) -> None:
        self._labels = source.labels
        self._n_classes = len(source.classes)
        self._hashes = source.content_hashes
        keys = [_keyed(seed, digest) for digest in source.content_hashes]
        order = sorted(
            range(len(source)),
            key=lambda i: (keys[i], source.classes[source.labels[i]], source.ids[i]),
        )
        self._rank = np.empty(len(source), dtype=np.int64)
        self._rank[order] = np.arange(len(source))

    def order(self, indices: Indices) -> Indices:
        """Return the same images in the order of their content."""
        return indices[np.argsort(self._rank[indices])]

    def units(self, indices: Indices) -> tuple[str, Indices]:
        """Return what is dealt ("images"), and how many there are of each class."""
        return "images", np.bincount(self._labels[indices], minlength=self._n_classes)

    def deal(
        self,
        indices: Indices,
        shares: Sequence[float],
        *,
        least: Sequence[int],  # noqa: ARG002 - images can be dealt evenly
        firm: bool = False,
    ) -> list[Indices]:
        """Deal images into parts.

        Equal pictures, which are neighbours in the order, stay together where a part takes fewer of
        a class than its share for that, or somewhat more: at most twice as many, and a quarter of
        the next part's.

        Args:
            indices: The images.
            shares: Share of each part; they add up to 1.
            least: Groups of each class that each part needs; only :class:`GroupDealer` heeds it.
            firm: Whether no part may take more than its share.

        Returns:
            Disjoint index arrays that together hold all of ``indices``.
        """
        indices = self.order(indices)
        labels = self._labels[indices]
        members = [indices[labels == label] for label in range(self._n_classes)]
        counts = apportion(np.array([len(held) for held in members]), np.asarray(shares))
        parts: list[list[Indices]] = [[] for _ in shares]
        for held, wanted in zip(members, counts, strict=True):
            cuts = self._cuts(held, np.cumsum(wanted)[:-1], firm=firm)
            for part, piece in zip(parts, np.split(held, cuts), strict=True):
                part.append(piece)
        return [np.concatenate(part) for part in parts]

    def _cuts(self, held: Indices, cuts: Indices, *, firm: bool) -> list[int]:
        """Move cuts so that equal pictures stay together: left, else a little to the right."""
        edges = [0]
        for cut in cuts.tolist():
            left = (place for place in range(cut, edges[-1], -1) if self._is_clean(held, place))
            edges.append(next(left, cut))
        edges.append(len(held))
        for at in range(1, len(edges) - 1):
            if firm or self._is_clean(held, edges[at]):
                continue
            before, cut, after = edges[at - 1 : at + 2]
            farthest = cut + min(cut - before, (after - cut) // 4)
            right = (place for place in range(cut, farthest + 1) if self._is_clean(held, place))
            edges[at] = next(right, cut)
        return edges[1:-1]

    def _is_clean(self, held: Indices, place: int) -> bool:
        """Whether a cut there parts no equal pictures."""
        if place in {0, len(held)}:
            return True
        return bool(self._hashes[held[place - 1]] != self._hashes[held[place]])


class GroupDealer:
    """Deals whole groups into parts, with classes as even as the groups allow.

    Greedy, as scikit-learn's ``StratifiedGroupKFold``, but for parts of any share: the groups that
    are largest and least even come first, and each goes where the classes' shares are then nearest
    to what is wanted.

    Args:
        source: The images; must have groups.
        seed: Seed of the order among groups of equal make-up.
    """

    def __init__(self, source: ImageSource, seed: int) -> None:
        assert source.groups is not None
        self._labels = source.labels
        self._n_classes = len(source.classes)
        self._groups = source.groups
        self._seed = seed
        self._by_image = StratifiedDealer(source, seed)
        self._hashes = source.content_hashes

    def order(self, indices: Indices) -> Indices:
        """Return the same images in the order of their content."""
        return self._by_image.order(indices)

    def units(self, indices: Indices) -> tuple[str, Indices]:
        """Return what is dealt ("groups"), and how many there are of each class."""
        return "groups", np.count_nonzero(self._table(indices)[1], axis=0)

    def deal(
        self,
        indices: Indices,
        shares: Sequence[float],
        *,
        least: Sequence[int],
        firm: bool = False,  # noqa: ARG002 - groups stay together whatever they hold
    ) -> list[Indices]:
        """As :meth:`StratifiedDealer.deal`, no group cut.

        Where a part then has fewer groups of a class than it needs, others give it their smallest,
        as long as they have enough themselves.
        """
        member, table = self._table(indices)
        wanted = np.asarray(shares)[:, np.newaxis]
        totals = np.maximum(table.sum(axis=0), 1)
        names = self._group_keys(indices, member, len(table))
        first = sorted(
            range(len(table)), key=lambda g: (-table[g].std(), -table[g].sum(), names[g])
        )
        filled = np.zeros((len(shares), self._n_classes))
        home = np.empty(len(table), dtype=np.int64)
        for group in first:
            # Squared distance of each class's share to the wanted one, if the group went to a part,
            # less what it is now: only the chosen part's own term changes.
            before = ((filled / totals - wanted) ** 2 / wanted).sum(axis=1)
            after = (((filled + table[group]) / totals - wanted) ** 2 / wanted).sum(axis=1)
            size = filled.sum(axis=1) / wanted[:, 0]
            home[group] = np.lexsort((size, np.round(after - before, 12)))[0]
            filled[home[group]] += table[group]
        smallest = sorted(range(len(table)), key=lambda g: (table[g].sum(), names[g]))
        _give_to_the_needy(home, table > 0, np.array(least), np.array(smallest))
        return [self.order(indices[home[member] == part]) for part in range(len(shares))]

    def _table(self, indices: Indices) -> tuple[Indices, Indices]:
        """Group number of each image, and images per group and class."""
        names, member = np.unique(self._groups[indices], return_inverse=True)
        table = np.zeros((len(names), self._n_classes), dtype=np.int64)
        np.add.at(table, (member, self._labels[indices]), 1)
        return member.astype(np.int64), table

    def _group_keys(self, indices: Indices, member: Indices, count: int) -> list[str]:
        """Return a random order among groups that follows from the seed and what they hold."""
        held: list[list[str]] = [[] for _ in range(count)]
        for group, index in zip(member.tolist(), indices.tolist(), strict=True):
            held[group].append(self._hashes[index])
        return [_keyed(self._seed, "".join(sorted(digests))) for digests in held]


def _give_to_the_needy(
    home: Indices, held: NDArray[np.bool_], least: NDArray[np.int64], order: Indices
) -> None:
    """Move groups, one by one, to parts that have too few of a class.

    Args:
        home: Part of each group, shape (G,); changed in place.
        held: Whether a group holds a class, shape (G, C).
        least: Groups of each class that each part needs, shape (P,).
        order: Groups, those to be moved first in front, shape (G,).
    """
    counts = np.stack([held[home == part].sum(axis=0) for part in range(len(least))])
    while (move := _next_move(home, held, least, order, counts)) is not None:
        group, part = move
        counts[home[group]] -= held[group]
        counts[part] += held[group]
        home[group] = part


def _next_move(
    home: Indices,
    held: NDArray[np.bool_],
    least: NDArray[np.int64],
    order: Indices,
    counts: NDArray[np.int64],
) -> tuple[int, int] | None:
    """Return a group and a part that needs it more than the one it is in."""
    for part, label in np.argwhere(counts < least[:, np.newaxis]).tolist():
        for group in order[held[order, label]].tolist():
            giver = home[group]
            # No part gives what it needs itself, so what is lacking only ever shrinks.
            if (counts[giver][held[group]] > least[giver]).all():
                return group, part
    return None


def apportion(counts: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Divide each class among parts of given shares.

    Every number is the exact share rounded up or down, rows add up to the class, and each part's
    total is as near its share as that allows. A class with at least as many images as there are
    parts has one in each.

    Args:
        counts: Images per class, shape (C,).
        shares: Share of each part, shape (P,), adding up to 1.

    Returns:
        Images per class and part, shape (C, P).
    """
    exact = counts[:, np.newaxis] * shares
    # Shares such as 40/200 of 200 must not come out as 39.999.
    result = np.floor(exact + 1e-9).astype(np.int64)
    owed = exact.sum(axis=0) - result.sum(axis=0)
    for row in range(len(counts)):
        for _ in range(int(counts[row] - result[row].sum())):
            # To the part that is owed most, among those that this class has not rounded up yet.
            open_parts = (exact[row] - result[row] > 1e-9) & (result[row] <= exact[row] - 1e-9)
            part = int(np.argmax(np.where(open_parts, owed, -np.inf)))
            result[row, part] += 1
            owed[part] -= 1
        while counts[row] >= len(shares) and not result[row].all():
            empty, fullest = int(np.argmin(result[row])), int(np.argmax(result[row]))
            result[row, empty] += 1
            result[row, fullest] -= 1
            owed[empty], owed[fullest] = owed[empty] - 1, owed[fullest] + 1
    return result


def _keyed(seed: int, content: str) -> str:
    return hashlib.blake2b(f"{seed} {content}".encode(), digest_size=16).hexdigest()
