"""A storage as the dashboard should see it: without our long records in its tables."""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage

from biotune_optuna.confirmation.record import Confirmation
from biotune_optuna.schema import (
    BOARD_KEY,
    CONFIRM_KEY,
    KEPT_KEY,
    KEPT_MODEL_KEY,
    LEDGER_KEY,
    MODEL_KEY,
    RACE_KEY,
    RECIPE_KEY,
    RUNS_KEY,
    SPEC_KEY,
)

if TYPE_CHECKING:
    from optuna.study._frozen import FrozenStudy
    from optuna.trial import FrozenTrial, TrialState


_DIGITS = 3
_LONG_OF_TRIALS = (RUNS_KEY, KEPT_MODEL_KEY)
_LONG_OF_STUDIES = (SPEC_KEY, CONFIRM_KEY, KEPT_KEY, LEDGER_KEY, MODEL_KEY, RACE_KEY)


class ShortStorage:
    """Passes everything on to a storage, but shows its trials and studies in short.

    Optuna-dashboard makes a column of every attribute and a line of every value. The records of a
    trial's runs and of a study's confirmation would make its tables unreadable, and each poll
    longer. Finished trials are shortened once. The values of trials that have a recipe, shares
    between 0 and 1, have three digits.

    Args:
        storage: A caching storage.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._finished: dict[int, FrozenTrial] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = False,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """All trials, shortened; never copied deeply, the dashboard only reads them."""
        del deepcopy
        trials = self._storage.get_all_trials(study_id, deepcopy=False, states=states)
        return [self._short(trial) for trial in trials]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the trial that was chosen, shortened; before the confirmation the best one."""
        chosen = _chosen(Confirmation.of(self._storage.get_study_user_attrs(study_id)))
        for trial in self._storage.get_all_trials(study_id, deepcopy=False):
            if trial.number == chosen and trial.value is not None:
                return self._short(trial)
        return self._short(self._storage.get_best_trial(study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        """All studies, shortened; without the boards of their trainings."""
        every = self._storage.get_all_studies()
        return [_short_study(one) for one in every if BOARD_KEY not in one.user_attrs]

    def _short(self, trial: FrozenTrial) -> FrozenTrial:
        known = self._finished.get(trial._trial_id)
        if known is not None:
            return known
        attrs = {k: v for k, v in trial.user_attrs.items() if k not in _LONG_OF_TRIALS}
        recipe = attrs.get(RECIPE_KEY)
        if isinstance(recipe, Mapping) and isinstance(recipe.get("multipliers"), Mapping):
            rates = recipe["multipliers"].values()
            attrs[RECIPE_KEY] = " ".join(f"{m:.2g}×" if m > 0 else "·" for m in rates)
        short = copy.copy(trial)
        short.user_attrs = attrs
        if RECIPE_KEY in attrs and trial.values is not None:
            short.values = [round(value, _DIGITS) for value in trial.values]
        if trial.state.is_finished():
            self._finished[trial._trial_id] = short
        return short


def _chosen(confirmed: Confirmation) -> int | None:
    """Return the number of the winner's trial, where a rival won of the best recipe's."""
    if confirmed and confirmed.winner.trial is not None:
        return confirmed.winner.trial
    known = [one for one in confirmed.candidates if math.isfinite(one.mean)]
    return max(known, key=lambda one: one.mean).trial if known else None


def _short_study(study: FrozenStudy) -> FrozenStudy:
    attrs = study.user_attrs
    short = copy.copy(study)
    short.user_attrs = {
        **_facts(attrs),
        **{k: v for k, v in attrs.items() if k.partition(": ")[0] not in _LONG_OF_STUDIES},
    }
    return short


def _facts(attrs: Mapping[str, Any]) -> dict[str, str]:
    """Return what the long records come down to."""
    facts: dict[str, str] = {}
    spec = (attrs.get(SPEC_KEY) or {}).get("spec")
    if isinstance(spec, Mapping):
        facts |= {k: str(spec[k]) for k in ("model", "data", "weights") if k in spec}
    if confirmed := Confirmation.of(attrs):
        facts["winner"] = confirmed.chosen
        for test in confirmed.tests:
            facts[f"test of {test.name}"] = (
                f"{test.score:.3f} (95 % {test.low:.3f} to {test.high:.3f})"
            )
    model = attrs.get(MODEL_KEY)
    if isinstance(model, Mapping) and model.get("path"):
        facts["exported to"] = str(model["path"])
    return facts


BaseStorage.register(ShortStorage)
