"""A study's trials as scikit-learn's searches show theirs, and snapshots of studies."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState

from biotune_optuna.schema import TrialRecord

_ATTRIBUTES = ("role", "generation", "frozen", "trainable_pct")


def results_of(study: optuna.Study) -> dict[str, NDArray[Any]]:
    """Return the trials that have ended, as in ``BioTuneClassifier.cv_results_``."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = study.get_trials(deepcopy=False, states=states)
    means = np.array(
        [np.nan if t.state != TrialState.COMPLETE or t.value is None else t.value for t in trials]
    )
    stored = [TrialRecord(trial) for trial in trials]
    runs = [[run.score for run in one.runs] for one in stored]
    names = sorted({name for t in trials for name in t.params})
    columns: dict[str, NDArray[Any]] = {
        "number": np.array([t.number for t in trials]),
        "state": np.array([t.state.name for t in trials]),
        "params": np.array([dict(t.params) for t in trials], dtype=object),
        "mean_test_score": means,
        "std_test_score": np.array([np.std(r) if r else np.nan for r in runs]),
        "rank_test_score": _ranks(means),
        "mean_fit_time": np.array([np.nan if (s := one.seconds) is None else s for one in stored]),
    }
    for name in names:
        columns[f"param_{name}"] = np.array([t.params.get(name, np.nan) for t in trials])
    for name in _ATTRIBUTES:
        columns[name] = np.array([getattr(one, name) for one in stored], dtype=object)
    return columns


def snapshot(study: optuna.Study) -> optuna.Study:
    """Return a copy of a study in memory, which pickles whatever the storage of the original is."""
    storage = optuna.storages.InMemoryStorage()
    name = study.study_name
    optuna.copy_study(
        from_study_name=name, from_storage=study._storage, to_storage=storage, to_study_name=name
    )
    return optuna.load_study(study_name=name, storage=storage)


def _ranks(means: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank 1 for the best; ties share the better rank, NaN comes last."""
    values = np.nan_to_num(means, nan=-np.inf)
    return np.array([1 + int((values > value).sum()) for value in values], dtype=np.int64)
