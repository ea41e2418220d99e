"""How near the wall time of a whole study comes to the ideal with many workers.

    python studies/benchmarks/scale.py [--workers 8 16 32 64] [--seconds 10] [--no-write]

A study of 64 trials, its confirmation and the members of its model on PostgreSQL (from pip), with
trainings that only sleep: how long follows from recipe and seed, lognormal with a mean of
``--seconds``. Their scores come from a smooth function of the genome with noise. All else is real:
sampler, claims, leases, ledger, the choice of the winner, its test and export are as `biotune tune`
and `biotune worker` run them. Workers are threads of one process, each with a storage of its own.
The ideal is the sum of all lengths divided by the number of workers. Unless told not to, it writes
docs/benchmarks/scale.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
import threading
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from biotune_optuna.confirmation.confirm import confirm, help_confirm
from biotune_optuna.confirmation.kept import KeptWeights
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.shared import Sharing
from biotune_optuna.finetune import device
from biotune_optuna.finetune.results import RunResult
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.page.parts import Heading, Part, Table, Text, markdown
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.objective import Objective
from biotune_optuna.study.setup import Setup, prepare
from biotune_optuna.study.spec import StudySpec
from biotune_optuna.study.study import study_of
from biotune_optuna.study.worker import run_trials

sys.path.append(str(Path(__file__).parents[2]))
from tests.kit.postgres import Postgres

DOC = Path(__file__).parents[2] / "docs" / "benchmarks" / "scale.md"
TRIALS = 64
SPREAD = 0.5  # standard deviation of the logarithm of a training's length
PLAN = ConfirmPlan(rivals=("full",))  # a linear probe is fitted, not trained by the trainer


class Sleeper:
    """A trainer that sleeps; has what studies and confirmations use of one.

    Args:
        setup: The real setup, for what a prediction looks like.
        seconds: Mean length of a training.
        log: Gets the length of every training.
    """

    def __init__(self, setup: Setup, seconds: float, log: list[tuple[float, float]]) -> None:
        self.setup, self.seconds, self.log = setup, seconds, log
        self.settings, self.blocks = setup.trainer.settings, setup.trainer.blocks
        self.seed = 0

    def fit(self, recipe: Any, train: Any, val: Any, *, seed: int, **_: Any) -> RunResult:
        rng = np.random.default_rng([zlib.crc32(repr(recipe.key()).encode()), seed])
        length = self.seconds * float(np.exp(SPREAD * rng.standard_normal() - SPREAD**2 / 2))
        began = time.monotonic()
        time.sleep(length)
        self.log.append((began, length))
        self.seed = seed
        logs = np.array([np.log10(max(float(rate), 1e-6)) for rate in recipe.multipliers.values()])
        base = np.log10(recipe.lr)
        score = 0.8 - 0.01 * float(np.mean((logs + 1.0) ** 2)) - 0.05 * (base + 2.3) ** 2
        score = float(np.clip(score + 0.01 * rng.standard_normal(), 0.05, 0.99))
        n = 0 if val is None else len(val)
        return RunResult(
            score=score if n else float("nan"),
            best_epoch=3,
            seconds=length,
            images_forward=len(train),
            images_backward=len(train),
            trainable_parameters=1,
            total_parameters=2,
            probabilities=self._probabilities(n, rng) if n else None,
            predictions=np.zeros(n, np.int64) if n else None,
        )

    def changed(self) -> dict[str, torch.Tensor]:
        return {"w": torch.tensor([float(self.seed)])}

    def put(self, changed: dict[str, torch.Tensor]) -> None:
        self.seed = int(changed["w"])

    def predict(self, index: Any) -> np.ndarray:
        return self._probabilities(len(index), np.random.default_rng(self.seed))

    def _probabilities(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return rng.dirichlet(np.ones(len(self.setup.classes)), n).astype(np.float32)


def spec() -> StudySpec:
    return StudySpec(
        model="test_efficientnet",
        data="digits",
        weights="none",
        image_size=32,
        crop_pct=1.0,
        train_size=60,
        val_size=40,
        test_fraction=0.1,
        lr=(1e-3, 3e-2),
        train=TrainSettings(epochs=3, batch_size=20),
    )


def measure(setup: Setup, url: str, workers: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Run a whole study with so many workers; wall times and the ideal, in seconds."""
    log: list[tuple[float, float]] = []
    name = f"w{workers}"
    searched: list[float] = []
    failures: list[BaseException] = []
    cpu, began = time.process_time(), time.monotonic()

    def study_for(_: int) -> Any:
        own = dataclasses.replace(setup, trainer=Sleeper(setup, seconds, log))  # type: ignore[arg-type]
        return study_of(own, storage=open_storage(url), name=name)

    studies = [study_for(i) for i in range(workers)]  # opened before the clock runs

    def work(place: int) -> None:
        try:
            study = studies[place]
            run_trials(study.study, Objective(study.setup), n_trials=TRIALS)
            searched.append(time.monotonic())
            sharing = Sharing.of(study.study)
            assert sharing is not None
            sharing.weights = KeptWeights(folder / name)
            if place:
                help_confirm(study, PLAN, sharing)
            else:
                confirm(study, PLAN, sharing=sharing)
        except BaseException as error:
            failures.append(error)
            raise

    began, cpu = time.monotonic(), time.process_time()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    wall = time.monotonic() - began
    total = sum(length for _, length in log)
    search_end = max(searched) - began
    after = sum(length for start, length in log if start - began >= min(searched) - began)
    return {
        "workers": workers,
        "seconds": seconds,
        "trainings": len(log),
        "wall": wall,
        "ideal": total / workers,
        "search": search_end,
        "alone": search_end + after,
        "longest": max(length for _, length in log),
        "cpu": time.process_time() - cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    # A process trains one network at a time; of sleeping there may be any number.
    device.ONE_AT_A_TIME = contextlib.nullcontext()  # type: ignore[assignment]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    setup = prepare(spec(), device="cpu")
    server = Postgres()
    rows = []
    try:
        folder = Path(tempfile.mkdtemp(prefix="biotune-scale-"))
        for workers in args.workers:
            url = server.create_database(f"scale{workers}")
            rows.append(measure(setup, url, workers, args.seconds, folder))
            print(rows[-1], flush=True)
    finally:
        server.close()
    text = page(rows)
    print(text)
    if not args.no_write:
        DOC.write_text(text)


def page(rows: list[dict[str, Any]]) -> str:
    """The page: wall time over ideal, by number of workers."""
    table = [
        [
            str(row["workers"]),
            f"{row['seconds']:g}",
            str(row["trainings"]),
            f"{row['ideal']:.1f}",
            f"{row['search']:.1f}",
            f"{row['wall']:.1f}",
            f"{row['wall'] / row['ideal']:.2f}",
            f"{row['alone'] / row['ideal']:.2f}",
            f"{row['longest']:.1f}",
            f"{row['cpu']:.1f}",
        ]
        for row in rows
    ]
    parts: list[Part] = [
        Heading("Many workers on one study", level=1),
        Text(
            f"A study of {TRIALS} trials, its confirmation and the members of its model, on "
            "PostgreSQL, with trainings that only sleep: lognormal lengths, with a standard "
            f"deviation of the logarithm of {SPREAD}. Workers are threads of one process on two "
            "cores, so that sampler and database calls of all of them share one interpreter; CPU "
            "is what that process used. The ideal is the sum of all lengths divided by the number "
            "of workers. Confirmed alone is what the same study would have taken if one worker had "
            "trained all that comes after the search: the wall time of the search and the sum of "
            "the other lengths."
        ),
        Text("Made by `python studies/benchmarks/scale.py`; see its first lines."),
        Table(
            [
                "workers",
                "mean length, s",
                "trainings",
                "ideal, s",
                "search, s",
                "all, s",
                "all / ideal",
                "confirmed alone / ideal",
                "longest training, s",
                "CPU, s",
            ],
            table,
        ),
    ]
    return markdown(parts)


if __name__ == "__main__":
    main()
