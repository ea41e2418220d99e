"""The ledger of a confirmation's trainings, one study attribute for each.

All of them in one attribute would outgrow what a database keeps in a row (MySQL: 64 KB).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

__all__ = ["LEDGER_KEY", "add_training", "trainings"]

LEDGER_KEY = "confirm_trainings"
"""Study user attribute that held all trainings at once; what it holds still counts."""

_PREFIX = f"{LEDGER_KEY}: "


def trainings(user_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what has been trained to confirm, by name.

    Args:
        user_attrs: User attributes of the study.
    """
    before = user_attrs.get(LEDGER_KEY)
    single = {k.removeprefix(_PREFIX): v for k, v in user_attrs.items() if k.startswith(_PREFIX)}
    return {**before, **single} if isinstance(before, Mapping) else single


def add_training(study: optuna.Study, name: str, record: Mapping[str, Any]) -> None:
    """Write a training down."""
    study.set_user_attr(_PREFIX + name, dict(record))
