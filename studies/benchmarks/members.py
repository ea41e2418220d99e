"""Which final model is worth its cost: how the winner is chosen, and how many members it has.

Searches are drawn from the tables of real trainings (landscapes.py): 28 genomes of a task's table
are one search. What comes after is trained for real: its best recipes and the rivals on fresh
seeds, as a confirmation does, and the members of every model in question on training and validation
images together. Then each model is tested.

    python studies/benchmarks/members.py TASK … --tables CACHE --data-root FOLDER … --cache FOLDER

Each training is kept in FOLDER/TASK.jsonl as soon as it is done, and is made once however many
draws ask for it. The same command goes on where it stopped; run twice at once, each takes another
task. ``--at-most N`` stops after so many trainings. When all named tasks are done the page is
written. ``--page`` writes it of the draws that are complete so far, and trains nothing; the other
processes may go on meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch
from _finals import VIEWS, Finals, Made, Missing
from _tasks import TASKS
from _trainings import cross_entropy, test_part, unpacked
from filelock import FileLock, Timeout
from optuna.trial import create_trial
from scipy.special import logsumexp
from scipy.stats import t as student

from biotune_optuna import Recipe
from biotune_optuna.confirmation.candidates import choose, leading
from biotune_optuna.confirmation.from_search import greedy
from biotune_optuna.confirmation.record import Contender
from biotune_optuna.errors import BioTuneError
from biotune_optuna.evolution import surrogate
from biotune_optuna.evolution.domain import Domain
from biotune_optuna.finetune import metrics
from biotune_optuna.finetune.calibration import fit_temperature
from biotune_optuna.finetune.prefix.shared import SharedPrefix
from biotune_optuna.finetune.results import epochs_of_final_run
from biotune_optuna.models.states import with_values
from biotune_optuna.page.parts import Markdown, Table, markdown
from biotune_optuna.sampler import codec
from biotune_optuna.study.objective import recipe_summary
from biotune_optuna.study.study import TuningStudy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from biotune_optuna.study.setup import Setup

    Vector = NDArray[np.float64]

TRIALS, TOP, RUNS = 28, 3, 3
COUNTS = (1, 2, 3, 5, 8)
FOLDS = (2, 3, 5)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
PULLS = (0, 1, 10, 25)
MOST = max(COUNTS)
WINNER = "seeds of the winner"


@dataclass
class One:
    """A recipe or rival that may become the model."""

    name: str
    recipe: Recipe
    value: float
    best_epochs: tuple[int, ...]
    params: dict[str, float] | None = None
    runs: list[Made] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Length of the final training."""
        return epochs_of_final_run([run.best_epoch for run in self.runs] or self.best_epochs)

    @property
    def val(self) -> Vector:
        """Log-probabilities of the validation images, mean of the fresh trainings."""
        return mean([run.val for run in self.runs if run.val is not None])

    @property
    def contender(self) -> Contender:
        """What the confirmation would make of it."""
        return Contender(
            name=self.name,
            method="biotune" if self.params is not None else self.name,
            recipe=recipe_summary(self.recipe),
            scores=tuple(run.score for run in self.runs),
            best_epochs=tuple(run.best_epoch for run in self.runs),
            backward=sum(run.passes for run in self.runs) // 2,
        )


def mean(logs: Sequence[Vector]) -> Vector:
    """Log of the mean of probabilities, given as logs."""
    found: Vector = logsumexp(np.stack(logs), axis=0) - math.log(len(logs))
    return found


@dataclass(frozen=True)
class Model:
    """A model of one or more members.

    Attributes:
        members: Their trainings.
        recipes: The recipe of each.
        val: Log-probabilities of images that it was not trained on, for its temperature; None
            where there are none.
        val_labels: Their labels.
        free: Whether its members come from the search, so that nothing is trained.
    """

    members: list[Made]
    recipes: list[Recipe]
    val: Vector | None = None
    val_labels: NDArray[np.int64] | None = None
    free: bool = False

    @property
    def passes(self) -> float:
        """Image passes of the final trainings."""
        return 0.0 if self.free else float(sum(one.passes for one in self.members))


class Draw:
    """One search of a task, and what comes after it.

    Args:
        finals: Trainings of the task.
        rows: The table's trainings on the search's seed.
        number: Number of the draw.
    """

    def __init__(self, finals: Finals, rows: Sequence[dict[str, Any]], number: int) -> None:
        self.finals, self.setup = finals, finals.setup
        order = np.random.default_rng(number).permutation(len(rows))[:TRIALS]
        self.rows = [rows[i] for i in order]
        spec = self.setup.spec
        self.fresh = [run.seed for run in spec.confirm_runs(RUNS)]
        self.last = spec.final_seeds(MOST)
        self.labels = self.setup.source.labels
        self.val_labels = self.labels[self.setup.splits.val]

    # -- who is up for choice ----------------------------------------------------------------

    @cached_property
    def best(self) -> list[One]:
        """The search's best recipes, by model and by value in turn."""
        space = self.setup.space
        study = optuna.create_study(direction="maximize")
        study.add_trials(
            create_trial(
                value=row["score"], params=row["params"], distributions=space.distributions()
            )
            for row in self.rows
        )
        found = leading(TuningStudy(study, self.setup), MOST, study.get_trials(deepcopy=False))
        return [
            One(
                name=f"trial {trial.number}",
                recipe=recipe,
                value=self.rows[trial.number]["score"],
                best_epochs=(self.rows[trial.number]["best_epoch"],),
                params=dict(trial.params),
            )
            for trial, recipe in found
        ]

    @cached_property
    def contenders(self) -> list[One]:
        """The best three and the rivals, each with its fresh trainings."""
        blocks, decay = self.setup.blocks, self.setup.space.base_weight_decay
        seed = self.setup.spec.search_runs()[0].seed
        tried = [Recipe.full(blocks, lr=rate, weight_decay=decay) for rate in RATES]
        tuned = [self.finals.confirming(recipe, seed) for recipe in tried]
        best = max(range(len(RATES)), key=lambda i: tuned[i].score)
        probe = Recipe.fitted_probe(blocks, weight_decay=decay)
        everyone = [
            *self.best[:TOP],
            One("full", tried[best], tuned[best].score, (tuned[best].best_epoch,)),
            One("linear-probe", probe, math.nan, (1,)),
        ]
        for one in everyone:
            one.runs = [self.finals.confirming(one.recipe, seed) for seed in self.fresh]
        return everyone

    # -- who is chosen -----------------------------------------------------------------------

    def chosen(self, rule: str) -> One:
        """The contender that a rule takes."""
        everyone = {one.name: one for one in self.contenders}
        found = [one.contender for one in self.contenders]
        if rule == "best mean":
            return everyone[choose(found)[0].name]
        if rule == "cheapest within a standard error":
            return everyone[choose(found, prefer="cheap")[0].name]
        if rule == "best recipe of the search":
            return max(self.contenders[:TOP], key=lambda one: one.contender.mean)
        assert rule == "best mean, shrunk"
        return max(self.contenders, key=self._shrunk)

    @cached_property
    def _noise(self) -> float:
        """Standard error of a mean of fresh trainings, pooled over contenders."""
        spread = [np.var(one.contender.scores, ddof=1) for one in self.contenders]
        return max(1e-3, math.sqrt(float(np.mean(spread)) / RUNS))

    @cached_property
    def _landscape(self) -> tuple[surrogate.Model, Domain, float, float] | None:
        space = self.setup.space
        domain = Domain(space.names, np.zeros(len(space.names), dtype=np.int64), space)
        values = np.array([row["score"] for row in self.rows])
        middle, spread = float(values.mean()), float(values.std()) or 1.0
        genes = np.array([self._genes(row["params"]) for row in self.rows])
        model = surrogate.fit(domain, genes, (middle - values) / spread, np.ones(len(values)))
        return None if model is None else (model, domain, middle, spread)

    def _genes(self, params: dict[str, float]) -> list[float]:
        distributions = self.setup.space.distributions()
        return [codec.encode(d, params[name]) for name, d in distributions.items()]

    def _shrunk(self, one: One) -> float:
        """The mean of the fresh trainings, pulled towards what the search's values say."""
        own = one.contender.mean
        if self._landscape is None or one.params is None:
            return own
        model, _, middle, spread = self._landscape
        found, deviation = model.predict(np.array([self._genes(one.params)]))
        believed, doubt = middle - spread * float(found[0]), spread * float(deviation[0])
        weight = doubt**2 / (doubt**2 + self._noise**2)
        return weight * own + (1 - weight) * believed

    # -- models ------------------------------------------------------------------------------

    def seeds(self, one: One, count: int) -> Model:
        """The same recipe on several seeds."""
        members = [self.finals.final(one.recipe, seed, one.epochs) for seed in self.last[:count]]
        if count > 1:
            return Model(members, [one.recipe] * count, one.val, self.val_labels)
        alone = [run.val for run in one.runs if run.val is not None]
        labels = np.tile(self.val_labels, len(alone))
        return Model(members, [one.recipe], np.concatenate(alone), labels)

    def recipes(self, count: int) -> Model:
        """The best recipes once each: by fresh trainings, then by the search."""
        known = sorted(self.contenders[:TOP], key=lambda one: -one.contender.mean)
        ranked = [*known, *self.best[TOP:]][:count]
        members = [self.finals.final(one.recipe, self.last[0], one.epochs) for one in ranked]
        val = mean([one.val for one in ranked[:TOP]])
        return Model(members, [one.recipe for one in ranked], val, self.val_labels)

    def allotted(self, counts: Sequence[int]) -> Model:
        """So many members of each contender."""
        parts = [
            self.seeds(one, n) for one, n in zip(self.contenders, counts, strict=True) if n > 0
        ]
        vals = [one.val for one, n in zip(self.contenders, counts, strict=True) for _ in range(n)]
        val = mean(vals)
        members = [member for part in parts for member in part.members]
        return Model(members, [r for part in parts for r in part.recipes], val, self.val_labels)

    def greedy(self, count: int) -> Model:
        """Contenders added one by one, whichever lowers the cross-entropy most."""
        picks = greedy([np.exp(one.val) for one in self.contenders], self.val_labels, count)
        return self.allotted([picks.count(i) for i in range(len(self.contenders))])

    def undecided(self, count: int) -> Model:
        """Members of each contender in proportion to how likely it is the best."""
        means = np.array([one.contender.mean for one in self.contenders])
        noise = np.random.default_rng(0).standard_normal((20_000, len(means))) * self._noise
        wins = np.bincount((means + noise).argmax(1), minlength=len(means)) / 20_000
        counts = np.floor(wins * count).astype(int)
        rest = np.argsort(-(wins * count - counts), kind="stable")
        counts[rest[: count - counts.sum()]] += 1
        return self.allotted(counts.tolist())

    def folds(self, count: int) -> Model:
        """The winner without one fold each, which validates."""
        one = self.chosen("best mean")
        seeds = self.last[:count]
        members = [
            self.finals.folded(one.recipe, seed, one.epochs, i, count)
            for i, seed in enumerate(seeds)
        ]
        left_out = np.concatenate([self.finals.fold(i, count)[1] for i in range(count)])
        val = np.concatenate([member.val for member in members if member.val is not None])
        return Model(members, [one.recipe] * count, val, self.labels[left_out])

    def search(self, count: int) -> Model:
        """Models of the search itself, chosen greedily: nothing is trained."""
        n = len(self.setup.classes)
        rows = [row for row in self.rows if row.get("test_probs")]
        vals = [np.exp(unpacked(row["val_probs"][row["best_epoch"] - 1], n)) for row in rows]
        picks = [rows[i] for i in greedy(vals, self.val_labels, count)]
        members = [
            Made(
                score=row["score"],
                best_epoch=row["best_epoch"],
                passes=row["forward"] + row["backward"],
                seconds=row["seconds"],
                val=None,
                test={"plain": unpacked(row["test_probs"], n)},
            )
            for row in picks
        ]
        recipes = [self.setup.space.genome(row["params"]).decode() for row in picks]
        return Model(members, recipes, free=True)

    # -- what they are worth -----------------------------------------------------------------

    def worth(self, model: Model, views: Sequence[str] = ("plain",)) -> dict[str, float]:
        """Accuracy, cross-entropy and cost of a model."""
        truth = self.labels[test_part(self.setup)]
        logs = mean([one.test[view] for one in model.members for view in views])
        pulled = {}
        if model.val is not None and model.val_labels is not None:
            for pull in PULLS:
                warmth = fit_temperature(model.val_labels, np.exp(model.val), pull=pull)
                pulled[f"calibrated, {pull}"] = cross_entropy(logs / warmth, truth)
        n_classes = len(self.setup.classes)
        return {
            "accuracy": metrics.score("macro_accuracy", truth, np.exp(logs), n_classes),
            "nll": cross_entropy(logs, truth),
            "calibrated": pulled.get("calibrated, 10", math.nan),
            **pulled,
            "passes": model.passes,
            "predicting": len(views) * self.predicting(model.recipes),
        }

    def predicting(self, recipes: Sequence[Recipe]) -> float:
        """What predicting an image costs, in passes of it through one network."""
        frozen = min(_prefix(recipe) for recipe in recipes)
        return 1 + (len(recipes) - 1) * suffix_share(self.setup, frozen)

    def table(self) -> dict[str, dict[str, float]]:
        """The worth of every model in question, by its name."""
        winner = self.chosen("best mean")
        found: dict[str, Model] = {}
        for count in COUNTS:
            found[f"{WINNER}, {count}"] = self.seeds(winner, count)
            found[f"best recipes once each, {count}"] = self.recipes(count)
            found[f"greedy among contenders, {count}"] = self.greedy(count)
            found[f"in proportion to the chance of being best, {count}"] = self.undecided(count)
            found[f"greedy among the search's own models, {count}"] = self.search(count)
        found |= {f"folds of the winner, {count}": self.folds(count) for count in FOLDS}
        for rule in (
            "cheapest within a standard error",
            "best mean, shrunk",
            "best recipe of the search",
        ):
            for count in (1, 5):
                found[f"{rule}, {count}"] = self.seeds(self.chosen(rule), count)
        worth = {name: self.worth(model) for name, model in found.items()}
        for count in (1, 5):
            model = found[f"{WINNER}, {count}"]
            for views in (VIEWS[:2], VIEWS[::2], VIEWS):
                words = " and ".join(view for view in views if view != "plain")
                worth[f"{WINNER} with {words}, {count}"] = self.worth(model, views)
        return worth


def _prefix(recipe: Recipe) -> int:
    """How many blocks from the input on are frozen."""
    trains = [i for i, block in enumerate(recipe.blocks) if not block.frozen]
    return trains[0]


_shares: dict[tuple[str, int], float] = {}


def suffix_share(setup: Setup, frozen: int) -> float:
    """Share of a pass that lies behind so many blocks, where they can be shared."""
    key = (setup.loaded.name, frozen)
    if key not in _shares:
        model = setup.trainer.model.eval()
        tensors = dict(model.named_parameters())
        names = [name for block in setup.blocks[frozen:] for name in block.parameter_names]
        twin = with_values(model, {name: tensors[name] + 0.01 for name in names})
        side = setup.image_size

        def sample(n: int) -> torch.Tensor:
            return torch.randn((n, 3, side, side), generator=torch.Generator().manual_seed(0))

        shared = SharedPrefix.find([model, twin], setup.blocks, sample)
        _shares[key] = shared.passes(sample(1)) - 1
    return _shares[key]


# -- the page ------------------------------------------------------------------------------------


Results = dict[str, list[dict[str, dict[str, float]]]]
"""For each task, for each draw: name of the model -> its worth."""


def column(found: Results, name: str, what: str) -> list[float]:
    """Mean over the draws, for each task."""
    return [float(np.mean([draw[name][what] for draw in draws])) for draws in found.values()]


def interval(values: Sequence[float], *, scale: float = 100.0) -> str:
    """Mean over tasks and its 95 % t interval."""
    held = scale * np.asarray(values)
    if len(held) < 2:
        return f"{held.mean():+z.1f}"
    half = student.ppf(0.975, len(held) - 1) * held.std(ddof=1) / math.sqrt(len(held))
    return f"{held.mean():+z.1f} ({held.mean() - half:+z.1f} to {held.mean() + half:+z.1f})"


def row(found: Results, name: str, reference: str) -> tuple[str, ...]:
    """One line of a table."""
    ours, theirs = column(found, name, "accuracy"), column(found, reference, "accuracy")
    cost = np.array(column(found, name, "passes")) / column(found, f"{WINNER}, 1", "passes")
    calibrated = float(np.mean(column(found, name, "calibrated")))
    return (
        name,
        f"{100 * np.mean(ours):.1f}",
        "" if name == reference else interval(np.subtract(ours, theirs).tolist()),
        f"{np.mean(column(found, name, 'nll')):.3f}",
        "–" if math.isnan(calibrated) else f"{calibrated:.3f}",
        f"{cost.mean():.1f}",
        f"{np.mean(column(found, name, 'predicting')):.2f}",
    )


def page(found: Results) -> str:
    """The tables as Markdown."""
    single, five = f"{WINNER}, 1", f"{WINNER}, 5"
    told = ", ".join(f"{name} ({len(draws)})" for name, draws in found.items())
    names = list(next(iter(found.values()))[0])
    rules = ("cheapest within a standard error", "best mean, shrunk", "best recipe of the search")
    views = [name for name in names if name.startswith(f"{WINNER} with")]
    ways = [name for name in names if name not in views and not name.startswith(rules)]
    head = (
        *("Model", "Accuracy, %", "Minus the reference, points", "Cross-entropy"),
        *("calibrated", "Trainings", "Passes"),
    )
    tables: list[Any] = []
    for title, reference, chosen in (
        ("Members", single, ways),
        ("The choice, one member", single, [single, *(f"{rule}, 1" for rule in rules)]),
        ("The choice, five members", five, [five, *(f"{rule}, 5" for rule in rules)]),
        ("Views, one member", single, [single, *(one for one in views if one.endswith(" 1"))]),
        ("Views, five members", five, [five, *(one for one in views if one.endswith(" 5"))]),
    ):
        tables += [
            Markdown(f"## {title}\n\nThe reference is *{reference}*."),
            Table(head, [row(found, name, reference) for name in chosen]),
        ]
    return markdown(
        [
            Markdown(f"""
                # Members of the final model

                {len(found)} development tasks, each with so many draws: {told}. A draw is a
                search: {TRIALS} genomes of the task's table of real trainings. Its best {TOP}
                recipes, by model and by value in turn, full fine-tuning (best of {len(RATES)}
                rates) and the linear probe are trained on {RUNS} fresh seeds. The winner has the
                best mean, where nothing else is said. Members are trained on training and
                validation images together; a model predicts the mean of their probabilities.

                - *Accuracy*: macro accuracy on the test images, mean over tasks of the mean over
                  draws. *Minus*: paired by task, with the 95 % t interval over tasks.
                - *Cross-entropy* on the test images, and *calibrated* by one temperature that was
                  fitted on validation images as the product does.
                - *Trainings*: image passes of the final trainings, in those of one member.
                - *Passes*: what predicting one image costs, in passes through one network; frozen
                  blocks that all members share run once.
            """),
            *tables,
            Markdown("""
                ## The temperature

                Cross-entropy on the test images without a temperature, and with one that is pulled
                towards 1 as so many images would pull it.
            """),
            Table(
                ("Model", "none", *(f"pull {pull}" for pull in PULLS)),
                [
                    (
                        f"{WINNER}, {count}",
                        *(
                            f"{np.mean(column(found, f'{WINNER}, {count}', key)):.3f}"
                            for key in ("nll", *(f"calibrated, {pull}" for pull in PULLS))
                        ),
                    )
                    for count in COUNTS
                ],
            ),
            Markdown("""
                *Folds*: each member leaves out one fold, so all images validate once. *In
                proportion*: members of each contender as it is likely to be the best by its fresh
                trainings. *Greedy among the search's own models*: trained on the training part
                only, without one more training. *Shrunk*: pulled towards the model of the
                landscape. *Zoom*: the middle 7/8 of the image.

                Made by `python studies/benchmarks/members.py TASK … --tables FOLDER`.
            """),
        ]
    )


# -- the command ---------------------------------------------------------------------------------


def search_rows(path: Path) -> list[dict[str, Any]]:
    """The table's trainings on the seed that every trial of a search has."""
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True)]
    return [line for line in lines[1:] if line["repeat"] == 0]


def work(name: str, args: argparse.Namespace, *, left: int) -> tuple[list[Any] | None, int]:
    """A task's draws, as far as they can be told, and how many trainings were made."""
    setup = TASKS[name].open(args.data_root, args.cache)
    rows = search_rows(args.tables / f"{name}.jsonl")
    if len(rows) < TRIALS:
        raise SystemExit(
            f"{args.tables / name}.jsonl: {len(rows)} trainings; give {TRIALS} or more"
        )
    finals = Finals(setup, args.cache / f"{name}.jsonl", at_most=left)
    try:
        found = [Draw(finals, rows, number).table() for number in range(args.draws)]
    except Missing:
        print(f"{name}: not done, {len(finals)} trainings so far", flush=True)
        return None, finals.made
    print(f"{name}: done, {len(finals)} trainings", flush=True)
    return found, finals.made


def complete(name: str, args: argparse.Namespace) -> list[Any]:
    """A task's draws that are complete, of trainings that were made already."""
    setup = TASKS[name].open(args.data_root, args.cache)
    rows = search_rows(args.tables / f"{name}.jsonl")
    finals = Finals(setup, args.cache / f"{name}.jsonl", at_most=0)
    found = []
    for number in range(args.draws):
        with contextlib.suppress(Missing):
            found.append(Draw(finals, rows, number).table())
    print(f"{name}: {len(found)} of {args.draws} draws, {len(finals)} trainings", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Makes what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--tables", type=Path, required=True, help="cache of landscapes.py")
    parser.add_argument("--data-root", type=Path, nargs="+", default=[Path("data")])
    parser.add_argument("--cache", type=Path, default=Path("members-cache"))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--at-most", type=int, default=10**9, help="stop after so many trainings")
    parser.add_argument("--page", action="store_true", help="write what is complete, train nothing")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/members.md"))
    args = parser.parse_args(argv)
    if unknown := set(args.tasks) - set(TASKS):
        parser.error(f"no such task: {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    if min(args.draws, args.at_most) < 1:
        parser.error("--draws and --at-most must be 1 or more")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    found: Results = {}
    left = args.at_most
    try:
        for name in args.tasks:
            if args.page:
                if draws := complete(name, args):
                    found[name] = draws
                continue
            try:
                with FileLock(args.cache / f"{name}.lock", blocking=False):
                    draws, made = work(name, args, left=left)
            except Timeout:
                continue
            left -= made
            if draws is not None:
                found[name] = draws
    except BioTuneError as error:
        sys.exit(str(error))
    if args.page and not found:
        sys.exit("no draw is complete yet, so there is nothing to write")
    if args.page or len(found) == len(args.tasks):
        args.out.write_text(page(found), encoding="utf-8")
        print(args.out)


if __name__ == "__main__":
    main()
