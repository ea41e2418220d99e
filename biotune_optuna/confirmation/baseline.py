"""A rival alone: tuned on the validation images, confirmed on fresh seeds, tested once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from biotune_optuna.confirmation.protocol import train_finally
from biotune_optuna.confirmation.statistics import Interval, bootstrap_interval
from biotune_optuna.finetune.results import epochs_of_final_run, standard_error
from biotune_optuna.methods.registry import get_method

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from biotune_optuna.finetune.results import EpochRecord, RunResult
    from biotune_optuna.study.objective import Observer
    from biotune_optuna.study.setup import Setup

__all__ = ["Baseline", "run_baseline", "setting_words"]


@dataclass
class Baseline:
    """What a method reached and what it cost.

    Attributes:
        method: The method's name.
        metric: The metric of all scores.
        grid: Settings tried, one run each, with their validation score under ``score``.
        setting: The best of them.
        scores: Validation scores of that setting on fresh seeds.
        best_epochs: Best epoch of each of those runs.
        test: Score on the test images, once, after training on training and validation images.
        trainable_pct: Share of the parameters that train at the end, in percent.
        forward: Image passes forward, all runs together.
        backward: Image passes backward.
        seconds: Wall time of all runs.
    """

    method: str
    metric: str
    grid: list[dict[str, float]] = field(default_factory=list)
    setting: dict[str, float] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)
    best_epochs: list[int] = field(default_factory=list)
    test: Interval = field(default_factory=lambda: Interval(math.nan, math.nan, math.nan))
    trainable_pct: float = 0.0
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Mean validation score on the fresh seeds."""
        return float(np.mean(self.scores))

    @property
    def stderr(self) -> float:
        """Standard error of `mean`; 0 with one run."""
        return standard_error(self.scores)

    def charge(self, result: RunResult) -> RunResult:
        """Add a run's cost."""
        self.forward += result.images_forward
        self.backward += result.images_backward
        self.seconds += result.seconds
        self.trainable_pct = 100 * result.trainable_fraction
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return the baseline as JSON-ready data."""
        data = asdict(self) | {"mean": self.mean, "stderr": self.stderr}
        tested = math.isfinite(self.test.value)
        return data | {"test": self.test._asdict() if tested else None}


def run_baseline(
    setup: Setup,
    method: str,
    *,
    n_runs: int = 3,
    observer: Observer | None = None,
    checkpoint: Callable[[], None] | None = None,
) -> Baseline:
    """Trains a rival as `confirm` trains the winner of a search.

    Each of the method's settings gets one run on the search's first seed; the best is run on
    ``n_runs`` seeds that tuning never used; then it is trained on training and validation images
    together for the median best epoch and tested once.

    Args:
        setup: Data, model and trainer.
        method: A name in `biotune_optuna.methods.methods`.
        n_runs: Fresh seeds.
        observer: Told of the progress.
        checkpoint: Called after each epoch; raises to stop.

    Returns:
        Scores and cost; the trainer holds the tested weights.

    Raises:
        BioTuneError: If there is no such method.
    """
    chosen = get_method(method)
    spec, splits = setup.spec, setup.splits
    train, val = splits.run(None)
    found = Baseline(method=method, metric=spec.train.metric)
    settings = chosen.settings()
    total, done = len(settings) + n_runs + 1, 0

    def on_epoch(_record: EpochRecord) -> None:
        if checkpoint:
            checkpoint()

    def run(stage: str, setting: Mapping[str, float], seed: int, **options: Any) -> RunResult:
        nonlocal done
        if observer:
            observer.stage(stage, f"{method} at {setting_words(setting)}", done, total)
        done = min(done + 1, total - 1)  # a final training may be made again
        decayed = {"weight_decay": setup.space.base_weight_decay, **setting}
        images = options.pop("images", (train, val))
        return found.charge(
            chosen.run(
                setup.trainer, *images, setting=decayed, seed=seed, on_epoch=on_epoch, **options
            )
        )

    for setting in settings:
        score = run("settings", setting, spec.search_runs()[0].seed).score
        found.grid.append({**setting, "score": score})
    found.setting = settings[int(np.argmax([point["score"] for point in found.grid]))]
    for fresh in spec.confirm_runs(n_runs):
        result = run("confirm", found.setting, fresh.seed)
        found.scores.append(result.score)
        found.best_epochs.append(result.best_epoch)
    epochs = epochs_of_final_run(found.best_epochs)
    everything = (np.concatenate([train, val]), None)
    train_finally(
        spec,
        f"{method} at {setting_words(found.setting)}, epochs {epochs}",
        lambda seed: run("final training", found.setting, seed, images=everything, epochs=epochs),
        must_hold=False,
    )
    if not len(splits.test):
        return found
    probs = setup.trainer.predict(splits.test)
    found.test = bootstrap_interval(found.metric, setup.source.labels[splits.test], probs)
    return found


def setting_words(setting: Mapping[str, float]) -> str:
    """Return a rival's setting, or a point of its grid, in words: "lr 0.003, decay 0.75"."""
    return ", ".join(f"{name} {value:g}" for name, value in setting.items() if name != "score")
