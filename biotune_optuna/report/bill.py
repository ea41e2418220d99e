"""The bill: what each part of a study took, and what tuned full fine-tuning would have taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.record import trainings
from biotune_optuna.page.text import count, duration
from biotune_optuna.report.cost import time_spent
from biotune_optuna.schema import Cost, TrialRecord

if TYPE_CHECKING:
    from biotune_optuna.report.view import StudyView


@dataclass(slots=True)
class BillLine:
    """One part of the bill.

    Attributes:
        part: What was done.
        passes: Image passes, forward and backward.
        seconds: Of computing, summed over workers.
    """

    part: str
    passes: int
    seconds: float

    @classmethod
    def of(cls, part: str, costs: Iterable[Cost]) -> BillLine:
        """Return the line of some costs."""
        cost = Cost.sum(costs)
        return cls(part, cost.forward + cost.backward, cost.seconds)


NOTHING = "after it: nothing trained"
"""The part of a study whose model is made of the search's own."""

ALONE = "tuned full fine-tuning alone"
"""The part that was not done: what is estimated to compare with."""


def bill(view: StudyView) -> list[BillLine]:
    """Return what a study took so far; parts that took nothing are absent.

    Where the model is made of the search's own models, a line of nothing says so. The last line,
    after a confirmation with full fine-tuning, estimates what that alone would have taken, tuned
    and trained as often: five rates, the confirmation's seeds and as many final trainings as the
    model has members, each as long as those that were made.

    Args:
        view: The study read.
    """
    confirmed = view.confirmation
    finals = list(confirmed.final_training.values())
    records = map(TrialRecord, view.trials)
    trials = [
        Cost(forward=one.forward, backward=one.backward, seconds=one.seconds or 0.0)
        for one in records
    ]
    begun = [view.model_choice.cost, view.race.cost, view.rate_check, view.first_answer]
    fresh: list[Cost] = [*(trainings(view.user_attrs).values() or confirmed.contenders)]
    lines = [
        BillLine.of("search", [*begun, *trials]),
        BillLine.of("confirmation", fresh),
        BillLine.of("final trainings", finals),
    ]
    # the time around trainings too, so that the parts come to what the study took
    spent = time_spent(view)
    last, after = lines[2].seconds, spent.get("confirmation", 0.0)
    for line, took in zip(lines, (sum(spent.values()) - after, after - last, last), strict=True):
        line.seconds = took
    lines = [line for line in lines if line.passes]
    if len(lines) > 1:
        total = sum(line.passes for line in lines), sum(line.seconds for line in lines)
        lines.append(BillLine("all", *total))
    if confirmed.from_search:
        lines.append(BillLine(NOTHING, 0, 0.0))
    if alone := _full_alone(view):
        lines.append(alone)
    return lines


def _full_alone(view: StudyView) -> BillLine | None:
    """Estimate tuned full fine-tuning alone; None where it was not confirmed."""
    confirmed = view.confirmation
    full = confirmed.contender("full")
    if not full or not full.scores or not full.forward:
        return None
    n = len(full.scores)
    runs = (len(ConfirmPlan().rates) + n) / n
    final = confirmed.final_training.get("full", Cost())
    finals = 1 if confirmed.chosen == "full" else confirmed.members  # a winner's are all in it
    return BillLine(
        ALONE,
        round(runs * (full.forward + full.backward) + finals * (final.forward + final.backward)),
        runs * full.seconds + finals * final.seconds,
    )


def bill_words(lines: Iterable[BillLine]) -> list[str]:
    """Return the bill in aligned lines of text; none for an empty one."""
    rows = [
        (line.part, count(line.passes), f"{_about(line)}{duration(line.seconds)}") for line in lines
    ]
    if not rows:
        return []
    a, b, c = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [f"{part:{a}}  {n:>{b}} image passes  {time:>{c}}" for part, n, time in rows]


def _about(line: BillLine) -> str:
    return "about " if line.part == ALONE else ""
