"""The ledger of a confirmation's trainings, one study attribute for each.

All of them in one attribute would outgrow what a database keeps in a row (MySQL: 64 KB).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from biotune_optuna.schema import LEDGER_KEY, LEDGER_PREFIX

if TYPE_CHECKING:
    import optuna

__all__ = ["add_training", "trainings"]


def trainings(user_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what has been trained to confirm, by name.

    Args:
        user_attrs: User attributes of the study.
    """
    before = user_attrs.get(LEDGER_KEY)
    single = {
        k.removeprefix(LEDGER_PREFIX): v
        for k, v in user_attrs.items()
        if k.startswith(LEDGER_PREFIX)
    }
    return {**before, **single} if isinstance(before, Mapping) else single


def add_training(study: optuna.Study, name: str, record: Mapping[str, Any]) -> None:
    """Write a training down."""
    study.set_user_attr(LEDGER_PREFIX + name, dict(record))
