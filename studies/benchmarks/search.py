"""Which searcher finds the best recipe within a budget, when values are noisy?

    python studies/benchmarks/search.py [--seeds 20] [--workers 2] [--only NAME …] [--no-write]

On landscapes of real trainings (`landscapes.py` made their tables), the same space for all. What
counts is the noise-free value of the genome that each searcher would choose: for the default preset
the first of `rank_finished`, for all others the one with the best value observed. What the default
knows of other tasks it knows without any table of the same images. Every search is kept in the
cache, and the same command goes on where it stopped. Unless told not to, it writes
docs/benchmarks/search.md.
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
from unittest.mock import patch

import numpy as np
import optuna
from _real import HERE, RealLandscape, landscapes
from _search_page import BUDGETS, SLOW, Result, page
from _searchers import BY_MODEL, GIVEN_STARTS, SEARCHERS
from experience import without

import biotune_optuna
from biotune_optuna.evolution import experience
from biotune_optuna.evolution.informed import informed_genomes
from biotune_optuna.sampler.sampler import rank_finished

if TYPE_CHECKING:
    from biotune_optuna.evolution.experience import Experience

DOC = Path(__file__).parents[2] / "docs" / "benchmarks" / "search.md"
SLOW_SEEDS = 5
OWN_FILES = ("_real.py", "experience.py", "starts.py", "landscapes/starts.csv")


@cache
def find(name: str) -> tuple[RealLandscape, Experience]:
    """A landscape by name, and what the tables of other images teach; once in each process."""
    (real,) = landscapes([name])
    return real, without(name.partition("-")[2])


def run(job: tuple[str, str, int, bool]) -> Result:
    """One search; the noise-free value of what it would choose after each budget."""
    searcher, name, seed, given = job
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    landscape, known = find(name)
    space = landscape.space
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])

    def objective(trial: optuna.Trial) -> float:
        return landscape.observe(space.suggest(trial).decode(), rng)

    chosen, trees = {}, {}
    with patch.object(experience, "learned", lambda: known):
        study = optuna.create_study(direction="maximize", sampler=SEARCHERS[searcher](space, seed))
        if given and searcher in GIVEN_STARTS:
            for genome in informed_genomes(space):
                study.enqueue_trial(genome.params)
        for budget in BUDGETS:
            finished = sum(trial.state.is_finished() for trial in study.trials)
            study.optimize(objective, n_trials=budget - finished)
            by_model = searcher == BY_MODEL
            number = rank_finished(study, space)[0] if by_model else study.best_trial.number
            recipe = space.genome(study.trials[number].params).decode()
            chosen[str(budget)] = landscape.value(recipe)
            trees[str(budget)] = landscape.by_trees(recipe)
    return Result(searcher, name, seed, given, chosen, trees, made_with(name))


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
    """All searches asked for, seed by seed, so that a part of them is already a fair picture."""
    names = args.landscapes or [one.name for one in landscapes()]
    return [
        (searcher, name, seed, given)
        for seed in range(args.seeds)
        for given in (False, True)
        for name in names
        for searcher in args.only
        if not (searcher in SLOW and (given or seed >= SLOW_SEEDS))
        if not given or searcher in GIVEN_STARTS
    ]


def main() -> None:
    """Runs the searches that are missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(SEARCHERS), choices=list(SEARCHERS))
    parser.add_argument("--landscapes", nargs="*", help="default: all")
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
