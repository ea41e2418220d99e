"""Trains recipes on one model and one set of images, again and again from the same weights."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from biotune_optuna.data.views import shown
from biotune_optuna.errors import DataError, ModelError
from biotune_optuna.finetune import metrics
from biotune_optuna.finetune.batches import BatchSampler, Loss, class_weights, mixer
from biotune_optuna.finetune.device import (
    ONE_AT_A_TIME,
    amp_dtype,
    channels_last,
    evaluated_at_once,
    isolated_randomness,
    kernels,
    kind_of,
    resolve_device,
)
from biotune_optuna.finetune.drop_path import dropping
from biotune_optuna.finetune.feeds import PixelFeed, PrefixFeed, probabilities
from biotune_optuna.finetune.hooks import Hooks
from biotune_optuna.finetune.loop import Held, Run
from biotune_optuna.finetune.optim import check_optimizer
from biotune_optuna.finetune.prefix.cache import PrefixCache, budget_mb
from biotune_optuna.finetune.prefix.plan import Prefixes
from biotune_optuna.finetune.prefix.shared import mean_probabilities
from biotune_optuna.finetune.probe import (
    LastFeatures,
    features_before_head,
    fit_head,
    linear_output,
)
from biotune_optuna.finetune.results import EpochRecord, RunResult, StopTraining
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.models.states import (
    all_tensors,
    fresh_eval,
    out_of_place,
    restore,
    with_values,
)
from biotune_optuna.models.weights import reset_head
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from biotune_optuna.finetune.batches import Indices
    from biotune_optuna.finetune.feeds import Feed, Images
    from biotune_optuna.finetune.prefix.plan import CachedPrefix
    from biotune_optuna.recipe import BlockLike

__all__ = ["EpochRecord", "RunResult", "StopTraining", "TrainSettings", "Trainer"]

_log = logging.getLogger("biotune_optuna.finetune")

_BATCHES, _DROPOUT, _AUGMENT, _LOW_RANK = range(4)  # what a run's seed is split into


class Trainer:
    """Trains recipes on one model and one set of images.

    Every run starts from the weights that the model had when the trainer was made, with a head
    drawn anew from the run's seed, so a run depends on its arguments alone: never on what ran
    before it. Runs and predictions of threads of one process take turns, a method's phases as one;
    to train at the same time, use processes.

        trainer = Trainer(model, model_blocks(model), images, TrainSettings(epochs=5))
        result = trainer.fit(Recipe.full(blocks, lr=3e-3), train_idx, val_idx, seed=0)

    Args:
        model: A network that maps images (n, 3, H, W) to logits (n, C). It is moved to the device
            and trained in place.
        blocks: Its blocks, in order, head last.
        images: Images and labels.
        settings: How to train.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        cache: Where outputs of frozen prefixes are kept, to share one between trainers; None makes
            one of the settings' size.

    Raises:
        BioTuneError: If the device is absent or a setting names something unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[BlockLike],
        images: Images,
        settings: TrainSettings,
        *,
        device: str | torch.device = "auto",
        cache: PrefixCache | None = None,
    ) -> None:
        check_optimizer(settings.optimizer)
        self.device = resolve_device(device)
        self.images = images
        self.blocks = tuple(blocks)
        self.model = _place(model, self.device, images)
        self._settings = settings
        self._amp = amp_dtype(settings.amp, self.device)
        self._labels = images.labels(np.arange(len(images))).cpu().numpy().astype(np.int64)
        self._pristine = {n: t.detach().clone() for n, t in all_tensors(self.model).items()}
        self._held: dict[object, Held] = {}
        self._compiled: tuple[object, Callable[[torch.Tensor], torch.Tensor]] | None = None
        self._prefixes = Prefixes(
            self.model,
            self.blocks,
            images,
            settings,
            cache=PrefixCache(budget_mb(settings.prefix_cache_mb, self.device))
            if cache is None
            else cache,
            pristine=self._pristine,
        )

    @property
    def kind(self) -> str:
        """What it trains on and in which type, as ``"NVIDIA H200, bf16"`` or ``"CPU, float32"``."""
        return kind_of(self.device, self._amp)

    @property
    def settings(self) -> TrainSettings:
        """How it trains; `with_settings` gives a trainer of others."""
        return self._settings

    def fit(
        self,
        recipe: Recipe,
        train_idx: ArrayLike,
        val_idx: ArrayLike | None = None,
        *,
        seed: int,
        on_epoch: Callable[[EpochRecord], object] | None = None,
        epochs: int | None = None,
        keep_weights: bool = False,
        hooks: Hooks | None = None,
    ) -> RunResult:
        """Train a recipe from the pre-trained weights.

        Args:
            recipe: Which blocks train, and how fast.
            train_idx: Positions of the training images, at least two.
            val_idx: Positions of the validation images; None trains without early stop.
            seed: Decides the head's first weights, the order of images, dropout and augmentation.
            on_epoch: Called after each epoch; may raise `StopTraining`. What else it raises ends
                the run and reaches the caller.
            epochs: Most epochs; None takes the settings'. The schedule keeps the settings' length,
                so fewer epochs are the beginning of the same run.
            keep_weights: With validation images: put the best epoch's weights back at the end.
                Otherwise the model keeps the last epoch's.
            hooks: What a method does differently; None trains the recipe as it is.

        Returns:
            Score, epochs and cost.

        Raises:
            BioTuneError: If recipe, images and metric do not fit together.
        """
        if recipe.training:
            trainer = self.by(recipe)
            recipe = dataclasses.replace(recipe, training={})
            return trainer.fit(
                recipe,
                train_idx,
                val_idx,
                seed=seed,
                on_epoch=on_epoch,
                epochs=epochs,
                keep_weights=keep_weights,
                hooks=hooks,
            )
        train = self._indices(train_idx)
        val = None if val_idx is None else self._indices(val_idx)
        if val is not None:
            metrics.check(self.settings.metric, self._labels[val], self.images.n_classes)
        if not recipe.trainable:
            raise ModelError("the recipe freezes every block; at least one must train")
        hooks = hooks or Hooks()
        with ONE_AT_A_TIME, kernels(self.device, deterministic=self.settings.deterministic):
            start = time.perf_counter()
            if recipe.fitted:
                fitted = self._fit_head(recipe, train, val, seed, on_epoch)
                if fitted is not None:
                    return fitted
            cached = self._prefixes.find(recipe, train, val) if hooks.prefix_is_fixed else None
            self.reset(seed)
            with (
                isolated_randomness(_derived(seed, _DROPOUT), self.device),
                dropping(self.model, self.settings.drop_path),
                self._feed(cached, recipe, seed, hooks) as feed,
            ):
                run = self._run(recipe, train, val, seed, feed=feed, hooks=hooks)
                result = run.fit(
                    epochs or self.settings.epochs, on_epoch, keep_weights=keep_weights
                )
            result.seconds = time.perf_counter() - start
        if cached is not None:
            result.cache_hits, result.cache_misses = result.images_forward, cached.computed
        return result

    def by(self, recipe: Recipe) -> Trainer:
        """Return the trainer with the settings that a recipe's training genes make.

        Args:
            recipe: Its ``training`` is read.

        Raises:
            BioTuneError: If a value is out of range.
        """
        changed = self.settings.by(recipe.training)
        return self.with_settings(
            **{
                name: value
                for name, value in changed.to_dict().items()
                if value != getattr(self.settings, name)
            }
        )

    def predict(self, idx: ArrayLike, views: Sequence[str] = ()) -> NDArray[np.float32]:
        """Class probabilities with the weights last trained.

        Args:
            idx: Positions of images, (n,).
            views: How each image is shown besides, see `biotune_optuna.data.views`; the
                probabilities are the mean over all views.

        Returns:
            (n, C) float32, in the order of ``idx``.
        """
        size = evaluated_at_once(self.settings.batch_size, self.device)
        positions = self._indices(idx)

        def forward(few: Indices) -> torch.Tensor:
            batch = self.images.batch(few)
            if not views:
                logits: torch.Tensor = self.model(batch)
                return logits
            return torch.stack([self.model(shown(batch, view)) for view in ("", *views)], dim=1)

        with ONE_AT_A_TIME, kernels(self.device, deterministic=self.settings.deterministic):
            fresh_eval(self.model)
            found = probabilities(forward, positions, size, self.device, self._amp)[0]
        return mean_probabilities(found.swapaxes(0, 1)) if views else found

    def features(self, idx: ArrayLike) -> NDArray[np.float32]:
        """Return what the pre-trained network hands to its output layer; images as they are.

        The model has its pre-trained weights afterwards. A probe of the same images finds the
        outputs of the frozen blocks in the cache.

        Args:
            idx: Positions of images, (n,).

        Returns:
            (n, n_features) float32, in the order of ``idx``.

        Raises:
            ModelError: If the network has neither one linear output layer nor timm's features
                before the classifier.
        """
        positions = self._indices(idx)
        with ONE_AT_A_TIME, kernels(self.device, deterministic=self.settings.deterministic):
            plain, layer = self._plain(), self._output_layer()
            recipe = Recipe.fitted_probe(self.blocks)
            cached = plain._prefixes.find(recipe, positions, None)
            self.reset(0)
            found = None
            size = evaluated_at_once(self.settings.batch_size, self.device)
            if layer is not None:
                with (
                    plain._feed(cached, recipe, 0, Hooks()) as feed,
                    LastFeatures(layer).watching() as last,
                ):
                    found = last.of(
                        lambda few: feed.logits(feed.inputs(few)[0]),
                        *(positions, size, self.device, self._amp),
                    )
            if found is None:
                found = features_before_head(
                    self.model,
                    self.images.batch,
                    positions,
                    batch_size=size,
                    device=self.device,
                    amp=self._amp,
                )
        return found

    def reset(self, seed: int) -> None:
        """Put back the pre-trained weights and draw the head anew; leave the model in eval mode.

        Args:
            seed: Seed of the head.
        """
        restore(self.model, self._pristine)
        # a plain module does not say which layer classifies: its whole last block is drawn anew
        modules = {name.rpartition(".")[0] for name in self.blocks[-1].parameter_names}
        reset_head(self.model, seed, sorted(modules))

    def changed(self) -> dict[str, torch.Tensor]:
        """Return a copy of what the last training has made of the model, on the CPU.

        Returns:
            Those parameters and buffers, by name, that differ from the pre-trained ones.
        """
        return {
            name: tensor.detach().cpu().clone()
            for name, tensor in all_tensors(self.model).items()
            if not torch.equal(tensor, self._pristine[name])
        }

    def put(self, changed: Mapping[str, torch.Tensor]) -> None:
        """Put back the weights of an earlier training; leave the model in eval mode.

        Args:
            changed: What `changed` returned after it.
        """
        restore(self.model, self._pristine | dict(changed))

    def networks(self, members: Sequence[Mapping[str, torch.Tensor]]) -> list[nn.Module]:
        """Return one network a training, apart from the trainer's own.

        They share, as the same objects, all parameters and buffers that none of the trainings has
        changed.

        Args:
            members: What `changed` returned after each training, at least one.
        """
        with ONE_AT_A_TIME:
            self.put(members[0])
            first = copy.deepcopy(self.model)
        differing = {name for changed in members for name in changed}
        values = [
            {name: changed.get(name, self._pristine[name]) for name in differing}
            for changed in members
        ]
        return [first, *(with_values(first, one) for one in values[1:])]

    def clear_cache(self) -> None:
        """Forget the outputs of frozen prefixes; runs that need them compute them again."""
        self._prefixes.cache.clear()

    def with_settings(self, **changes: Any) -> Trainer:
        """Return the same trainer with other settings.

        Model, weights and cached prefixes are shared, so only one of the two may train at a time.
        With other ``epochs``, a schedule of its own length grows, and a warm-up shrinks, where it
        would not fit.

        Args:
            **changes: Fields of `TrainSettings`.

        Raises:
            BioTuneError: If a value is out of range or names something unknown.
        """
        settings = self.settings
        epochs, length = changes.get("epochs", settings.epochs), settings.schedule_epochs
        fitting = {
            "schedule_epochs": None if length is None else max(length, epochs),
            "warmup_epochs": min(settings.warmup_epochs, epochs - 1),
        }
        other = copy.copy(self)
        other._settings = dataclasses.replace(settings, **{**fitting, **changes})
        check_optimizer(other.settings.optimizer)
        other._amp = amp_dtype(other.settings.amp, self.device)
        other._prefixes = self._prefixes.with_settings(other.settings)
        return other

    # -- parts -----------------------------------------------------------------------------------

    def _fit_head(
        self,
        recipe: Recipe,
        train: Indices,
        val: Indices | None,
        seed: int,
        on_epoch: Callable[[EpochRecord], object] | None,
    ) -> RunResult | None:
        """Fit the head by logistic regression; None where the network's end is not linear."""
        start = time.perf_counter()
        if len(train) < 2:
            raise DataError(f"{len(train)} training images are too few; give at least 2")
        plain, layer, result = self._plain(), self._output_layer(), None
        if layer is not None:
            cached = plain._prefixes.find(recipe, train, val)
            self.reset(seed)
            with plain._feed(cached, recipe, seed, Hooks()) as feed:
                result = fit_head(
                    self.model,
                    layer,
                    feed,
                    self.settings,
                    labels=self._labels,
                    train=train,
                    val=val,
                    n_classes=self.images.n_classes,
                    seed=seed,
                    amp=self._amp,
                )
        if result is None:
            _log.warning(
                "%s does not end in one linear layer, so its head is trained at rate %g instead of "
                "being fitted",
                type(self.model).__name__,
                recipe.lr,
            )
            return None
        if cached is not None:
            result.cache_hits, result.cache_misses = result.images_forward, cached.computed
        result.seconds = time.perf_counter() - start
        if on_epoch is not None and result.epochs:
            try:
                on_epoch(result.epochs[0])
            except StopTraining:
                result.stopped = "callback"
        return result

    def _plain(self) -> Trainer:
        """Return a trainer that sees images as they are, whatever this one does to them."""
        return self.with_settings(
            augment="none", mixup=0.0, cutmix=0.0, frozen_norm="eval", compile=False
        )

    def _output_layer(self) -> nn.Linear | nn.Conv2d | None:
        modules = {name.rpartition(".")[0] for name in self.blocks[-1].parameter_names}
        return linear_output(self.model, sorted(modules))

    def _run(
        self,
        recipe: Recipe,
        train: Indices,
        val: Indices | None,
        seed: int,
        *,
        feed: Feed,
        hooks: Hooks,
    ) -> Run:
        labels, balanced = self._labels[train], self.settings.class_weights == "balanced"
        size = self.settings.batch_size
        # what takes memory; a run then begins with what sufficed for those before it
        modes, drops = tuple(recipe.modes.items()), self.settings.drop_path > 0
        kind = (recipe.frozen, modes, drops, size, type(feed), type(hooks), self._amp)
        at_first = Held(size, evaluated_at_once(size, self.device))
        return Run(
            self.model,
            recipe,
            self.settings,
            feed=feed,
            sampler=BatchSampler(
                train, labels, sampling=self.settings.sampling, seed=_derived(seed, _BATCHES)
            ),
            loss=Loss(
                label_smoothing=self.settings.label_smoothing,
                weights=class_weights(labels, self.images.n_classes) if balanced else None,
                device=self.device,
            ),
            labels=self._labels,
            n_classes=self.images.n_classes,
            val_idx=val,
            hooks=hooks,
            amp=self._amp,
            held=self._held.setdefault(kind, at_first),
            seed=_derived(seed, _LOW_RANK),
        )

    @contextlib.contextmanager
    def _feed(
        self, cached: CachedPrefix | None, recipe: Recipe, seed: int, hooks: Hooks
    ) -> Iterator[Feed]:
        if cached is not None:
            with cached.cut.installed() as suffix:
                yield PrefixFeed(suffix, self._labels, self.device, cached)
            return
        yield PixelFeed(
            self._network(recipe, hooks),
            self.images,
            augmentation=self.settings.augment,
            generator=torch.Generator().manual_seed(_derived(seed, _AUGMENT)),
            mix=mixer(self.settings, self.images.n_classes),
        )

    def _network(self, recipe: Recipe, hooks: Hooks) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the model, compiled anew for each pattern of frozen blocks and kind of hooks.

        One compiled network would keep a variant for each, and give up after a few: then a run
        would depend on those before it.
        """
        if not self.settings.compile:
            return self.model
        modes = tuple(recipe.modes.items())
        pattern = (
            *(recipe.frozen, modes, self.settings.drop_path),
            *(type(hooks), hooks.prefix_is_fixed),
        )
        if self._compiled is None or self._compiled[0] != pattern or not hooks.prefix_is_fixed:
            torch.compiler.reset()
            self._compiled = (pattern, torch.compile(self.model))
        return self._compiled[1]

    def _indices(self, idx: ArrayLike) -> Indices:
        found: Indices = np.asarray(idx, dtype=np.int64)
        n = len(self.images)
        if found.ndim != 1 or (found.size and not (found.min() >= 0 and found.max() < n)):
            raise DataError(f"image positions must be a list of numbers from 0 to {n - 1}")
        return found


def _place(model: nn.Module, device: torch.device, images: Images) -> nn.Module:
    """Move a model to a device, in the memory format of the images, and show it one batch."""
    sample = images.batch(np.zeros(2, dtype=np.int64))
    if sample.device != device:
        raise DataError(f"the images are on {sample.device} and training is on {device}")
    model = model.to(device)
    out_of_place(model)
    if sample.is_contiguous(memory_format=torch.channels_last):
        model = channels_last(model)
    # Some networks make a buffer to the images' size when they first see one: not within a run.
    fresh_eval(model)
    with torch.no_grad():
        model(sample)
    fresh_eval(model)
    return model


def _derived(seed: int, purpose: int) -> int:
    """Return a seed for one purpose; the purposes' streams do not meet."""
    return int(np.random.SeedSequence([seed, purpose]).generate_state(1, np.uint64)[0] >> 1)
