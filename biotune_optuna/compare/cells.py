"""Who does what in a comparison: a board per task, whose parts are the cells of its matrix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.distributions import IntDistribution

from biotune_optuna._version import __version__
from biotune_optuna.data.identity import is_early
from biotune_optuna.errors import StudyError
from biotune_optuna.schema import (
    COMPARISON_KEY,
    CONTENDER_KEY,
    FINGERPRINTS_KEY,
)
from biotune_optuna.storage.open import keep_user_attr
from biotune_optuna.study import board as work

if TYPE_CHECKING:
    import optuna

    from biotune_optuna.compare.plan import Cell


_REPEATS = IntDistribution(0, 10**6)


class Board(work.Board):
    """The cells of one task.

    Args:
        storage: Where the studies are.
        name: Name of the task's study.
        identity: What must agree for the task to go on.

    Raises:
        StudyError: If the study there is another comparison's.
    """

    def __init__(
        self, storage: optuna.storages.BaseStorage, name: str, identity: Mapping[str, Any]
    ) -> None:
        super().__init__(storage, name)
        stored = keep_user_attr(self.study, COMPARISON_KEY, {"version": __version__, **identity})
        _check_same(name, stored, identity)
        self.is_elsewhere = any(
            stored["spec"][key] != identity["spec"][key] for key in ("data", "weights")
        )
        """Whether data or weights are looked for at another place than when the task was begun."""

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuses cells that another contender of the same name has finished.

        Raises:
            StudyError: If there is one.
        """
        done = self.look().done
        for cell in cells:
            stored = done[cell.key].user_attrs.get(CONTENDER_KEY) if cell.key in done else None
            # As it comes back from JSON: tuples are lists.
            given = json.loads(json.dumps(cell.contender.to_dict()))
            if stored is not None and stored != given:
                raise StudyError(
                    f"comparison {self.study.study_name!r} has another method by the name of "
                    f"{cell.contender.name!r}; give this one another name"
                )

    def pin(self, found: Mapping[str, str], *, early: str | None = None) -> None:
        """Keep the fingerprints of data and weights, or compares them with those kept.

        Args:
            found: The fingerprints by name, ``"data"`` and ``"weights"``.
            early: That of the data as early versions stored it.

        Raises:
            StudyError: If they are others.
        """
        stored = keep_user_attr(self.study, FINGERPRINTS_KEY, dict(found))
        for name, value in found.items():
            own = early if early and name == "data" and is_early(stored[name]) else value
            if stored.get(name) != own:
                raise StudyError(
                    f"comparison {self.study.study_name!r} was begun with other {name}; give the "
                    "same or another comparison name"
                )

    def claim_cell(self, cell: Cell) -> optuna.Trial | None:
        """Return a trial that holds the cell, None where somebody else does."""
        contender = {CONTENDER_KEY: cell.contender.to_dict()}
        return self.claim(cell.key, attributes=contender, param=("repeat", cell.repeat, _REPEATS))


def _check_same(name: str, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuses to mix results that cannot be compared."""
    from biotune_optuna.study.spec import StudySpec

    theirs, ours = StudySpec.from_dict(stored["spec"]), StudySpec.from_dict(given["spec"])
    different = theirs.differences(ours)
    usual = {"members": 1, "as_tune": False}  # are not stored
    was, is_now = usual | dict(stored), usual | dict(given)
    different += [
        f"{key}: {was.get(key)!r}, not {is_now[key]!r}"
        for key in is_now
        if key != "spec" and was.get(key) != is_now[key]
    ]
    if different:
        raise StudyError(
            f"comparison {name!r} exists and is another one: it has {'; '.join(different)}; give "
            "the same values or another name"
        )
