"""What a search loses when evaluations run at the same time.

    python studies/benchmarks/parallel.py [--seeds 10] [--in-flight 1 4 8 16 32] [--no-write]

On the landscapes of real trainings (`landscapes.py` made their tables) each search keeps a number
of evaluations in flight: the next one begins when the first of them ends. How long each takes is
drawn, lognormal, so that they end in another order than they began; nothing waits in real time.
What counts is the noise-free value of the genome that the searcher would choose after 16, 32 and 64
evaluations, less that of the same seed with one at a time. Beside it Optuna's TPE with
`constant_liar`. Every search is kept in the cache, and the same command goes on where it stopped.
Unless told not to, it writes docs/benchmarks/parallel.md.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import warnings
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from _real import RealLandscape, landscapes
from _searchers import SEARCHERS

from biotune_optuna.page.parts import Heading, Markdown, Part, Table, Text, markdown
from biotune_optuna.sampler.sampler import rank_finished

DOC = Path(__file__).parents[2] / "docs" / "benchmarks" / "parallel.md"
BUDGETS = (16, 32, 64)
IN_FLIGHT = (1, 4, 8, 16, 32)
SPREAD = 0.5  # standard deviation of the logarithm of an evaluation's length
DEFAULT = "BioTune, default preset"


def tpe(_space: Any, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


MAKE = {DEFAULT: SEARCHERS["default"], "TPE, constant liar": tpe}


@cache
def find(name: str) -> RealLandscape:
    """A landscape by name, fitted once in each process."""
    (found,) = landscapes([name])
    return found


def run(job: tuple[str, str, int, int]) -> dict[str, Any]:
    """One search; the noise-free value of what it would choose after each budget."""
    searcher, name, in_flight, seed = job
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    landscape = find(name)
    space = landscape.space
    lengths = np.random.default_rng([zlib.crc32(name.encode()), seed, 1])
    noise = np.random.default_rng([zlib.crc32(name.encode()), seed, 2])
    study = optuna.create_study(direction="maximize", sampler=MAKE[searcher](space, seed))
    running: list[tuple[float, int, optuna.Trial, float]] = []
    now, begun, ended, chosen = 0.0, 0, 0, {}
    while ended < BUDGETS[-1]:
        while len(running) < in_flight and begun < BUDGETS[-1]:
            trial = study.ask()
            value = landscape.observe(space.suggest(trial).decode(), noise)
            length = float(np.exp(SPREAD * lengths.standard_normal()))
            heapq.heappush(running, (now + length, begun, trial, value))
            begun += 1
        now, _, trial, value = heapq.heappop(running)
        study.tell(trial, value)
        ended += 1
        if ended in BUDGETS:
            best = (
                rank_finished(study, space)[0] if searcher == DEFAULT else study.best_trial.number
            )
            recipe = space.genome(study.trials[best].params).decode()
            chosen[str(ended)] = landscape.value(recipe)
    return {"job": list(job), "chosen": chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, nargs="*", default=list(IN_FLIGHT))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--landscapes", nargs="*", help="default: all")
    parser.add_argument("--cache", type=Path, default=Path("parallel-cache.jsonl"))
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    # A table in which no recipe was trained twice knows no noise.
    names = args.landscapes or [one.name for one in landscapes()]
    wanted = [
        (searcher, name, in_flight, seed)
        for in_flight in args.in_flight
        for seed in range(args.seeds)
        for name in names
        for searcher in MAKE
    ]
    lines = args.cache.read_text().splitlines() if args.cache.exists() else []
    known = {tuple(one["job"]): one for one in map(json.loads, lines)}
    missing = [job for job in wanted if job not in known]
    with multiprocessing.Pool(args.workers) as pool, args.cache.open("a") as cache_file:
        for result in pool.imap_unordered(run, missing):
            known[tuple(result["job"])] = result
            cache_file.write(json.dumps(result) + "\n")
            cache_file.flush()
    text = page([known[job] for job in wanted], names, args.seeds, args.in_flight)
    print(text)
    if not args.no_write:
        DOC.write_text(text)


def page(
    results: Sequence[dict[str, Any]], names: Sequence[str], seeds: int, flights: Sequence[int]
) -> str:
    """The page: what is lost against one evaluation at a time, by searcher and budget."""
    values = {tuple(one["job"]): one["chosen"] for one in results}
    parts: list[Part] = [
        Heading("What a search loses by working in parallel", level=1),
        Text(
            f"{len(names)} landscapes of real trainings ({', '.join(names)}), {seeds} seeds each. "
            "A number of evaluations is in flight all the time; their lengths are lognormal. The "
            "noise-free value (balanced accuracy on validation images) of the genome that would be "
            "chosen, as a mean over landscapes and seeds; below it the difference to one at a time "
            "on the same seeds, with its standard error over the searches."
        ),
        Markdown("Made by `python studies/benchmarks/parallel.py`; see its first lines."),
    ]
    for searcher in MAKE:
        rows = []
        for in_flight in flights:
            row = [str(in_flight)]
            for budget in map(str, BUDGETS):
                pairs = [
                    (
                        values[searcher, name, in_flight, seed][budget],
                        values[searcher, name, 1, seed][budget],
                    )
                    for name in names
                    for seed in range(seeds)
                ]
                these, alone = np.array(pairs).T
                gap = these - alone
                error = gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else float("nan")
                row.append(f"{these.mean():.4f}")
                row.append("" if in_flight == 1 else f"{gap.mean():+.4f} ± {error:.4f}")
            rows.append(row)
        heads = ["in flight"]
        for budget in BUDGETS:
            heads += [f"after {budget}", "less one at a time"]
        parts += [Heading(searcher), Table(heads, rows)]
    return markdown(parts)


if __name__ == "__main__":
    main()
