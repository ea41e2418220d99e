"""Outputs of frozen prefixes, computed once and shared by epochs, seeds and trials.

What is cached never depends on what ran before: an entry holds the features of one exact set of
images, computed in chunks of that set's own order, so a study resumed with an empty cache computes
the very bits that the interrupted one had.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from biotune_optuna.data.transfer import to_device
from biotune_optuna.errors import BioTuneError
from biotune_optuna.finetune.device import out_of_memory
from biotune_optuna.finetune.sharing import sharers

if TYPE_CHECKING:
    from biotune_optuna.finetune.batches import Indices
    from biotune_optuna.finetune.feeds import Images
    from biotune_optuna.finetune.prefix.cut import Features, PrefixCut


_MIB = 2**20
_SHARE = 0.2  # of a card's memory
_ELSEWHERE_MB = 512.0
CHUNK = 64
"""Images of one forward pass through a prefix."""


def budget_mb(setting: float | str, device: torch.device) -> float:
    """Return the memory for cached prefixes in MiB.

    Args:
        setting: MiB, or ``"auto"``: a fifth of a card's memory, divided among the workers that
            share it; 512 elsewhere.
        device: Where the features are kept.
    """
    if not isinstance(setting, str):
        return setting
    if device.type != "cuda":
        return _ELSEWHERE_MB
    return _SHARE * torch.cuda.get_device_properties(device).total_memory / _MIB / sharers()


class DoesNotFitError(BioTuneError):
    """The device has no memory for the features of a set of images."""


class CachedFeatures:
    """Features of a set of images, in memory on the device.

    Args:
        idx: Positions of the images, ascending, (n,).
        n_images: Number of images that there are, N.
    """

    def __init__(self, idx: Indices, n_images: int) -> None:
        self._rows = np.full(n_images, -1, dtype=np.int64)
        self._rows[idx] = np.arange(len(idx))
        self._n = len(idx)
        self._stores: list[torch.Tensor] = []
        self._orders: list[tuple[int, ...]] = []
        self._backs: list[tuple[int, ...]] = []

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        return sum(store.numel() * store.element_size() for store in self._stores)

    def write(self, start: int, features: Features) -> None:
        """Store the features of the images from the start-th on.

        Raises:
            DoesNotFitError: If there is no memory for those of all images.
        """
        for position, tensor in enumerate(features):
            if position == len(self._stores):
                # kept in the order of its memory, so that a row is one piece in any format
                order = _memory_order(tensor)
                shape = (self._n, *(tensor.shape[d] for d in order[1:]))
                self._stores.append(_empty(shape, tensor))
                self._orders.append(order)
                self._backs.append(tuple(order.index(d) for d in range(len(order))))
            part = self._stores[position][start : start + len(tensor)]
            part.copy_(tensor.permute(self._orders[position]))

    def __call__(self, idx: Indices) -> Features:
        """Features of images in the set, as fresh tensors of len(idx) rows."""
        rows = torch.from_numpy(self._rows[idx])
        rows = to_device(rows, self._stores[0].device)
        return tuple(
            store.index_select(0, rows).permute(back)
            for store, back in zip(self._stores, self._backs, strict=True)
        )


class PrefixCache:
    """Least-recently-used features under a memory budget. Safe to share between threads.

    Args:
        megabytes: Budget in MiB.
    """

    def __init__(self, megabytes: float) -> None:
        self.budget = int(megabytes * _MIB)
        self._entries: OrderedDict[Hashable, CachedFeatures] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Memory taken by all entries."""
        with self._lock:
            return sum(entry.nbytes for entry in self._entries.values())

    def get(
        self, key: Hashable, make: Callable[[], CachedFeatures | None], nbytes: int
    ) -> tuple[CachedFeatures | None, bool]:
        """Look features up, or make room and compute them.

        Args:
            key: Everything that the features depend on.
            make: Computes them; None where they do not fit.
            nbytes: Memory they will take.

        Returns:
            What is there or was made, and whether it was there.
        """
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key], True
            self._make_room(nbytes)
        made = make()
        if made is None:
            return None, False
        with self._lock:
            self._entries[key] = made
            self._make_room(0)
        return made, False

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()

    def _make_room(self, nbytes: int) -> None:
        held = sum(entry.nbytes for entry in self._entries.values())
        while self._entries and held + nbytes > self.budget:
            _, oldest = self._entries.popitem(last=False)
            held -= oldest.nbytes


def compute_features(
    cut: PrefixCut,
    images: Images,
    idx: Indices,
    *,
    autocast: Callable[[], Any],
    augmentation: str = "none",
    generator: torch.Generator | None = None,
    chunk: int = CHUNK,
) -> CachedFeatures:
    """Run a frozen prefix over images, in eval mode, in chunks of their ascending order.

    Args:
        cut: Where the prefix ends.
        images: Pixels.
        idx: Positions, ascending, without repeats.
        autocast: Makes the context that the run trains in.
        augmentation: Policy of the data layer, for a fixed view.
        generator: Draws of that view.
        chunk: Images of one forward pass.
    """
    found = CachedFeatures(idx, len(images))
    with torch.no_grad():
        for start in range(0, len(idx), chunk):
            batch = images.batch(
                idx[start : start + chunk], augmentation=augmentation, generator=generator
            )
            with autocast():
                features = cut.prefix(batch)
            found.write(start, features)
    return found


def _empty(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    try:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    # outside the handler, whose traceback would keep tensors alive
    raise DoesNotFitError(f"memory ran out for {shape[0]} images' features")


def _memory_order(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the dimensions from the slowest to the fastest in memory, rows first."""
    strides = tensor.stride()
    return (0, *sorted(range(1, tensor.ndim), key=lambda d: -strides[d]))
