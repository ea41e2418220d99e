"""How near the wall time of a whole study comes to the ideal with many workers.

    python studies/benchmarks/scale.py [--workers 1 2 4 8 16 32 64] [--seeds 2] [--no-write]

A study of 64 trials, its confirmation and the members of its model, with trainings that only take
time: how long follows from recipe and seed, all the same or lognormal. Their scores come from a
smooth function of the genome with noise. Sampler, the choice of what is confirmed, the order of
trainings and what is begun ahead are those of `biotune tune` and `biotune worker`; time is counted,
not waited for, so that the page says what the order of work costs and neither the machine nor the
database has a part in it. The ideal is the sum of all lengths divided by the number of workers.
Unless told not to, it writes docs/benchmarks/scale.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import heapq
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch

from biotune_optuna.confirmation import confirm
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.record import Training
from biotune_optuna.finetune.results import RunResult
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.page.parts import Heading, Markdown, Part, Table, Text, markdown
from biotune_optuna.study.objective import Objective
from biotune_optuna.study.setup import Setup, prepare
from biotune_optuna.study.spec import StudySpec
from biotune_optuna.study.study import TuningStudy, study_of

if TYPE_CHECKING:
    from biotune_optuna.confirmation.protocol import Contest, FinalRecord, Unit

DOC = Path(__file__).parents[2] / "docs" / "benchmarks" / "scale.md"
TRIALS = 64
SPREADS = {"all the same": 0.0, "lognormal": 0.5}  # standard deviation of the logarithm
PLAN = ConfirmPlan(rivals=("full",))  # a linear probe is fitted, not trained by the trainer


class Sleeper:
    """A trainer that takes time and does nothing; has what studies and confirmations use of one.

    Args:
        setup: The real setup, for what a prediction looks like.
        seconds: Mean length of a training.
        spread: Standard deviation of the logarithm of a length.
        sleep: Called with each length.
        log: Gets the length of every training.
    """

    def __init__(
        self,
        setup: Setup,
        seconds: float,
        *,
        spread: float = 0.5,
        sleep: Callable[[float], object] = time.sleep,
        log: list[float] | None = None,
    ) -> None:
        self.setup, self.seconds, self.spread, self.sleep = setup, seconds, spread, sleep
        self.settings, self.blocks = setup.trainer.settings, setup.trainer.blocks
        self.log = [] if log is None else log
        self.seed = 0

    def fit(self, recipe: Any, train: Any, val: Any, *, seed: int, **_: Any) -> RunResult:
        rng = np.random.default_rng([zlib.crc32(repr(recipe.key()).encode()), seed])
        drawn = self.spread * rng.standard_normal() - self.spread**2 / 2
        length = self.seconds * float(np.exp(drawn))
        self.sleep(length)
        self.log.append(length)
        self.seed = seed
        logs = np.array([np.log10(max(float(r), 1e-6)) for r in recipe.multipliers.values()])
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


def spec(seed: int = 0) -> StudySpec:
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
        seed=seed,
    )


class Clock:
    """Workers that begin one thing after the other; time passes from end to end."""

    def __init__(self, workers: int) -> None:
        self.idle, self.now, self.longest = workers, 0.0, 0.0
        self._running: list[tuple[float, int, Callable[[], None]]] = []
        self._begun = 0

    def begin(self, length: float, then: Callable[[], None]) -> None:
        self.idle, self._begun = self.idle - 1, self._begun + 1
        self.longest = max(self.longest, length)
        heapq.heappush(self._running, (self.now + length, self._begun, then))

    def go_on(self) -> None:
        self.now, _, then = heapq.heappop(self._running)
        self.idle += 1
        then()


def search(study: TuningStudy, clock: Clock, log: list[float]) -> None:
    """All trials, as many at a time as there are workers."""
    objective = Objective(study.setup)
    ended = begun = 0
    while ended < TRIALS:
        while clock.idle and begun < TRIALS:
            trial = study.study.ask()
            value = objective(trial)
            clock.begin(log[-1], functools.partial(study.study.tell, trial, value))
            begun += 1
        clock.go_on()
        ended += 1


def confirmed(study: TuningStudy, clock: Clock, *, ahead: bool) -> None:
    """All that follows the search, as `biotune_optuna.confirmation.shared` orders it."""
    finished = confirm._finished(study)
    contest: Contest = confirm._contest(study, PLAN, finished, None, None)
    known: dict[str, FinalRecord] = {}
    done: dict[str, Training] = {}
    taken: set[str] = set()

    def key(unit: Unit) -> str:
        return f"{unit.kind} {unit.name} {unit.epochs} {contest.key(unit)}"

    def missing(models: Any) -> list[Unit]:
        found = []
        for model in models:
            seeds = contest.final_seeds(model)
            held = {seed: known.get(key(contest.final_unit(model, seed))) for seed in seeds}
            found += contest.missing(model, {s: one for s, one in held.items() if one is not None})
        return found

    def begin(unit: Unit) -> None:
        taken.add(key(unit))
        if unit.kind == "finish":
            record, _ = contest.train_finally(unit)
            clock.begin(record.seconds, lambda: known.__setitem__(key(unit), record))
            return
        training = Training.of(contest.key(unit), contest._fit(unit))
        clock.begin(training.seconds, lambda: done.__setitem__(key(unit), training))

    while units := contest.wanted():
        if ready := [unit for unit in units if key(unit) in done]:
            for unit in ready:
                contest.ledger.add(unit.name, done[key(unit)])
            continue
        free = [unit for unit in units if key(unit) not in taken]
        if not free and ahead:
            guessed = [*contest.likely(), *missing(confirm._guessed(study, PLAN, contest))]
            free = [unit for unit in guessed if key(unit) not in taken]
        if free and clock.idle:
            begin(free[0])
        else:
            clock.go_on()
    result = confirm._chosen(study, PLAN, contest.contenders(), {})
    models = confirm._models(PLAN, result)
    while units := missing(models):
        free = [unit for unit in units if key(unit) not in taken]
        if free and clock.idle:
            begin(free[0])
        else:
            clock.go_on()


def measure(setup: Setup, workers: int, *, spread: float, ahead: bool = True) -> dict[str, float]:
    """Count the time of a whole study with so many workers, in mean lengths of a training."""
    log: list[float] = []
    sleeper = Sleeper(setup, 1.0, spread=spread, sleep=lambda _: None, log=log)
    own = dataclasses.replace(setup, trainer=sleeper)  # type: ignore[arg-type]
    storage = optuna.storages.InMemoryStorage()
    study = study_of(own, storage=storage, name="s")
    clock = Clock(workers)
    search(study, clock, log)
    searched, of_search = clock.now, len(log)
    confirmed(study, clock, ahead=ahead)
    after = sum(log[of_search:])
    return {
        "ideal": sum(log) / workers,
        "search": searched,
        "wall": clock.now,
        "alone": searched + after,
        "trainings": len(log),
        "longest": clock.longest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    setups = [prepare(spec(seed), device="cpu") for seed in range(args.seeds)]
    rows: dict[str, list[list[str]]] = {}
    for words, spread in SPREADS.items():
        for workers in args.workers:
            found = [measure(setup, workers, spread=spread) for setup in setups]
            mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
            ratios = [mean[key] / mean["ideal"] for key in ("wall", "alone")]
            numbers = [mean[key] for key in ("ideal", "search", "wall", "longest")]
            row = [str(workers), f"{mean['trainings']:.0f}", *(f"{one:.1f}" for one in numbers)]
            rows.setdefault(words, []).append([*row, *(f"{one:.2f}" for one in ratios)])
            print(words, rows[words][-1], flush=True)
    text = page(rows, args.seeds)
    print(text)
    if not args.no_write:
        DOC.write_text(text)


def page(rows: dict[str, list[list[str]]], seeds: int) -> str:
    """The page: wall time over ideal, by number of workers."""
    parts: list[Part] = [
        Heading("Many workers on one study", level=1),
        Text(
            f"A study of {TRIALS} trials, its confirmation (three recipes and full fine-tuning) "
            f"and the five members of its model; means of {seeds} studies. Times are counted in "
            "mean lengths of a training, and not waited for: they say what the order of work "
            "costs, without machine and database. The ideal is the sum of all lengths divided by "
            "the number of workers. The last column is how it was before workers shared what "
            "follows the search: one of them trained all of it."
        ),
        Text(
            "A confirmation has parts that wait for each other: the rates of full fine-tuning one "
            "after the other, its repeats, the final training. With many workers that chain, and "
            "the longest single training, are what is left."
        ),
        Markdown("Made by `python studies/benchmarks/scale.py`; see its first lines."),
    ]
    heads = ["workers", "trainings", "ideal", "search", "all", "longest training", "all / ideal"]
    for words, table in rows.items():
        parts += [Heading(f"Lengths: {words}"), Table([*heads, "one confirms / ideal"], table)]
    return markdown(parts)


if __name__ == "__main__":
    main()
