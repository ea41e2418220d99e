"""Which frozen prefixes of a model are cached, and their features."""

from __future__ import annotations

import copy
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from biotune_optuna.finetune.device import (
    amp_dtype,
    autocast,
    full_precision,
    isolated_randomness,
    out_of_memory,
    release_memory,
    with_less,
)
from biotune_optuna.finetune.prefix.cache import (
    CHUNK,
    DoesNotFitError,
    budget_mb,
    compute_features,
)
from biotune_optuna.finetune.prefix.cut import ALIKE, CHECKED_IMAGES, close, find_cut
from biotune_optuna.models.states import digest, restore
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from biotune_optuna.finetune.batches import Indices
    from biotune_optuna.finetune.feeds import Images
    from biotune_optuna.finetune.prefix.cache import CachedFeatures, PrefixCache
    from biotune_optuna.finetune.prefix.cut import Features, PrefixCut
    from biotune_optuna.finetune.settings import TrainSettings
    from biotune_optuna.recipe import BlockLike


_log = logging.getLogger("biotune_optuna.finetune")

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """A frozen prefix whose features are at hand for one run.

    Attributes:
        cut: Where it ends.
        train: Features of the training images, one for each view.
        evaluation: Features of the validation images, or None.
        computed: Images whose features had to be computed.
    """

    cut: PrefixCut
    train: list[CachedFeatures]
    evaluation: CachedFeatures | None
    computed: int


@dataclass(eq=False)
class Prefixes:
    """Finds cuts, checks them, and decides what is cached.

    The decision depends on recipe, settings, model, device and number of images alone, unless the
    device's memory runs out. Where the cut behind the last frozen block cannot be used, the next
    earlier one that can is taken.

    Attributes:
        model: The network, on its device.
        blocks: Its blocks.
        images: Pixels and labels.
        settings: The budget, and what rules caching out.
        cache: Where features are kept.
        pristine: The values that runs start from.
    """

    model: nn.Module
    blocks: Sequence[BlockLike]
    images: Images
    settings: TrainSettings
    cache: PrefixCache
    pristine: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        self._digests: dict[int, str] = {}
        self._cuts_by_precision: dict[torch.dtype | None, dict[int, PrefixCut | None]] = {}
        self._device = next(self.model.parameters()).device
        self._use(self.settings)

    def with_settings(self, settings: TrainSettings) -> Prefixes:
        """Return what decides by other settings, over the same model and kept features."""
        other = copy.copy(self)
        other._use(settings)
        return other

    def _use(self, settings: TrainSettings) -> None:
        self.settings = settings
        self._budget_mb = budget_mb(settings.prefix_cache_mb, self._device)
        self._amp = amp_dtype(settings.amp, self._device)
        self._cuts = self._cuts_by_precision.setdefault(self._amp, {})

    def find(self, recipe: Recipe, train: Indices, val: Indices | None) -> CachedPrefix | None:
        """Features for a run, or None where it has to go through the whole network.

        Leaves the model at its pristine weights or as it was.

        Args:
            recipe: Its leading frozen blocks are the prefix.
            train: Positions of the training images.
            val: Positions of the validation images, or None.
        """
        settings = self.settings
        augments = settings.augment != "none"
        changes_pixels = settings.mixup or settings.cutmix
        if changes_pixels or settings.frozen_norm == "train":
            return None
        if augments and not settings.cached_views:
            return None
        passes = settings.cached_views if augments else 1
        n_train, n_val = len(np.unique(train)), 0 if val is None else len(np.unique(val))
        for length in range(self._frozen_prefix(recipe), 0, -1):
            cut = self._cut(length)
            if cut is None:
                continue
            nbytes = cut.bytes_per_image * (passes * n_train + n_val)
            if nbytes <= self._budget_mb * _MIB:
                return self._collect(cut, length, train, val, passes)
        return None

    def _frozen_prefix(self, recipe: Recipe) -> int:
        """How many leading blocks of the model the recipe freezes, whatever its own blocks are."""
        frozen = {name for b in recipe.blocks if b.frozen for name in b.parameter_names}
        held = (frozen.issuperset(block.parameter_names) for block in self.blocks)
        return next((i for i, is_frozen in enumerate(held) if not is_frozen), 0)

    # -- features --------------------------------------------------------------------------------

    def _collect(
        self, cut: PrefixCut, length: int, train: Indices, val: Indices | None, passes: int
    ) -> CachedPrefix | None:
        """Return the features, or None where the device has no memory for them."""
        policy = self.settings.augment
        wanted = [(train, policy, view) for view in range(passes)]
        if val is not None:
            wanted.append((val, "none", 0))
        found, computed = [], 0
        for idx, augmentation, view in wanted:
            members = np.unique(idx)
            features, there = self.cache.get(
                self._key(length, members, augmentation, view),
                functools.partial(self._compute, cut, members, augmentation, view),
                cut.bytes_per_image * len(members),
            )
            if features is None:
                return None
            found.append(features)
            computed += 0 if there else len(members)
        evaluation = None if val is None else found.pop()
        return CachedPrefix(cut, found, evaluation, computed)

    def _key(self, length: int, members: Indices, augmentation: str, view: int) -> tuple[Any, ...]:
        if length not in self._digests:
            held = {name: self.pristine[name] for name in self._names(0, length)}
            self._digests[length] = digest(held, structure=repr(self.model))
        image_set = hashlib.sha256(members.tobytes()).hexdigest()
        prefix = (self._digests[length], length, self._amp, self._device)
        # the images themselves are part of the key: other pixels are another object
        return (self.images, image_set, augmentation, view, *prefix)

    def _compute(
        self, cut: PrefixCut, members: Indices, augmentation: str, view: int
    ) -> CachedFeatures | None:
        """Compute features; None, with a warning, where the device has no memory for them."""
        restore(self.model, self.pristine)
        chunk = CHUNK

        def attempt() -> CachedFeatures:
            return compute_features(
                cut,
                self.images,
                members,
                autocast=functools.partial(autocast, self._device, self._amp),
                augmentation=augmentation,
                generator=torch.Generator().manual_seed(view),
                chunk=chunk,
            )

        def less() -> None:
            nonlocal chunk
            if chunk == 1:
                raise DoesNotFitError("memory ran out with 1 image at once")
            chunk //= 2
            _log.warning(
                "memory ran out while a frozen prefix was cached; older features are dropped and "
                "%d images taken at once",
                chunk,
            )
            self._make_room()

        def fitting() -> CachedFeatures | None:
            try:
                return with_less(attempt, less)
            except DoesNotFitError:
                return None

        found = fitting()
        if found is None and len(self.cache):
            self._make_room()
            found = fitting()
        if found is not None:
            return found
        _log.warning(
            "the outputs of a frozen prefix for %d images do not fit into memory (%.0f MiB): "
            "training without the prefix cache",
            len(members),
            cut.bytes_per_image * len(members) / _MIB,
        )
        self._make_room()
        return None

    def _make_room(self) -> None:
        self.cache.clear()
        release_memory(self._device)

    # -- cuts ------------------------------------------------------------------------------------

    def _cut(self, length: int) -> PrefixCut | None:
        """Return the checked cut behind so many blocks."""
        if length not in self._cuts:
            with isolated_randomness(0, self._device), full_precision(self._device):
                restore(self.model, self.pristine)
                try:
                    cut = self._checked_cut(length)
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    return None  # another time there may be memory for the check
                finally:
                    restore(self.model, self.pristine)
            self._cuts[length] = cut
            cost = "not cached" if cut is None else f"{cut.bytes_per_image} bytes an image"
            _log.debug("prefix of %d blocks: %s", length, cost)
        return self._cuts[length]

    def _checked_cut(self, length: int) -> PrefixCut | None:
        behind = set(self._names(length, len(self.blocks)))
        with autocast(self._device, self._amp):
            cut = find_cut(self.model, behind, self._sample)
        if cut is None or self._random_before(cut, length):
            return None
        self.model.eval()
        parameters = dict(self.model.named_parameters())
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in behind)
        suffix = [parameter for parameter in parameters.values() if parameter.requires_grad]
        # a head of zeros would hide every difference
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name in self.blocks[-1].parameter_names:
                noise = torch.randn(parameters[name].shape, generator=generator)
                parameters[name].add_(noise.to(parameters[name]), alpha=0.1)
        return cut if cut.agrees(self._sample(CHECKED_IMAGES), suffix) else None

    def _random_before(self, cut: PrefixCut, length: int) -> bool:
        """Whether what crosses the cut is random, or depends on the batch, in training."""
        frozen = [0.0] * length + [1.0] * (len(self.blocks) - length)
        recipe = Recipe.from_multipliers(self.blocks, frozen, lr=1.0)
        batch = self._sample(CHECKED_IMAGES)
        with torch.no_grad():
            still = _copied(cut.prefix(batch))
            recipe.train_mode(self.model, self.settings.frozen_norm)
            drawn = [_copied(cut.prefix(batch)) for _ in range(2)]
        return not all(
            close(a, b, ALIKE) for other in drawn for a, b in zip(still, other, strict=True)
        )

    def _names(self, start: int, stop: int) -> list[str]:
        chosen = self.blocks[start:stop]
        return [name for b in chosen for name in (*b.parameter_names, *b.buffer_names)]

    def _sample(self, n: int) -> torch.Tensor:
        return self.images.batch(np.arange(n, dtype=np.int64) % len(self.images))


def _copied(features: Features) -> Features:
    return tuple(f.clone() for f in features)
