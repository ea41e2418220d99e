"""Which trials figures draw."""

from collections.abc import Sequence
from typing import TypeVar

from optuna.trial import FrozenTrial

from biotune_optuna.confirmation.record import Confirmation
from biotune_optuna.report.view import NothingToShow, StudyView

MAX_POINTS = 1500  # of a scatter plot: more slow a browser down and show nothing more
_Item = TypeVar("_Item")


def thin(items: Sequence[_Item], most: int) -> list[_Item]:
    """Return at most `most` of the items, 2 or more, evenly chosen; the last is among them."""
    if len(items) <= most:
        return list(items)
    last = len(items) - 1
    return [items[round(i * last / (most - 1))] for i in range(most)]


def with_recipe(view: StudyView) -> list[FrozenTrial]:
    """Return complete trials that say what they trained, best first.

    Args:
        view: The study read.

    Raises:
        NothingToShow: There are none.
    """
    found = [t for t in view.ranked if set(view.recipes.get(t.number, ())) == set(view.blocks)]
    if not found or not view.blocks:
        raise NothingToShow("No complete trial says which blocks it trained and how fast.")
    return found


def check_confirmed(view: StudyView) -> Confirmation:
    """Return the study's confirmation; raise `NothingToShow` where it has none."""
    if not view.confirmation:
        raise NothingToShow("The winner has not been confirmed on test data yet.")
    return view.confirmation
