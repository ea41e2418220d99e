"""Real searches: what each searcher's choice is worth on test images, no model of a table between.

    python studies/benchmarks/real_search.py TASK … --data-root FOLDER … [--only NAME …]

A search has 28 trials, each a training for real. Its choice, the first of `rank_finished`, or the
best value for those that have no model, is trained on three fresh seeds, on the training part only,
and tested. Repeat r divides the data anew and has its own seeds, the same division for all
searchers. What the default knows of other tasks it knows without any table of the same images.

Beside the searchers stand the usual recipes, each at the best of three rates; of single blocks all
are tried. Every training is kept below ``--cache``: the same command goes on where it stopped, and
two of it may run at once. The page docs/benchmarks/real_search.md is written at the end.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import optuna
import torch
from _searchers import ours
from _tasks import TASKS, Task
from _trainings import test_part
from experience import without
from filelock import FileLock, Timeout

from biotune_optuna.evolution import experience
from biotune_optuna.evolution.experience import Experience, Start
from biotune_optuna.evolution.informed import encode, informed_genomes
from biotune_optuna.finetune import metrics
from biotune_optuna.sampler.sampler import rank_finished
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.objective import Objective
from biotune_optuna.study.study import study_of
from biotune_optuna.study.worker import run_trials

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from biotune_optuna.genome import GenomeSpace
    from biotune_optuna.study.setup import Setup

    Grid = Callable[[int], list[Start]]
    Row = dict[str, Any]

TRIALS = 28
TRAININGS = 3
RATES = (-0.37, 0.0, 0.37)
"""Decades from the middle rate: the quarter points of the usual range."""
HEAD = f"""# Real searches

A search has {TRIALS} trials, each a training for real: tf_efficientnet_lite0 at 64 px, 200 images
to train on and 100 to validate. Its choice is trained on three fresh seeds, on the training part
only. *One* is the mean test score of the three, *three* that of their mean probabilities. What the
default knows of other tasks it knows without any table of the same images. Random sampling and
Optuna's TPE choose the best value observed. These searches began with
[the starts before the present ones](starts.md).

Command: `python studies/benchmarks/real_search.py TASK …`; the numbers are in
`studies/benchmarks/real_search.csv`.
"""
TABLE = Path(__file__).with_suffix(".csv")
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "real_search.md"


def _everywhere(first: float, slope: float = 0.0) -> Grid:
    return lambda _: [Start(first, 1.0, rate, slope, rate) for rate in RATES]


def _probes(_: int) -> list[Start]:
    return [Start(1.0, 0.0, 0.0, 0.0, rate) for rate in RATES]


def _singles(n_blocks: int) -> list[Start]:
    depths = np.linspace(0.0, 1.0, n_blocks - 1).tolist()
    return [Start(at, at, rate + 0.37, 0.0, rate) for at in depths for rate in RATES]


USUAL: dict[str, Grid] = {
    "full": _everywhere(0.0),
    "half": _everywhere(0.5),
    "layer decay": _everywhere(0.0, 1.0),
    "probe": _probes,
    "single block": _singles,
}
SAMPLERS: dict[str, Callable[[GenomeSpace, int], optuna.samplers.BaseSampler]] = {
    "default": ours(),
    "random": lambda _, seed: optuna.samplers.RandomSampler(seed=seed),
    "random, our starts": lambda _, seed: optuna.samplers.RandomSampler(seed=seed),
    "TPE": lambda _, seed: optuna.samplers.TPESampler(seed=seed),
    "paper": ours("paper"),
    "default, one seed": ours(),
}
BY_MODEL = ("default", "default, one seed")


@dataclass(frozen=True)
class Search:
    """One search and where its results lie."""

    task: Task
    repeat: int
    searcher: str
    folder: Path

    @property
    def result(self) -> Path:
        """The file of its result."""
        return self.folder / f"{self.task.name}-{self.repeat}-{self.searcher}.json"

    def run(self, roots: Sequence[Path], cache: Path, known: Experience) -> None:
        """Searches, chooses, trains and tests; keeps the result."""
        options = self.task.options | {
            "seed": self.repeat,
            "own_seeds": self.searcher != "default, one seed",
        }
        setup = dataclasses.replace(self.task, options=options).open(roots, cache)
        with patch.object(experience, "learned", lambda: known):
            study = self._search(setup)
            finished = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            by_value = max(finished, key=lambda trial: (trial.value or 0.0, -trial.number)).number
            by_model = rank_finished(study, setup.space)[0]
        chosen = by_model if self.searcher in BY_MODEL else by_value
        tested = {str(number): self._test(setup, study, number) for number in {by_value, by_model}}
        record = {
            "task": self.task.name,
            "repeat": self.repeat,
            "searcher": self.searcher,
            "chosen": chosen,
            "by_value": by_value,
            "by_model": by_model,
            "tested": tested,
            "trials": [self._row(trial) for trial in study.trials],
        }
        new = self.result.with_suffix(".new")
        new.write_text(json.dumps(record))
        new.replace(self.result)
        one = tested[str(chosen)]
        print(f"{self.result.stem}: {np.mean(one['scores']):.3f}, {one['three']:.3f}", flush=True)

    def _search(self, setup: Setup) -> optuna.Study:
        name = self.result.stem
        storage = open_storage(f"sqlite:///{self.folder / 'searches.db'}")
        if self.searcher in USUAL:
            n = setup.space.n_blocks
            genomes = [encode(setup.space, one.log_rates(n)) for one in USUAL[self.searcher](n)]
            total, make = len(genomes), SAMPLERS["random"]
        else:
            total, make = TRIALS, SAMPLERS[self.searcher]
            genomes = informed_genomes(setup.space) if "our starts" in self.searcher else []
        study = study_of(
            setup, storage=storage, name=name, sampler=lambda s: make(s.space, self.repeat)
        ).study
        for genome in genomes:
            study.enqueue_trial(genome.params, skip_if_exists=True)
        run_trials(study, Objective(setup), n_trials=total)
        return study

    def _row(self, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        kept = {k: trial.user_attrs.get(k) for k in ("recipe", "forward", "backward", "seconds")}
        return {"value": trial.value, **kept}

    def _test(self, setup: Setup, study: optuna.Study, number: int) -> dict[str, Any]:
        recipe = setup.space.genome(study.trials[number].params).decode()
        train, val = setup.splits.run(None)
        test = test_part(setup)
        labels, n_classes = setup.source.labels[test], len(setup.classes)
        probs = []
        for run in setup.spec.confirm_runs(TRAININGS):
            setup.trainer.fit(recipe, train, val, seed=run.seed, keep_weights=True)
            probs.append(setup.trainer.predict(test))

        def score(one: Any) -> float:
            return metrics.score("macro_accuracy", labels, one, n_classes)

        return {"scores": [score(one) for one in probs], "three": score(np.mean(probs, axis=0))}


def table_of(folder: Path) -> list[Row]:
    """What every search came to: a row each, by task, repeat and searcher."""
    rows: list[Row] = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        tested = found["tested"][str(found["chosen"])]
        passes = sum((t["forward"] or 0) + (t["backward"] or 0) for t in found["trials"])
        rows.append(
            {
                **{key: found[key] for key in ("task", "repeat", "searcher")},
                "trials": len(found["trials"]),
                "one": round(float(np.mean(tested["scores"])), 4),
                "three": round(tested["three"], 4),
                "passes": passes,
            }
        )
    return rows


def page(rows: list[Row]) -> str:
    """The page: every searcher's means, and its paired difference to random sampling."""
    values = {(r["task"], r["repeat"], r["searcher"]): r for r in rows}
    searchers = [one for one in (*SAMPLERS, *USUAL) if any(r["searcher"] == one for r in rows)]
    lines = [
        *HEAD.splitlines(),
        "",
        "| searcher | searches | one | three | passes | minus random, one | three |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    places = {(r["task"], r["repeat"]) for r in rows}
    common = {p for p in places if all((*p, name) in values for name in searchers)} or places
    for name in searchers:  # means are of the searches that all of them have made
        own = [values[*p, name] for p in sorted(common) if (*p, name) in values]
        pairs = [(r, values.get((r["task"], r["repeat"], "random"))) for r in own]
        cells = [f"{np.mean([r[key] for r in own]):.3f}" for key in ("one", "three")]
        cells.append(f"{np.mean([r['passes'] for r in own]):,.0f}")
        for key in ("one", "three"):
            both = np.array([r[key] - other[key] for r, other in pairs if other])
            error = both.std(ddof=1) / np.sqrt(len(both)) if len(both) > 1 else np.nan
            told = f"{both.mean():+z.3f} (se {error:.3f}, {len(both)} pairs)"
            cells.append("" if name == "random" or len(both) < 2 else told)
        lines.append(f"| {name} | {len(own)} | " + " | ".join(cells) + " |")
    lines += ["", "## Every search", "", "One, three:", ""]
    lines += ["| task, repeat | " + " | ".join(searchers) + " |"]
    lines += ["|---|" + "---|" * len(searchers)]
    for task, repeat in sorted({(r["task"], r["repeat"]) for r in rows}):
        found = [values.get((task, repeat, name)) for name in searchers]
        cells = [f"{r['one']:.3f}, {r['three']:.3f}" if r else "not run" for r in found]
        lines.append(f"| {task}, {repeat} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Makes the searches that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(TASKS)}; none: nothing is done")
    parser.add_argument("--data-root", type=Path, nargs="+", default=[Path("data")])
    parser.add_argument("--cache", type=Path, default=Path("landscape-cache"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[*SAMPLERS, *USUAL])
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    folder = args.cache / "real_search"
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: without(TASKS[name].data) for name in args.tasks}
    for repeat in range(args.repeats):
        for searcher in args.only:
            for name in args.tasks:
                search = Search(TASKS[name], repeat, searcher, folder)
                try:
                    with FileLock(search.result.with_suffix(".lock"), blocking=False):
                        if not search.result.exists():
                            search.run(args.data_root, args.cache, known[name])
                except Timeout:
                    continue
    if rows := table_of(folder):
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
