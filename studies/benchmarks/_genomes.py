"""The genomes of a task's table: which one stands at which place, and in what order they train.

Three kinds take turns, so that the beginning of a table is a smaller table of the same make: random
ones over the whole space, surgical ones (one, two or three blocks and the head at rates over the
whole range, all else frozen), and ones where searchers go. The first two kinds follow from place
and number of blocks alone, so tasks with the same network share them. Those of the third follow
from the values at earlier places too: what the default sampler proposes in a search of its own,
what TPE proposes that knows all of the table so far, and moves of the best so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import optuna

from biotune_optuna import BioTuneSampler, Recipe, SearchSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from biotune_optuna import GenomeSpace
    from biotune_optuna.genome import Genome

GENOMES = 300
REPEATED_OF = 120  # places; those that are trained again are among the first
REPEATED = (14, 13, 13)  # of each kind
REPEATS = 2  # further seeds

RANDOM, SURGICAL, SEARCHED = range(3)
WAYS = ("default", "TPESampler", "moved")  # how genomes of the third kind come about
SIZES = (1, 2, 1, 3)  # blocks of the surgical ones, in turn

Job = tuple[int, int]
Known = tuple[dict[str, float], float]


def jobs() -> list[Job]:
    """Place and repeat of every training, in order; repeat 0 has the seed of a search."""
    rng = np.random.default_rng(0)
    chosen = sorted(
        3 * int(turn) + kind
        for kind, count in enumerate(REPEATED)
        for turn in rng.permutation(REPEATED_OF // 3)[:count]
    )
    return [
        *((place, 0) for place in range(REPEATED_OF)),
        *((place, repeat) for repeat in range(1, REPEATS + 1) for place in chosen),
        *((place, 0) for place in range(REPEATED_OF, GENOMES)),
    ]


def origin(place: int) -> str:
    """How the genome at a place comes about."""
    kind, turn = place % 3, place // 3
    return ("random", "surgical", WAYS[turn % len(WAYS)])[kind]


def genome_at(place: int, space: GenomeSpace, known: Mapping[int, Known]) -> Genome:
    """The genome at a place.

    Args:
        place: Counted from 0.
        space: The space it is of.
        known: Parameters and value at every earlier place.
    """
    kind, turn = place % 3, place // 3
    rng = np.random.default_rng([place, space.n_blocks])
    if kind == RANDOM:
        return _random(space, rng)
    if kind == SURGICAL:
        return _surgical(space, turn, rng)
    way = origin(place)
    if way == "default":
        return _by_default(space, [known[i] for i in range(place) if origin(i) == way])
    earlier = [known[i] for i in range(place)]
    if way == "TPESampler":
        return _by_tpe(space, earlier, seed=place)
    return _moved(space, earlier, rng)


def _by_default(space: GenomeSpace, own: Sequence[Known]) -> Genome:
    """What the default sampler proposes next in a search of its own."""
    strategy = SearchSettings.of("default", reevaluations=0)
    sampler = BioTuneSampler(space=space, seed=0, strategy=strategy)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for params, value in own:
        trial = study.ask()
        if space.suggest(trial).params != params:
            raise SystemExit(
                "the default sampler proposes other genomes than when this table was begun; go on "
                "with the version that began it, or begin another in an empty --cache"
            )
        study.tell(trial, value)
    return space.suggest(study.ask())


def _random(space: GenomeSpace, rng: np.random.Generator) -> Genome:
    """Uniform genes, the base rate uniform on its log scale."""
    params: dict[str, float] = dict(zip(space.gene_names, rng.random(space.n_genes), strict=True))
    return space.genome(params | {"lr": _rate(space, rng)})


def _surgical(space: GenomeSpace, turn: int, rng: np.random.Generator) -> Genome:
    """One, two or three blocks and the head; every block in turn is the single one."""
    size = SIZES[turn % len(SIZES)]
    body = space.n_blocks - 1
    singles = turn // len(SIZES) * SIZES.count(1) + (turn % len(SIZES)) // 2
    blocks = [singles % body] if size == 1 else rng.permutation(body)[:size].tolist()
    logs = np.full(space.n_blocks, -np.inf)
    trained = [*blocks, body]
    logs[trained] = rng.uniform(-1.0, 1.0, len(trained))
    return _genome(space, logs, _rate(space, rng))


def _by_tpe(space: GenomeSpace, earlier: Sequence[Known], *, seed: int) -> Genome:
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = space.distributions()
    for params, value in earlier:
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=value)
        )
    return space.suggest(study.ask(distributions))


def _moved(space: GenomeSpace, earlier: Sequence[Known], rng: np.random.Generator) -> Genome:
    """One or two moves from one of the best tenth so far."""
    order = np.argsort([-value for _, value in earlier], kind="stable")
    best = order[: max(3, len(earlier) // 10)]
    recipe = space.genome(earlier[int(rng.choice(best))][0]).decode()
    with np.errstate(divide="ignore"):
        logs = np.log10([block.multiplier for block in recipe.blocks])
    rate = recipe.lr
    for _ in range(int(rng.integers(1, 3))):
        rate = _move(logs, rate, space, rng)
    return _genome(space, logs, rate)


def _move(
    logs: NDArray[np.float64], rate: float, space: GenomeSpace, rng: np.random.Generator
) -> float:
    """Changes log multipliers in place; returns the base rate."""
    body = np.arange(len(logs) - 1)
    trained = np.isfinite(logs[:-1])
    on, off = body[trained], body[~trained]
    move = str(rng.choice(["add", "drop", "swap", "rate", "all"]))
    if move in ("drop", "swap") and len(on):
        gone = int(rng.choice(on))
        if move == "swap" and len(off):
            logs[int(rng.choice(off))] = logs[gone]
        logs[gone] = -np.inf
    elif move == "add" and len(off):
        logs[int(rng.choice(off))] = rng.uniform(-1.0, 1.0)
    elif move == "all":
        low, high = space.extra_bounds["lr"]
        return float(np.clip(rate * 10 ** rng.normal(0.0, 0.3), low, high))
    else:
        logs[int(rng.choice([*on, len(logs) - 1]))] = rng.uniform(-1.0, 1.0)
    return rate


def _rate(space: GenomeSpace, rng: np.random.Generator) -> float:
    low, high = space.extra_bounds["lr"]
    return float(low * (high / low) ** rng.random())


def _genome(space: GenomeSpace, logs: NDArray[np.float64], rate: float) -> Genome:
    recipe = Recipe.from_multipliers(
        space.blocks,
        (10.0**logs).tolist(),
        lr=rate,
        weight_decay=space.base_weight_decay,
    )
    return space.encode(recipe)
