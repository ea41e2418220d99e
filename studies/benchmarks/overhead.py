"""What a sampler costs: ask, seven suggestions, tell, with 100, 1,000 and 10,000 trials in memory.

    python studies/benchmarks/overhead.py [--sizes 100,1000,10000] [--repeats 60] [--no-write]

All samplers are timed in one run, turn by turn, in CPU time of the process, which a busy machine
disturbs least; BLAS is held to one thread. Samplers
whose cost depends on their own past (NSGA-II, CMA-ES, the paper preset) ran all the trials before
themselves; for the others these are random ones. Unless told not to, it puts the table into
docs/benchmarks/overhead.md.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
from threadpoolctl import threadpool_limits

from biotune_optuna import BioTuneSampler, GenomeSpace
from biotune_optuna.page.parts import Markdown, Table, markdown
from biotune_optuna.recipe import BlockRecipe

if TYPE_CHECKING:
    from collections.abc import Callable

DOC = Path(__file__).parents[2] / "docs" / "benchmarks" / "overhead.md"
# Five blocks, the threshold and the base rate: seven parameters.
SPACE = GenomeSpace([BlockRecipe(f"b{i}", 1.0) for i in range(5)])

SAMPLERS: dict[str, tuple[Callable[[], optuna.samplers.BaseSampler], bool]] = {
    "RandomSampler": (lambda: optuna.samplers.RandomSampler(seed=0), True),
    "BioTuneSampler, paper": (lambda: BioTuneSampler(space=SPACE, preset="paper", seed=0), True),
    "BioTuneSampler, default": (lambda: BioTuneSampler(space=SPACE, seed=0), False),
    "NSGAIISampler": (lambda: optuna.samplers.NSGAIISampler(seed=0), True),
    "CmaEsSampler": (lambda: optuna.samplers.CmaEsSampler(seed=0), True),
    "TPESampler": (lambda: optuna.samplers.TPESampler(seed=0), False),
}


SLOW = ("NSGAIISampler", "CmaEsSampler")
"""Samplers that take minutes to run ten thousand trials themselves."""


def step(study: optuna.Study, rng: np.random.Generator) -> float:
    """CPU seconds of one ask, seven suggestions and a tell."""
    started = time.process_time()
    trial = study.ask()
    genes = SPACE.suggest(trial).values
    value = 1.0 - sum((gene - 0.4) ** 2 for gene in genes) + 0.02 * float(rng.standard_normal())
    study.tell(trial, value)
    return time.process_time() - started


def measure(sizes: list[int], repeats: int, slow_limit: int) -> dict[str, list[float]]:
    """Median milliseconds of each sampler at each number of trials, NaN where left out."""
    rng = np.random.default_rng(0)
    studies = {name: optuna.create_study(direction="maximize") for name in SAMPLERS}
    samplers = {name: make() for name, (make, _) in SAMPLERS.items()}
    random = optuna.samplers.RandomSampler(seed=1)
    medians: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    for size in sizes:
        if size > slow_limit:
            for name in SLOW:
                studies.pop(name, None)
                medians[name].append(math.nan)
        for name, study in studies.items():
            itself = SAMPLERS[name][1]
            study.sampler = samplers[name] if itself else random
            while len(study.get_trials(deepcopy=False)) < size:
                for _ in range(min(100, size - len(study.get_trials(deepcopy=False)))):
                    step(study, rng)
            study.sampler = samplers[name]
            step(study, rng)  # the first look at trials of another sampler is not repeated
        seconds: dict[str, list[float]] = {name: [] for name in studies}
        for _ in range(repeats):
            for name, study in studies.items():
                seconds[name].append(step(study, rng))
        for name, taken in seconds.items():
            medians[name].append(1e3 * statistics.median(taken))
            print(f"{size:6d} trials  {name:24s} {medians[name][-1]:8.2f} ms", flush=True)
    return medians


def table(sizes: list[int], repeats: int, medians: dict[str, list[float]]) -> str:
    """The measurement as a page."""
    paper, random = medians["BioTuneSampler, paper"], medians["RandomSampler"]
    return markdown(
        [
            Markdown(f"""
                # What the sampler costs

                Median CPU milliseconds of ask, seven suggestions and tell in memory, {repeats} of
                each, all samplers in one run, turn by turn, BLAS held to one thread.
            """),
            Table(
                ("sampler", *(f"{size:,} trials" for size in sizes)),
                [(name, *map(_cell, values)) for name, values in medians.items()],
            ),
            Markdown(
                f"At {sizes[-1]:,} trials the paper preset costs {paper[-1] / random[-1]:.1f} times"
                f" the random sampler, and {paper[-1] / paper[0]:.1f} times what it costs at"
                f" {sizes[0]:,}."
            ),
            Markdown(f"""
                Python {platform.python_version()}, Optuna {optuna.__version__}, NumPy
                {np.__version__}, {os.cpu_count()} CPU cores. Made by
                `python studies/benchmarks/overhead.py`.
            """),
        ]
    )


def _cell(value: float) -> str:
    return "not run" if math.isnan(value) else f"{value:.2f}"


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="100,1000,10000")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--slow-limit", type=int, default=10**9, help=f"most trials of {SLOW}")
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    sizes = [int(size) for size in args.sizes.split(",")]
    with threadpool_limits(1):
        page = table(sizes, args.repeats, measure(sizes, args.repeats, args.slow_limit))
    if not args.no_write:
        DOC.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
