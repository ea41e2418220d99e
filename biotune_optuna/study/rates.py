"""Bounds of the base learning rate that suit the network."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.genome import USUAL_RATES
from biotune_optuna.recipe import Recipe
from biotune_optuna.schema import Cost

if TYPE_CHECKING:
    from biotune_optuna.study.setup import Setup


_log = logging.getLogger(__name__)

_SCALES: Final = (1.0, 0.1, 0.01)
_STEPS: Final = 30
_EPOCHS: Final = 3
_LEARNED: Final = 0.9  # of the loss of guessing


@dataclass(frozen=True, slots=True)
class RateCheck(Cost):
    """What the short trainings showed, and their cost.

    Attributes:
        bounds: Lower and upper bound of the base learning rate.
        guess: Training loss of whoever knows no more than how often each class occurs.
        tried: ``{"lr", "loss"}`` of each short training; the loss is that of its last epoch, None
            where it was not finite.
    """

    bounds: tuple[float, float] = USUAL_RATES
    guess: float = math.nan
    tried: tuple[dict[str, float | None], ...] = ()


def find_rates(setup: Setup, *, checkpoint: Callable[[], None] | None = None) -> RateCheck:
    """Bounds of the base learning rate in whose middle full fine-tuning learns at all.

    The usual bounds suit networks with normalisation layers. Others, such as VGG, are destroyed by
    them, and a search that begins with dead networks learns from none of its trials. So the whole
    network is trained for some 30 steps at the geometric middle of the bounds. Where its training
    loss stays above nine tenths of that of guessing, the bounds are lowered tenfold, and once more.
    Where that does not help either, the usual bounds are taken. What only makes the loss another
    one, label smoothing and mixed images, is left out.

    Args:
        setup: Data, model and trainer.
        checkpoint: Called after each epoch; raises to stop.

    Returns:
        The bounds, and what was seen.
    """
    settings = setup.spec.train
    images = _some(setup, most=math.ceil(_STEPS / _EPOCHS) * settings.batch_size)
    steps = math.ceil(len(images) / settings.batch_size)
    trainer = setup.trainer.with_settings(
        epochs=math.ceil(_STEPS / steps), label_smoothing=0.0, mixup=0.0, cutmix=0.0
    )
    balanced = "balanced" in (settings.class_weights, settings.sampling)
    guess = guessing_loss(setup.source.labels[images], balanced=balanced)
    tried: list[dict[str, float | None]] = []
    results = []
    found = USUAL_RATES
    for scale in _SCALES:
        bounds = _scaled(*USUAL_RATES, scale)
        rate = math.sqrt(bounds[0] * bounds[1])
        recipe = Recipe.full(setup.blocks, lr=rate, weight_decay=setup.space.base_weight_decay)
        result = trainer.fit(
            recipe,
            images,
            seed=setup.spec.search_runs()[0].seed,
            on_epoch=lambda _record: checkpoint() if checkpoint else None,
        )
        results.append(result)
        loss = result.epochs[-1].train_loss if result.epochs else math.nan
        tried.append({"lr": rate, "loss": loss if math.isfinite(loss) else None})
        if not result.diverged and loss < _LEARNED * guess:
            found = bounds
            break
        last = scale == _SCALES[-1]
        _log.warning(
            "in %d steps at a base rate of %.2g the whole network learned nothing: %s",
            steps * trainer.settings.epochs,
            rate,
            "lower rates do not help, so the usual range is searched" if last else "trying a tenth",
        )
    return RateCheck(
        bounds=found,
        guess=guess,
        tried=tuple(tried),
        forward=sum(result.images_forward for result in results),
        backward=sum(result.images_backward for result in results),
        seconds=round(sum(result.seconds for result in results), 3),
    )


def guessing_loss(labels: NDArray[np.int64], *, balanced: bool) -> float:
    """Cross-entropy of the best prediction that is the same for all images, in nats.

    Args:
        labels: Labels, (n,).
        balanced: Whether all classes weigh the same, however often they occur.
    """
    _, counts = np.unique(labels, return_counts=True)
    shares = np.full(len(counts), 1 / len(counts)) if balanced else counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _some(setup: Setup, *, most: int) -> NDArray[np.int64]:
    """So many training images at most, always the same ones."""
    train = setup.splits.run(None)[0]
    order = np.random.default_rng([setup.spec.seed, most]).permutation(train)
    return np.sort(order[:most])


def _scaled(low: float, high: float, scale: float) -> tuple[float, float]:
    return float(f"{low * scale:.3g}"), float(f"{high * scale:.3g}")
