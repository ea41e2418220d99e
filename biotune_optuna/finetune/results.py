"""What a run leaves behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Stopped = Literal["finished", "patience", "diverged", "callback", "behind"]


class StopTraining(Exception):  # noqa: N818 - a request, not a failure
    """Raised by an ``on_epoch`` callback to end the run after the epoch it was told of."""


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: Counted from 1.
        train_loss: Mean loss over the epoch's images (NaN when it diverged).
        score: Validation score after the epoch; NaN without validation images.
        seconds: Wall time of training and validation.
    """

    epoch: int
    train_loss: float
    score: float
    seconds: float


@dataclass(slots=True)
class RunResult:
    """One training run and what it cost.

    Attributes:
        score: Validation score of the best epoch; the metric's worst value if the run diverged;
            NaN without validation images.
        best_epoch: The epoch of that score, counted from 1; the last one without validation; 0 if
            none counts.
        epochs: The epochs, in order.
        seconds: Wall time of the whole run.
        images_forward: Images passed forward, training and validation, through at least the part
            of the network that trains. Each pass counts, whether its prefix was cached or not.
        images_backward: Images passed backward.
        peak_memory_mb: Peak memory in MiB: all that the process had allocated on the device (CUDA),
            pixels and cached prefixes too, else resident memory of the process sampled at the first
            step of every fifth epoch, after its forward pass.
        trainable_parameters: Parameters that train.
        total_parameters: Parameters of the model, each counted once: the denominator of
            `trainable_fraction`.
        cache_hits: Image passes whose frozen prefix was served from the cache.
        cache_misses: Images whose frozen prefix this run computed to fill the cache. The only
            figure beside times and memory that depends on what ran before.
        diverged: Whether a loss became infinite, NaN or absurdly large, or, without validation
            images, a weight was infinite or NaN at the end.
        batch_size: Images held at once in training: the settings' batch size, or less after memory
            ran out.
        device: What it ran on and in which type, as ``"NVIDIA H200, bf16"``.
        stopped: Why the run ended; ``"behind"`` others, see `biotune_optuna.study.losers`.
        predictions: Class predicted for each validation image at the best epoch, (n_val,); None
            without validation images.
        probabilities: What that prediction was made of, (n_val, C); None likewise.
        fitted: Whether the head was fitted instead of trained by steps.
    """

    score: float
    best_epoch: int = 0
    epochs: list[EpochRecord] = field(default_factory=list)
    seconds: float = 0.0
    images_forward: int = 0
    images_backward: int = 0
    peak_memory_mb: float = 0.0
    trainable_parameters: int = 0
    total_parameters: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    diverged: bool = False
    batch_size: int = 0
    device: str = ""
    stopped: Stopped = "finished"
    predictions: NDArray[np.int64] | None = None
    probabilities: NDArray[np.float32] | None = None
    fitted: bool = False

    @property
    def trainable_fraction(self) -> float:
        """Trainable over total parameters, in [0, 1]."""
        return self.trainable_parameters / self.total_parameters if self.total_parameters else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All fields but those of single images, and `trainable_fraction`; JSON-ready but NaN."""
        data = asdict(self) | {"trainable_fraction": self.trainable_fraction}
        del data["predictions"], data["probabilities"]
        return data


def charge(result: RunResult, earlier: RunResult) -> RunResult:
    """Add an earlier phase's cost to a result, and return it."""
    result.seconds += earlier.seconds
    result.images_forward += earlier.images_forward
    result.images_backward += earlier.images_backward
    result.cache_hits += earlier.cache_hits
    result.cache_misses += earlier.cache_misses
    result.peak_memory_mb = max(result.peak_memory_mb, earlier.peak_memory_mb)
    return result


def standard_error(scores: Sequence[float]) -> float:
    """Return the standard error of the mean of scores; 0 with one."""
    n = len(scores)
    return float(np.std(scores, ddof=1)) / math.sqrt(n) if n > 1 else 0.0


def epochs_of_final_run(best_epochs: Sequence[int]) -> int:
    """How long a run without validation trains: the median best epoch, halves up, at least 1."""
    return max(1, math.floor(float(np.median(best_epochs)) + 0.5))
