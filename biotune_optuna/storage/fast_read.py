"""Trials read in two queries of plain rows; the tables are Optuna's own.

Optuna reads trials as mapped objects in seven queries, and every ask reads all trials that have not
finished. Milliseconds of CPU on PostgreSQL, here and by Optuna's own reading: the first look of a
process at 3,000 trials 360 and 2,400; each later look with 8, 100 and 1,000 trials running 4 and
14, 15 and 66, 130 and 1,100. Trials begin one after the other, each after such looks: without this
a few hundred workers would wait for each other. In a study of one worker nobody notices (a whole
trial costs 50 and 54).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import Integer, String, cast, literal, literal_column, select, union_all

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session


_PARAM, _VALUE, _STEP, _USER, _SYSTEM = range(5)
_FEW = 1000

# A typed nothing: a union takes each column's type from all its parts, and a double must stay one.
_NO_NUMBER: Any = literal_column("0.0e0")
_NO_TEXT: Any = literal_column("''")


def load_trials(session: Session, condition: ColumnElement[bool]) -> list[FrozenTrial]:
    """Return the trials that meet a condition on Optuna's trial table, ordered by id."""
    trial = models.TrialModel
    heads = session.execute(
        select(
            trial.trial_id,
            trial.number,
            trial.state,
            trial._datetime_start_utc,
            trial._datetime_complete_utc,
        )
        .where(condition)
        .order_by(trial.trial_id)
    ).all()
    if not heads:
        return []
    parts: dict[int, _Parts] = {head[0]: _Parts() for head in heads}
    # A planner knows what to do with a few ids; with a condition it may read whole tables.
    few = len(heads) <= _FEW
    wanted = list(parts) if few else select(trial.trial_id).where(condition)
    for kind, trial_id, position, name, number, text in session.execute(_query(wanted)):
        # A trial may have come into being between the two queries.
        if trial_id in parts:
            parts[trial_id].add(kind, position, name, number, text)
    return [parts[head[0]].trial(*head) for head in heads]


def _query(wanted: Select[Any] | list[int]) -> Any:
    param, value, step = (
        models.TrialParamModel,
        models.TrialValueModel,
        models.TrialIntermediateValueModel,
    )
    value_type = cast(value.value_type, String(16))
    step_type = cast(step.intermediate_value_type, String(16))
    shape = param.distribution_json
    rows: list[tuple[int, Any, Any, Any, Any, Any]] = [
        (_PARAM, param, param.param_id, param.param_name, param.param_value, shape),
        (_VALUE, value, value.objective, _NO_TEXT, value.value, value_type),
        (_STEP, step, step.step, _NO_TEXT, step.intermediate_value, step_type),
    ]
    nothing = cast(literal_column("0"), Integer)
    for kind, model in (
        (_USER, models.TrialUserAttributeModel),
        (_SYSTEM, models.TrialSystemAttributeModel),
    ):
        rows.append((kind, model, nothing, model.key, _NO_NUMBER, model.value_json))
    return union_all(
        *(
            select(literal(kind), model.trial_id, position, name, number, text).where(
                model.trial_id.in_(wanted)
            )
            for kind, model, position, name, number, text in rows
        )
    )


class _Parts:
    """What belongs to one trial, in the order in which Optuna gives it."""

    def __init__(self) -> None:
        self.params: list[tuple[int, str, float, str]] = []
        self.values: dict[int, float] = {}
        self.steps: dict[int, float] = {}
        self.user: dict[str, Any] = {}
        self.system: dict[str, Any] = {}

    def add(self, kind: int, position: int, name: str, number: float, text: str) -> None:
        """Take in one row."""
        if kind == _PARAM:
            self.params.append((position, name, number, text))
        elif kind == _VALUE:
            self.values[position] = _number(number, text)
        elif kind == _STEP:
            self.steps[position] = _number(number, text)
        else:
            (self.user if kind == _USER else self.system)[name] = json.loads(text)

    def trial(
        self,
        trial_id: int,
        number: int,
        state: Any,
        start: datetime | None,
        complete: datetime | None,
    ) -> FrozenTrial:
        """Return the whole trial."""
        distributions = {name: _distribution(text) for _, name, _, text in sorted(self.params)}
        internal = {name: value for _, name, value, _ in self.params}
        return FrozenTrial(
            number=number,
            state=state,
            value=None,
            values=[self.values[n] for n in sorted(self.values)] or None,
            datetime_start=_local(start),
            datetime_complete=_local(complete),
            params={n: d.to_external_repr(internal[n]) for n, d in distributions.items()},
            distributions=distributions,
            user_attrs=self.user,
            system_attrs=self.system,
            intermediate_values=self.steps,
            trial_id=trial_id,
        )


# Distributions are values: nobody changes one in place, so trials may share them.
_distribution: Callable[[str], BaseDistribution] = functools.lru_cache(maxsize=1024)(
    json_to_distribution
)


_SPECIAL = {"INF_POS": float("inf"), "INF_NEG": float("-inf"), "NAN": float("nan")}


def _number(number: float, kind: str) -> float:
    return _SPECIAL.get(kind, number)


def _local(moment: datetime | None) -> datetime | None:
    """Optuna stores naive UTC and shows naive local time."""
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
