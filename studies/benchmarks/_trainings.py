"""One training of a genome, and all that is kept of it."""

from __future__ import annotations

import base64
import copy
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from biotune_optuna.finetune import metrics
from biotune_optuna.finetune.hooks import Hooks

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from biotune_optuna.finetune.loop import Run
    from biotune_optuna.finetune.results import EpochRecord
    from biotune_optuna.genome import Genome
    from biotune_optuna.study.setup import Setup

    Vector = NDArray[np.float64]

TEST_IMAGES = 500
COLDEST, HOTTEST = 0.05, 1e3  # a network destroyed by its rates is as good as guessing at best
LEAST = -60.0  # log-probability; a network may say 0


class _Listener(Hooks):
    """Trains the recipe as it is and keeps the logits of the validation images."""

    def __init__(self) -> None:
        self.logits: list[NDArray[np.float32]] = []

    def before_epoch(self, run: Run, epoch: int) -> None:
        """Puts itself between the run and its feed."""
        if epoch == 0:
            run.feed = _Heard(run.feed, self)  # type: ignore[assignment]

    def taken(self) -> Vector:
        """Log-probabilities of the validation images since last asked, (n, C)."""
        logits, self.logits = np.concatenate(self.logits), []
        return log_probabilities(logits)


class _Heard:
    def __init__(self, feed: Any, listener: _Listener) -> None:
        self._feed = feed
        self._listener = listener

    def evaluate(self, idx: NDArray[np.int64]) -> torch.Tensor:
        logits: torch.Tensor = self._feed.evaluate(idx)
        self._listener.logits.append(logits.float().cpu().numpy())
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)


@dataclass(frozen=True)
class Judged:
    """What a set of predictions is worth.

    Attributes:
        score: Macro accuracy.
        nll: Mean cross-entropy, in nats.
        fitted: The same at the temperature of the validation images.
        temperature: That temperature.
    """

    score: float
    nll: float
    fitted: float
    temperature: float


def train(setup: Setup, genome: Genome, repeat: int) -> dict[str, Any]:
    """Trains a genome as a trial would, and tests it.

    Args:
        setup: Images, model and trainer.
        genome: What to train.
        repeat: 0 takes the seed that every trial of a search has, 1 and so on those of its
            re-evaluations.

    Returns:
        A JSON-ready row; a diverged training has the worst score and no cross-entropy.
    """
    trainer, labels = setup.trainer, setup.source.labels
    n_classes = len(setup.classes)
    learn, val = setup.splits.run(None)
    test = test_part(setup)
    seed = setup.spec.search_runs(repeat=repeat)[0].seed
    recipe = genome.decode()
    listener = _Listener()
    heard: list[Vector] = []
    best: dict[str, Any] = {}

    def on_epoch(record: EpochRecord) -> None:
        heard.append(listener.taken())
        if not best or record.score > best["score"]:
            best.update(score=record.score, state=copy.deepcopy(trainer.model.state_dict()))

    started = time.process_time()
    result = trainer.fit(recipe, learn, val, seed=seed, on_epoch=on_epoch, hooks=listener)
    seconds = time.process_time() - started
    judged = [judge(probs, labels[val], n_classes) for probs in heard]
    row: dict[str, Any] = {
        "params": genome.params,
        "lr": recipe.lr,
        "multipliers": [block.multiplier for block in recipe.blocks],
        "run_seed": seed,
        "score": result.score,
        "best_epoch": result.best_epoch,
        "stopped": result.stopped,
        "forward": result.images_forward,
        "backward": result.images_backward,
        "seconds": round(seconds, 2),
        "curve": [epoch.score for epoch in result.epochs],
        "loss": [finite(epoch.train_loss) for epoch in result.epochs],
        "nll": [finite(one.nll) for one in judged],
        "fitted": [finite(one.fitted) for one in judged],
        "temperature": [finite(one.temperature) for one in judged],
        "val_probs": [packed(probs) for probs in heard],
    }
    if result.diverged:
        return row | {"test": {"best": [0.0, None, None], "last": [0.0, None, None]}}
    tested: dict[str, list[float | None]] = {}
    probs = tested_probs = log_probabilities(np.log(np.maximum(trainer.predict(test), 1e-30)))
    tested["last"] = tested["best"] = _test(probs, labels[test], n_classes, judged[-1])
    if result.best_epoch != len(result.epochs):
        trainer.model.load_state_dict(best["state"])
        tested_probs = log_probabilities(np.log(np.maximum(trainer.predict(test), 1e-30)))
        chosen = judged[result.best_epoch - 1]
        tested["best"] = _test(tested_probs, labels[test], n_classes, chosen)
    return row | {"test": tested, "test_probs": packed(tested_probs)}


def test_part(setup: Setup) -> NDArray[np.int64]:
    """Positions of the images that are tested on: of a large part a fixed draw."""
    part = setup.splits.test
    if len(part) <= TEST_IMAGES:
        return part
    drawn: NDArray[np.int64] = np.random.default_rng(0).permutation(part)[:TEST_IMAGES]
    return drawn


def judge(logs: Vector, labels: NDArray[np.int64], n_classes: int) -> Judged:
    """Scores log-probabilities (n, C) on the images whose temperature is fitted."""
    warmth = temperature(logs, labels)
    return Judged(
        score=metrics.score("macro_accuracy", labels, np.exp(logs), n_classes),
        nll=cross_entropy(logs, labels),
        fitted=cross_entropy(logs / warmth, labels),
        temperature=warmth,
    )


def cross_entropy(logits: Vector, labels: NDArray[np.int64]) -> float:
    """Mean cross-entropy in nats."""
    logs = log_softmax(logits, axis=1)
    return float(-logs[np.arange(len(labels)), labels].mean())


def temperature(logits: Vector, labels: NDArray[np.int64]) -> float:
    """The divisor of the logits at which their cross-entropy is least."""
    found = minimize_scalar(
        lambda log: cross_entropy(logits / math.exp(log), labels),
        bounds=(math.log(COLDEST), math.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return math.exp(found.x)


def log_probabilities(logits: NDArray[np.floating[Any]]) -> Vector:
    """Log-probabilities, none below `LEAST`."""
    logs: Vector = np.maximum(log_softmax(logits.astype(np.float64), axis=1), LEAST)
    return logs


def packed(logs: Vector) -> str:
    """Log-probabilities (n, C) as text."""
    return base64.b64encode(logs.astype("<f2").tobytes()).decode()


def unpacked(text: str, n_classes: int) -> Vector:
    """The log-probabilities that `packed` was given, to three digits."""
    flat = np.frombuffer(base64.b64decode(text), dtype="<f2").astype(np.float64)
    return flat.reshape(-1, n_classes)


def finite(number: float) -> float | None:
    """The number, or None where it is none."""
    return number if math.isfinite(number) else None


def _test(
    logs: Vector, labels: NDArray[np.int64], n_classes: int, val: Judged
) -> list[float | None]:
    """Macro accuracy, cross-entropy, and that at the temperature of the validation images."""
    return [
        metrics.score("macro_accuracy", labels, np.exp(logs), n_classes),
        cross_entropy(logs, labels),
        cross_entropy(logs / val.temperature, labels),
    ]
