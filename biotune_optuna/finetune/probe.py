"""The head of a network, fitted by logistic regression on what the frozen network says of images.

One pass over the images is enough. The layer that computes the class scores gets the fitted
weights, so the network stays what it was to everybody who loads it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from biotune_optuna.errors import ModelError
from biotune_optuna.finetune import metrics
from biotune_optuna.finetune.device import evaluated_at_once, kind_of
from biotune_optuna.finetune.feeds import outputs, probabilities
from biotune_optuna.finetune.logistic import fit_logistic
from biotune_optuna.finetune.results import EpochRecord, RunResult
from biotune_optuna.models.blocks import output_layers
from biotune_optuna.models.states import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from biotune_optuna.finetune.batches import Indices
    from biotune_optuna.finetune.feeds import Feed
    from biotune_optuna.finetune.settings import TrainSettings

_ALIKE = 2e-2  # of the largest score: bfloat16 rounds to 8 bits


def linear_output(model: nn.Module, paths: Sequence[str] = ()) -> nn.Linear | nn.Conv2d | None:
    """Return the one layer that computes a network's class scores, None where it is not one.

    Args:
        model: The network.
        paths: Modules that classify, where a plain module does not say which do.
    """
    layers = [*output_layers(model).values()] or [
        layer
        for path in paths
        for layer in model.get_submodule(path).modules()
        if isinstance(layer, nn.Linear)
    ]
    if len(layers) != 1:
        return None
    (layer,) = layers
    point = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
    if layer.bias is None or not (isinstance(layer, nn.Linear) or point):
        return None
    return layer  # type: ignore[return-value]


class LastFeatures:
    """What a network hands to its output layer.

        with LastFeatures(layer).watching() as last:
            features = last.of(forward, idx, batch_size, device, amp)

    Args:
        layer: The output layer.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self.layer = layer
        self._seen: list[torch.Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[LastFeatures]:
        """Look at what goes into the layer."""

        def look(_layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            self._seen.append(given[0])

        handle = self.layer.register_forward_pre_hook(look)
        try:
            yield self
        finally:
            handle.remove()

    def of(
        self,
        forward: Callable[[Indices], torch.Tensor],
        idx: Indices,
        batch_size: int,
        device: torch.device,
        amp: torch.dtype | None,
    ) -> NDArray[np.float32] | None:
        """Return the features of images; None where the layer's scores are not the network's.

        Args:
            forward: Maps positions of images to the network's scores.
            idx: Positions, (n,).
            batch_size: Images at once.
            device: Where the network is.
            amp: Autocast type or None.
        """
        same, width = True, self.layer.weight.shape[1]

        def features(few: Indices) -> torch.Tensor:
            nonlocal same
            self._seen.clear()
            scores = forward(few).float()
            if len(self._seen) != 1 or self._seen[0].flatten(1).shape[1] != width:
                same = False
                return scores
            seen = self._seen[0]
            direct = self.layer(seen).flatten(1).float()
            apart = (direct - scores).abs().max() if direct.shape == scores.shape else math.inf
            same &= not bool(apart > _ALIKE * scores.abs().max() + 1e-6)  # NaN is no difference
            return seen.flatten(1)

        found, _ = outputs(features, idx, batch_size, device, amp)
        return found.cpu().numpy() if same else None


def features_before_head(
    model: nn.Module,
    batch: Callable[[Indices], torch.Tensor],
    idx: Indices,
    *,
    batch_size: int,
    device: torch.device,
    amp: torch.dtype | None,
) -> NDArray[np.float32]:
    """Return timm's features before the classifier, for a network with more than one output layer.

    Args:
        model: The network, in eval mode.
        batch: Maps positions to images.
        idx: Positions, (n,).
        batch_size: Images at once.
        device: Where the network is.
        amp: Autocast type or None.

    Raises:
        ModelError: If the network has no such features.
    """

    def features(few: Indices) -> torch.Tensor:
        found = model.forward_head(model.forward_features(batch(few)), pre_logits=True)  # type: ignore[operator]
        return (
            torch.cat([one.flatten(1) for one in found], 1) if isinstance(found, tuple) else found
        )

    try:
        found, _ = outputs(features, idx, batch_size, device, amp)
    except (AttributeError, TypeError) as error:
        raise ModelError(
            f"{type(model).__name__} gives no features to fit a linear probe on: {one_line(error)}"
        ) from error
    return found.flatten(1).cpu().numpy()


def fit_head(
    model: nn.Module,
    layer: nn.Linear | nn.Conv2d,
    feed: Feed,
    settings: TrainSettings,
    *,
    labels: Indices,
    train: Indices,
    val: Indices | None,
    n_classes: int,
    seed: int,
    amp: torch.dtype | None,
) -> RunResult | None:
    """Fit a network's output layer to convergence; all else stays as it is.

    Args:
        model: The network, in eval mode.
        layer: Its output layer, which gets the fitted weights.
        feed: Gives the network's scores of images.
        settings: Metric, batch size and class weights; balanced sampling counts as such.
        labels: Labels of all images, (N,).
        train: Positions of the images to fit on, at least 2.
        val: Positions of the images to score on, or None.
        n_classes: Number of classes.
        seed: Decides the folds that the strength of the penalty is chosen in.
        amp: Autocast type or None.

    Returns:
        One epoch, which is the pass over the images; None where the layer's scores are not the
        network's, and nothing has been changed.
    """
    start = time.perf_counter()
    device = layer.weight.device
    size = evaluated_at_once(settings.batch_size, device)
    with LastFeatures(layer).watching() as last:
        features = last.of(lambda few: feed.logits(feed.inputs(few)[0]), train, size, device, amp)
    if features is None:
        return None
    result = RunResult(
        score=math.nan,
        images_forward=len(train),
        batch_size=size,
        device=kind_of(device, amp),
        fitted=True,
    )
    result.trainable_parameters = sum(p.numel() for p in layer.parameters())
    result.total_parameters = sum(p.numel() for p in model.parameters())
    if not np.isfinite(features).all():
        result.diverged, result.stopped = True, "diverged"
        result.score = math.nan if val is None else metrics.worst(settings.metric)
        return result
    balanced = "balanced" in (settings.class_weights, settings.sampling)
    fitted = fit_logistic(
        features,
        labels[train],
        n_classes=n_classes,
        metric=settings.metric,
        class_weights="balanced" if balanced else "none",
        seed=seed,
    )
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(fitted.weight).reshape(layer.weight.shape))
        layer.bias.copy_(torch.from_numpy(fitted.bias))
    scores = features @ fitted.weight.T + fitted.bias
    likely = scores - scores.max(axis=1, keepdims=True)
    likely -= np.log(np.exp(likely).sum(axis=1, keepdims=True))
    loss = -float(likely[np.arange(len(train)), labels[train]].mean())
    result.best_epoch = 1
    if val is not None:
        probs, _ = probabilities(feed.evaluate, val, size, device, amp)
        result.images_forward += len(val)
        result.score = metrics.score(settings.metric, labels[val], probs, n_classes)
        result.predictions, result.probabilities = probs.argmax(1), probs
    result.epochs = [EpochRecord(1, loss, result.score, time.perf_counter() - start)]
    return result
