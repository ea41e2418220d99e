"""Stale trials: those of dead workers are failed, so that their work is done again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.schema import ENDED_KEY, FIXED_KEY, LEASE_KEY, handed_on
from biotune_optuna.storage.heartbeat import runs_here
from biotune_optuna.storage.holder import current_holder
from biotune_optuna.storage.lease import (
    BEAT_SECONDS,
    LeaseWatch,
    read_holder,
    read_token,
)
from biotune_optuna.storage.resilient import ResilientStorage

if TYPE_CHECKING:
    import optuna


_logger = logging.getLogger(__name__)

# One look at R running trials costs about R times as much as one at one of them, and every worker
# looks: the pause grows with R, so that all looks together stay a small load.
_SECONDS_PER_TRIAL = 0.25

NAMELESS_LEASES = 10
"""So many leases long must a trial that names no worker stand still until it is failed."""


def end_trial(study: optuna.Study, trial: FrozenTrial, why: str) -> bool:
    """Fail a RUNNING trial that nobody will finish; its place in the search comes back.

    Args:
        study: The study.
        trial: The trial.
        why: "lost", "stopped" or "surplus".

    Returns:
        False when somebody else has ended it meanwhile.
    """
    storage = study._storage
    # BioTuneSampler gives a dead trial's queue entry to the next trial by itself.
    requeue = not hasattr(study.sampler, "release")
    if isinstance(storage, ResilientStorage):
        return storage.end_trial(study._study_id, trial, why, requeue=requeue)
    try:
        storage.set_trial_system_attr(trial._trial_id, ENDED_KEY, why)
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False
    if requeue and FIXED_KEY in trial.system_attrs:
        given = handed_on(trial.user_attrs)
        study.enqueue_trial(trial.system_attrs[FIXED_KEY], user_attrs=given)
    return True


class StaleTrials:
    """Looks for trials whose worker is gone, when asked and, in a thread, from time to time.

    Args:
        study: The study to look after.
        watch: Judges leases.
    """

    def __init__(self, study: optuna.Study, *, watch: LeaseWatch | None = None) -> None:
        self._study = study
        self._watch = watch or LeaseWatch()
        self._nameless = LeaseWatch(seconds=NAMELESS_LEASES * self._watch.seconds)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._n_running = 0

    def fail(self, running: Iterable[FrozenTrial]) -> int:
        """Fail those of the RUNNING trials, read just now, whose worker is gone; count them."""
        with self._lock:
            trials = tuple(running)
            self._n_running = len(trials)
            lost = [t for t in trials if self._is_lost(t)]
            ids = {t._trial_id for t in trials}
            self._watch.keep_only(ids)
            self._nameless.keep_only(ids)
        ended = 0
        for trial in lost:
            if end_trial(self._study, trial, "lost"):
                ended += 1
                holder = read_holder(trial.system_attrs)
                _logger.warning(
                    "trial %d lost its worker (%s); it will be evaluated again",
                    trial.number,
                    holder.label if holder else "unknown",
                )
        return ended

    def _is_lost(self, trial: FrozenTrial) -> bool:
        holder = read_holder(trial.system_attrs)
        token = read_token(trial.system_attrs)
        if holder == current_holder() and token is not None:
            # Begun by this process; given up, perhaps, when the storage was out of reach.
            return not runs_here(token)
        if holder is not None:
            return self._watch.is_lost(trial._trial_id, trial.system_attrs)
        # Nobody keeps a lease: a trial that copy_study brought here, or an Optuna worker's on a
        # plain storage. Anything that moves counts as life, and it gets much longer.
        if not isinstance(self._study._storage, ResilientStorage):
            return False
        moved = [len(trial.params), len(trial.intermediate_values), len(trial.user_attrs)]
        return self._nameless.is_lost(trial._trial_id, {LEASE_KEY: moved})

    def __enter__(self) -> StaleTrials:
        self._thread = threading.Thread(target=self._run, name="biotune-stale-trials", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._wake.set()

    def _run(self) -> None:
        storage = self._study._storage
        while not self._wake.wait(max(2 * BEAT_SECONDS, self._n_running * _SECONDS_PER_TRIAL)):
            try:
                self.fail(
                    storage.get_all_trials(
                        self._study._study_id, deepcopy=False, states=(TrialState.RUNNING,)
                    )
                )
            except Exception as error:  # noqa: BLE001  (the next look is the retry)
                _logger.debug("could not look for stale trials: %s", type(error).__name__)
            finally:
                storage.remove_session()
