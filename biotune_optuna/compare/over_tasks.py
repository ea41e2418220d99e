"""What a comparison says over its tasks: mean differences, wins, and mean ranks.

Tasks and repeats are both drawn anew (a hierarchical bootstrap), so that intervals have what other
tasks would change, and what other splits and seeds would. Luck that the means of few repeats hold
counts twice, which makes intervals wider; few tasks make percentile intervals a little too narrow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.compare.statistics import LEVEL, holm, signed_rank
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from biotune_optuna.compare.rows import Row

DRAWS: Final = 10_000
_EQUAL = 1e-12  # means nearer than this are a tie


@dataclass(frozen=True)
class Difference:
    """One method minus another, over the tasks.

    Attributes:
        against: The other method.
        value: Mean over the tasks of the mean differences over their repeats.
        low: Lower end of its 95 % interval, of the hierarchical bootstrap.
        high: Upper end.
        wins: Tasks on which the first has the better mean.
        losses: Tasks on which the other has.
        worst: The least difference on any task.
        p: Wilcoxon's two-sided signed-rank test over the tasks' mean differences.
        adjusted: That p after Holm's correction over all methods compared with.
    """

    against: str
    value: float
    low: float
    high: float
    wins: int
    losses: int
    worst: float
    p: float
    adjusted: float


@dataclass(frozen=True)
class Rank:
    """A method's mean rank over the tasks.

    Attributes:
        method: The method.
        value: Mean rank by mean score, 1 the best; ties share the average of their ranks.
        low: Lower end of what 95 % of the draws have.
        high: Upper end.
        first: Share of the draws in which nobody's mean rank is better.
    """

    method: str
    value: float
    low: float
    high: float
    first: float


@dataclass(frozen=True)
class Matrix:
    """Scores that are complete: in each repeat that is kept, each method has one.

    Attributes:
        methods: The methods, M of them.
        tasks: For each task its name and scores, shape (repeats, M); at least one repeat each.
    """

    methods: tuple[str, ...]
    tasks: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(
        cls,
        rows: Collection[Row],
        methods: Sequence[str],
        value: Callable[[Row], float] = lambda row: row.delivered,
    ) -> Matrix:
        """Take from rows what is complete.

        Args:
            rows: Raw results.
            methods: Methods that must be there.
            value: What is compared; more is better. Default: the score of the model that is
                delivered, all members together.

        Raises:
            DataError: If no repeat of any task has all methods, or one has not the same test
                images for all.
        """
        cells: dict[tuple[str, int], dict[str, Row]] = defaultdict(dict)
        for row in sorted(rows):
            if row.method in methods:
                cells[row.task, row.repeat][row.method] = row
        kept: dict[str, list[list[float]]] = defaultdict(list)
        for (task, repeat), found in cells.items():
            if len(found) < len(methods):
                continue
            if len({row.split for row in found.values()}) > 1:
                raise DataError(
                    f"{task}, repeat {repeat}: not all methods were tested on the same images"
                )
            kept[task].append([value(found[name]) for name in methods])
        if not kept:
            raise DataError(f"no repeat of any task has all of {', '.join(methods)}")
        return cls(tuple(methods), {task: np.array(scores) for task, scores in kept.items()})

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean score of each task and method, shape (T, M)."""
        return np.array([scores.mean(axis=0) for scores in self.tasks.values()])

    def drawn(self, draws: int = DRAWS, *, seed: int = 0) -> NDArray[np.float64]:
        """Draw tasks with replacement, and for each the repeats, the same for all methods.

        Args:
            draws: Draws.
            seed: Seed of the generator.

        Returns:
            Mean scores of the tasks drawn, shape (draws, T, M).
        """
        rng = np.random.default_rng(seed)
        which = rng.integers(len(self.tasks), size=(draws, len(self.tasks)))
        means = np.empty((*which.shape, len(self.methods)))
        for number, scores in enumerate(self.tasks.values()):
            here = which == number
            repeats = rng.integers(len(scores), size=(int(here.sum()), len(scores)))
            means[here] = scores[repeats].mean(axis=1)
        return means


def differences(matrix: Matrix, *, draws: int = DRAWS, seed: int = 0) -> list[Difference]:
    """Compare the first method with each other one.

    Args:
        matrix: The scores.
        draws: Draws of the bootstrap.
        seed: Its seed.

    Returns:
        One difference for each other method, in their order.
    """
    drawn, means = matrix.drawn(draws, seed=seed), matrix.means
    apart = (means[:, :1] - means[:, 1:]).T
    spread = (drawn[:, :, :1] - drawn[:, :, 1:]).mean(axis=1)
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    p_values = [signed_rank(one.tolist()).p for one in apart]
    return [
        Difference(
            against=name,
            value=float(one.mean()),
            low=float(low[i]),
            high=float(high[i]),
            wins=int((one > _EQUAL).sum()),
            losses=int((one < -_EQUAL).sum()),
            worst=float(one.min()),
            p=p_values[i],
            adjusted=adjusted,
        )
        for i, (name, one, adjusted) in enumerate(
            zip(matrix.methods[1:], apart, holm(p_values), strict=True)
        )
    ]


def ranks(matrix: Matrix, *, draws: int = DRAWS, seed: int = 0) -> list[Rank]:
    """Return each method's mean rank with its spread, the best first.

    Args:
        matrix: The scores.
        draws: Draws of the bootstrap.
        seed: Its seed.
    """
    from scipy.stats import rankdata

    def ranked(means: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = rankdata(-np.round(means, 12), axis=-1).mean(axis=-2)
        return found

    values, spread = ranked(matrix.means), ranked(matrix.drawn(draws, seed=seed))
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    first = (spread <= spread.min(axis=1, keepdims=True) + _EQUAL).mean(axis=0)
    found = [
        Rank(name, float(values[i]), float(low[i]), float(high[i]), float(first[i]))
        for i, name in enumerate(matrix.methods)
    ]
    return sorted(found, key=lambda one: (one.value, one.method))


def components(matrix: Matrix) -> tuple[float, float]:
    """Return how much the first method's lead over the second spreads.

    Args:
        matrix: The scores; tasks of fewer than two repeats say nothing of the spread within.

    Returns:
        Standard deviation of the difference between repeats of a task, and between the true
        means of tasks (the spread of the means beyond what their repeats explain, at least 0).
    """
    apart = [scores[:, 0] - scores[:, 1] for scores in matrix.tasks.values()]
    spreads = [one.var(ddof=1) for one in apart if len(one) > 1]
    within = float(np.mean(spreads)) if spreads else float("nan")
    noise = float(np.mean([within / len(one) for one in apart]))
    between = float(np.var([one.mean() for one in apart], ddof=1)) - noise
    return within**0.5, max(0.0, between) ** 0.5


def detectable(
    within: float, between: float | None, *, tasks: int, repeats: int, power: float = 0.8
) -> float:
    """Return the least true mean difference that so many tasks would show, at 5 %, two-sided.

    Args:
        within: Standard deviation between repeats of a task.
        between: Standard deviation between tasks; None asks about these tasks alone, and no others.
        tasks: Tasks, at least 2.
        repeats: Repeats of each.
        power: How often it would be seen, default 0.8.
    """
    from scipy.stats import t as student

    error = (((between or 0.0) ** 2 + within**2 / repeats) / tasks) ** 0.5
    freedom = tasks * max(1, repeats - 1) if between is None else tasks - 1
    both = student.ppf(0.5 + LEVEL / 2, freedom) + student.ppf(power, freedom)
    return float(both * error)
