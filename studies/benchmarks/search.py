"""Which searcher finds the best recipe within a budget, when values are noisy?

    python studies/benchmarks/search.py [--seeds 50] [--workers 2] [--only NAME …] [--no-write]

On landscapes of real trainings (`landscapes.py` made their tables) and on closed-form ones, the
same space for all. What counts is the noise-free value of the genome that each searcher would
choose: for Optuna's samplers and the paper preset the one with the best value observed, for the
default preset the first of `rank_finished`. Every search is kept in the cache, and the same command
goes on where it stopped. Unless told not to, it puts the tables into docs/benchmarks/search.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import _landscapes
import numpy as np
import optuna
from _landscapes import HELD_OUT, TUNED_ON, make_space
from _real import HERE, RealLandscape, landscapes, rates_of
from _search_page import BUDGETS, Result, page
from _searchers import BY_VALUE, COMPARED, GIVEN_STARTS, SEARCHERS, TRAININGS
from _tasks import DEVELOPMENT

import biotune_optuna
from biotune_optuna.evolution.informed import informed_genomes
from biotune_optuna.sampler.sampler import rank_finished

if TYPE_CHECKING:
    from biotune_optuna import GenomeSpace

DOC = Path(__file__).parents[2] / "docs" / "benchmarks" / "search.md"
GP_SEEDS = 10  # its searches take longest
CLOSED_SEEDS = 20
OWN_FILES = ("_real.py", "_landscapes.py", "_searchers.py")


@cache
def find(name: str) -> tuple[RealLandscape | _landscapes.Landscape, GenomeSpace]:
    """A landscape by name, and its space; fitted once in each process."""
    for closed in (*TUNED_ON, *HELD_OUT):
        if closed.name == name:
            return closed, make_space()
    (real,) = landscapes([name])
    return real, real.space


def run(job: tuple[str, str, int, bool]) -> Result:
    """One search; the noise-free value of what it would choose after each budget."""
    searcher, name, seed, given = job
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    landscape, space = find(name)
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    study = optuna.create_study(direction="maximize", sampler=SEARCHERS[searcher](space, seed))
    if given and searcher in GIVEN_STARTS:
        for genome in informed_genomes(space):
            study.enqueue_trial(genome.params)

    def objective(trial: optuna.Trial) -> float:
        recipe = space.suggest(trial).decode()
        return float(np.mean([landscape.observe(recipe, rng) for _ in range(n_trainings)]))

    n_trainings = TRAININGS.get(searcher, 1)
    chosen, ranked, trees = {}, {}, {}
    for budget in BUDGETS:
        study.optimize(
            objective,
            n_trials=budget - len([t for t in study.trials if t.state.is_finished()]),
        )
        believed = rank_finished(study, space)[0]
        own = study.best_trial.number if searcher in BY_VALUE else believed
        for values, number in ((ranked, believed), (chosen, own)):
            recipe = space.genome(study.trials[number].params).decode()
            values[str(budget)] = landscape.value(recipe)
        if isinstance(landscape, RealLandscape):
            trees[str(budget)] = landscape.by_trees(recipe)
    rates = rates_of(recipe)[0].tolist()
    return Result(searcher, name, seed, given, chosen, ranked, trees, made_with(name), rates)


@cache
def made_with(name: str) -> str:
    """Digest of what a search's result follows from; one made with others is not used again."""
    package = Path(biotune_optuna.__file__).parent
    files = [HERE / f"{name}.csv", *(Path(__file__).with_name(f) for f in OWN_FILES)]
    files += [package / "genome.py", *sorted((package / "evolution").glob("*.py"))]
    files += sorted((package / "sampler").glob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:12]


def jobs(args: argparse.Namespace) -> list[tuple[str, str, int, bool]]:
    """All searches asked for, seed by seed, so that a part of them is already a fair picture.

    Single switches are compared on the development tasks only: they are what is developed.
    """
    closed = [one.name for one in (*TUNED_ON, *HELD_OUT)]
    development = [task.name for task in DEVELOPMENT]
    names = args.landscapes or [*(one.name for one in landscapes()), *closed]
    return [
        (searcher, name, seed, given)
        for seed in range(args.seeds)
        for name in names
        for given in ((False, True) if args.given else (False,))
        for searcher in args.only
        if not (searcher == "GPSampler" and seed >= min(GP_SEEDS, args.seeds))
        if not (given and searcher not in COMPARED)
        if not (searcher == "GPSampler" and name in closed)
        if not (searcher not in COMPARED and name not in development)
        if not (name in closed and seed >= CLOSED_SEEDS)
    ]


def main() -> None:
    """Runs the searches that are missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(SEARCHERS), choices=list(SEARCHERS))
    parser.add_argument("--landscapes", nargs="*", help="default: all")
    parser.add_argument("--given", action="store_true", help="also with informed starts for all")
    parser.add_argument("--cache", type=Path, default=Path("search-cache.jsonl"))
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    known = {}
    if args.cache.exists():
        for line in args.cache.read_text().splitlines():
            result = Result(**json.loads(line))
            if result.made == made_with(result.landscape):
                known[result.key] = result
    wanted = jobs(args)
    missing = [job for job in wanted if job not in known]
    with (
        multiprocessing.get_context("spawn").Pool(args.workers) as pool,
        args.cache.open("a") as file,
    ):
        for result in pool.imap_unordered(run, missing):
            known[result.key] = result
            file.write(result.to_json() + "\n")
            file.flush()
    text = page([known[job] for job in wanted])
    if not args.no_write:
        DOC.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
