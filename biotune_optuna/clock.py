"""How long a study takes, and which plan fits into a time: plain arithmetic, nothing is trained.

Everything is counted in *full trainings*: the whole network is fine-tuned on the training images
for all epochs. `Speed` says how long one takes here. A study is a number of them: `forecast` adds
them up, and `choose_plan` looks for the plan that gives up least and still fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

SEARCH_SHARE = 0.85
"""What a training of the search takes, as a share of a full one: frozen blocks save time."""
PROBE_SHARE = 0.08
"""What a linear probe takes: the frozen network is run once."""
EPOCHS_SHARE = 0.9
"""Share of the epochs that are trained before the early stop ends a training."""
RATES_KNOWN = 8
"""Trials after which the search's model knows about where a rival's best base rate is."""
RATES_TRAINED = 2
"""Base rates that are then trained for a rival, about (docs/benchmarks/study_cost.md)."""
FINAL_SHARE = 0.85
"""Share of a training's epochs that the final one takes: it ends at the median best epoch."""
PASSES = 3.0
"""What training on an image takes, in looks at it: one pass forward, about two backward."""
REPORT_SECONDS = 12.0
"""Writing report and model."""
MARGIN = 0.93
"""Share of a time limit that is planned; the rest is for what nobody foresees."""

SMALLEST_SIDE = 64
"""Pixels: below, a network with a stride of 32 is left with one place or none."""
_EXPECTED = 0.5  # trainings that the speed measured beforehand counts for
_PRIOR = 2.0  # trials that the speed measured beforehand counts for
Evidence = tuple[int, int, int]
"""Recipes that are trained again, fresh seeds for each, and a rival's base rates."""

_EVIDENCE: tuple[Evidence, ...] = ((3, 3, 5), (3, 2, 5), (2, 2, 4), (2, 2, 3), (1, 2, 3), (1, 1, 2))
_TRIALS = (60, 50, 40, 30, 24, 20, 16, 12, 10, 8, 6, 4)
_LEAST_EPOCHS = 3


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds that one image takes, by the side of the image: ``fixed + pixel * side ** 2``.

    Attributes:
        train: ``(fixed, pixel)`` of one image forward and backward, with its share of a step.
        look: The same of one image forward alone.
    """

    train: tuple[float, float]
    look: tuple[float, float]

    def training(self, side: int) -> float:
        """Return the seconds to train on one image once."""
        return self.train[0] + self.train[1] * side**2

    def looking(self, side: int) -> float:
        """Return the seconds to predict one image."""
        return self.look[0] + self.look[1] * side**2


@dataclass(frozen=True, slots=True)
class Work:
    """What a plan cannot change.

    Attributes:
        n_train: Training images.
        n_val: Validation images.
        n_test: Test images.
        runs: Trainings an evaluation.
        rivals: Rivals in the confirmation.
        workers: Processes that search at the same time.
        reuse: Whether the confirmation uses what the search has trained.
        from_search: Whether the model is made of the search's own, so that nothing is trained
            afterwards.
    """

    n_train: int
    n_val: int
    n_test: int = 0
    runs: int = 1
    rivals: tuple[str, ...] = ("full", "linear-probe")
    workers: int = 1
    reuse: bool = True
    from_search: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study does.

    Attributes:
        image_size: Side of the training images in pixels.
        epochs: Most epochs of a training.
        trials: Finished trials of the search.
        top_k: Recipes that are trained again.
        n_runs: Fresh seeds for each of them and of the rivals.
        rates: Base rates tried for each rival.
        members: Trainings that the final model is made of.
    """

    image_size: int
    epochs: int
    trials: int
    top_k: int = 3
    n_runs: int = 3
    rates: int = 5
    members: int = 1


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds for each part of a study.

    Attributes:
        search: All trials.
        confirmation: The rivals' rates and the fresh seeds.
        final: The final trainings with the test, the model's further members too.
        report: Writing report and model.
    """

    search: float
    confirmation: float
    final: float
    report: float = REPORT_SECONDS

    @property
    def total(self) -> float:
        """All of it."""
        return self.search + self.after

    @property
    def after(self) -> float:
        """What comes after the search."""
        return self.confirmation + self.final + self.report


def full_training(plan: Plan, work: Work, speed: Speed) -> float:
    """Return the seconds of one full training with validation.

    Args:
        plan: Image size and epochs.
        work: The images.
        speed: How fast this machine is.
    """
    side = plan.image_size
    epoch = work.n_train * speed.training(side) + work.n_val * speed.looking(side)
    return EPOCHS_SHARE * plan.epochs * epoch


def forecast(plan: Plan, work: Work, speed: Speed) -> Forecast:
    """Return how long a study takes that has not begun.

    Args:
        plan: What is to be done.
        work: The images.
        speed: How fast this machine is.
    """
    return forecast_of(plan, work, full_training(plan, work, speed))


def forecast_of(
    plan: Plan, work: Work, full: float, *, trial: float | None = None, done: int = 0
) -> Forecast:
    """Return how long a study takes whose full training takes ``full`` seconds.

    Args:
        plan: What is to be done.
        work: The images.
        full: Seconds of a full training.
        trial: Seconds of a trial, where that was measured.
        done: Trials that are over.
    """
    one = SEARCH_SHARE * full * work.runs if trial is None else trial
    after = trainings_after(plan, work, full)
    left = max(0, plan.trials - done)
    return Forecast(
        search=left * one / max(1, work.workers),
        confirmation=sum(after.tuned) + sum(after.repeated),
        final=sum(after.final),
    )


@dataclass(frozen=True, slots=True)
class After:
    """Seconds of each training after the search, in the order in which they are made.

    Attributes:
        tuned: The rivals' base rates.
        repeated: Recipes, then rivals, on fresh seeds.
        final: Those that are tested, the winner's members last.
    """

    tuned: list[float]
    repeated: list[float]
    final: list[float]

    def left(self, done: int, total: int) -> list[float]:
        """Return the seconds of the trainings that are left.

        Args:
            done: Trainings that are over.
            total: How many there are in all; a rival may need more rates, or fewer, than planned.
        """
        rest = [*self.repeated, *self.final]
        rates = max(0, total - len(rest))
        usual = max(self.tuned, default=0.0)
        return ([usual] * rates + rest)[-total:][done:] if total else []


def trainings_after(plan: Plan, work: Work, full: float) -> After:
    """Return the trainings after the search; arguments as in `forecast_of`.

    The best recipes take as long as recipes on average, whatever the first trials have frozen.
    """
    if work.from_search:
        return After([], [], [])
    repeat = SEARCH_SHARE * full
    rivals = [full if name != "linear-probe" else PROBE_SHARE * full for name in work.rivals]
    known = work.reuse and plan.trials >= RATES_KNOWN
    tried = min(plan.rates, RATES_TRAINED) if known else plan.rates + 1
    # trained on training and validation images together, without a look at the latter
    more = FINAL_SHARE * (work.n_train + work.n_val) / max(1, work.n_train)
    epoch = PASSES * work.n_train + work.n_val
    test = full * work.n_test / max(1.0, EPOCHS_SHARE * plan.epochs * epoch)
    last = [repeat] * plan.members
    return After(
        tuned=[full for cost in rivals if cost == full for _ in range(tried)],
        repeated=[repeat] * (plan.n_runs * plan.top_k)
        + [cost for cost in rivals for _ in range(plan.n_runs)],
        final=[more * cost + test for cost in ([*rivals, *last] if work.n_test else last)],
    )


def choose_plan(
    seconds: float,
    work: Work,
    speed: Speed,
    *,
    sides: Sequence[int],
    epochs: Sequence[int],
    trials: Sequence[int] = _TRIALS,
    members: Sequence[int] = (1,),
    evidence: Sequence[Evidence] = _EVIDENCE,
) -> Plan | None:
    """Return the plan that gives up least of those that fit into a time.

    What is given up counts by how much worse results tend to get: small images most, then few
    epochs and few trials, then thin evidence. More time never gives a worse plan.

    Args:
        seconds: The time for everything.
        work: The images.
        speed: How fast this machine is.
        sides: Image sizes to choose from; the largest is the one that is wanted.
        epochs: Numbers of epochs to choose from; the largest is the one that is wanted.
        trials: Numbers of trials to choose from.
        members: Numbers of members to choose from.
        evidence: What to choose from of it, the most first.

    Returns:
        The plan; None where even the least does not fit.
    """
    fitting = (
        plan
        for plan in _plans(sides, epochs, trials, members, evidence)
        if forecast(plan, work, speed).total <= MARGIN * seconds
    )
    wanted = (max(sides), max(epochs), max(trials), max(members))
    return min(fitting, key=lambda plan: _loss(plan, *wanted, evidence=evidence[0]), default=None)


def least_time(
    work: Work,
    speed: Speed,
    *,
    sides: Sequence[int],
    epochs: Sequence[int],
    trials: Sequence[int] = _TRIALS,
    evidence: Sequence[Evidence] = _EVIDENCE,
) -> float:
    """Return the shortest time for which `choose_plan` finds a plan."""
    plans = _plans(sides, epochs, trials, (1,), evidence)
    least = min(forecast(plan, work, speed).total for plan in plans) / MARGIN
    return math.nextafter(least, math.inf)  # so that rounding leaves it long enough


def evidence_that_fits(
    seconds: float,
    plan: Plan,
    work: Work,
    *,
    full: float,
    trial: float,
    members: Sequence[int] = (1,),
    evidence: Sequence[Evidence] = _EVIDENCE,
) -> Plan:
    """Return the plan with as much evidence after the search as a time allows, at least the least.

    Args:
        seconds: What is left after the search.
        plan: The plan so far.
        work: The images.
        full: Seconds of a full training.
        trial: Seconds of a trial.
        members: Numbers of members to choose from.
        evidence: What to choose from of it, the most first.
    """
    wanted = (plan.image_size, plan.epochs, plan.trials, max(members))
    plans = list(_plans([plan.image_size], [plan.epochs], [plan.trials], members, evidence))

    def after(one: Plan) -> float:
        return forecast_of(one, work, full, trial=trial).after

    fitting = [one for one in plans if after(one) <= seconds]
    if not fitting:
        return min(plans, key=after)
    return min(fitting, key=lambda one: _loss(one, *wanted, evidence=evidence[0]))


def sides_up_to(largest: int) -> list[int]:
    """Return image sizes to choose from: multiples of 32 from 64 on, and the largest itself."""
    return sorted({*range(SMALLEST_SIDE, largest, 32), largest}) if largest > 0 else []


def epochs_up_to(most: int) -> list[int]:
    """Return numbers of epochs to choose from."""
    return sorted(
        {most, *(n for n in (3, 4, 5, 6, 8, 10, 15, 20, 30) if _LEAST_EPOCHS <= n < most)}
    )


def members_up_to(most: int) -> list[int]:
    """Return numbers of members to choose from."""
    return sorted({most, *(n for n in (1, 2, 3, 5) if n < most)})


def trials_up_to(most: int) -> list[int]:
    """Return numbers of trials to choose from."""
    return sorted({most, *(n for n in _TRIALS if n < most)})


def evidence_up_to(top_k: int, n_runs: int) -> list[Evidence]:
    """Return how much evidence to choose from: recipes, fresh seeds and a rival's rates.

    Args:
        top_k: Most recipes that are trained again.
        n_runs: Most fresh seeds for each.

    Returns:
        The most first.
    """
    most = (top_k, n_runs, _EVIDENCE[0][2])
    less = [one for one in _EVIDENCE if one != most and one[0] <= top_k and one[1] <= n_runs]
    return [most, *less]


def side_for(own: int, median: int) -> int:
    """Return the size to train images at that nobody gave one for.

    Args:
        own: The side that the model was pre-trained with, in pixels.
        median: Median of the images' shorter sides.

    Returns:
        The model's own, but at most twice the images', rounded up to 32, and at least 64.
    """
    return min(own, max(SMALLEST_SIDE, 32 * math.ceil(2 * median / 32)))


def measured_trial(seconds: Sequence[float], expected: float, *, n: int | None = None) -> float:
    """Return what a trial takes, from those that are over and what was expected beforehand.

    Args:
        seconds: Of the trials that are over.
        expected: What was expected; it counts like two trials.
        n: How many trials the seconds are of, where they are a sum; None is one each.
    """
    n = len(seconds) if n is None else n
    return (sum(seconds) + _PRIOR * expected) / (n + _PRIOR)


def measured_pace(seconds: float, expected: Sequence[float]) -> float:
    """Return how many times as long trainings take as was expected.

    Args:
        seconds: What those that are over took together.
        expected: What each of them was expected to take; before all, `_EXPECTED` such trainings
            count as being in time. Where nothing was expected to take time, 1 is returned.
    """
    if not sum(expected):
        return 1.0
    before = _EXPECTED * sum(expected) / len(expected)
    return (seconds + before) / (sum(expected) + before)


def training_share(multipliers: Sequence[float], epochs: float, most: int) -> float:
    """Return what a training takes as a share of a full one, by what its recipe freezes.

    A pass forward, one backward for the outputs and one for the parameters count alike, and so do
    all blocks. Frozen blocks at the input are run once; frozen ones behind a trained one need no
    pass for their parameters.

    Args:
        multipliers: Learning-rate multiplier of each block from the input on; 0 is frozen.
        epochs: Epochs that were trained.
        most: Most epochs of a training.
    """
    n = len(multipliers)
    if not n or not most:
        return SEARCH_SHARE
    prefix = next((i for i, rate in enumerate(multipliers) if rate > 0), n)
    behind = multipliers[prefix:]
    epoch = (2 * len(behind) + sum(rate > 0 for rate in behind)) / (3 * n)
    return (epoch * epochs + prefix / (3 * n)) / (EPOCHS_SHARE * most)


def _plans(
    sides: Sequence[int],
    epochs: Sequence[int],
    trials: Sequence[int],
    members: Sequence[int],
    evidence: Sequence[Evidence] = _EVIDENCE,
) -> Iterable[Plan]:
    for side, epoch, trial, (top_k, n_runs, rates), member in product(
        sides, epochs, trials, evidence, members
    ):
        yield Plan(
            image_size=side,
            epochs=epoch,
            trials=trial,
            top_k=min(top_k, trial),
            n_runs=n_runs,
            rates=rates,
            members=member,
        )


def _loss(
    plan: Plan,
    side: int,
    epochs: int,
    trials: int,
    members: int,
    *,
    evidence: Evidence = _EVIDENCE[0],
) -> float:
    """Weigh what a plan gives up against the one that is wanted; 0 for that one."""
    usual_k, usual_runs, usual_rates = evidence
    return (
        (side / plan.image_size - 1)
        + 0.5 * (epochs / plan.epochs - 1)
        + 0.5 * (math.sqrt(trials / plan.trials) - 1)
        + 0.1 * (usual_k / plan.top_k + usual_runs / plan.n_runs + usual_rates / plan.rates - 3)
        + 0.1 * (members / plan.members - 1)
    )
