"""A worker: asks, evaluates and tells until the study has its trials."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.errors import LostDeviceError, StorageError, StudyError
from biotune_optuna.schema import ERROR_KEY
from biotune_optuna.storage.lease import LEASE_SECONDS, LostTrialError, read_holder
from biotune_optuna.storage.resilient import ResilientStorage
from biotune_optuna.storage.urls import scrub
from biotune_optuna.study.stale import NAMELESS_LEASES, StaleTrials, end_trial
from biotune_optuna.study.stop import Stopped, StopRequest
from biotune_optuna.study.totals import Totals, count

__all__ = ["StopRequest", "Stopped", "run_trials"]

_logger = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 3
_LONGEST_ERROR = 1000  # characters
_LAST_SECONDS = 8.0  # for all calls of the storage once the worker is to stop
_WAITS = (0.2, 5.0)  # seconds between two looks at trials elsewhere: the first, and at most


def run_trials(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float],
    *,
    n_trials: int | None = None,
    timeout: float | None = None,
    callbacks: Sequence[Callable[[optuna.Study, FrozenTrial], None]] = (),
    stop: StopRequest | None = None,
    wait_for_others: bool = True,
) -> None:
    """Evaluate trials until the study has ``n_trials`` finished ones, by whomever.

    Any number of processes may do this on one study. COMPLETE and PRUNED trials count, and slots
    that the sampler gave up. A trial that raises ends as FAIL with the error in its user attribute
    ``error``, and the worker goes on. Trials of dead workers are failed and their place in the
    search comes back. With a storage from
    :func:`~biotune_optuna.storage.open.open_storage`, lost connections and a trial wrongly
    declared dead cost nothing.

    Args:
        study: The study. Its storage may be any of Optuna's.
        objective: Returns the value of a trial; may raise ``optuna.TrialPruned``.
        n_trials: Total for the study, trials finished before included. None: no limit.
        timeout: Begin no trial after so many seconds. None: no limit.
        callbacks: Called with the study and each trial that this worker has ended.
        stop: Polled between trials, and by the objective; once it is requested, the running trial
            is handed back and the call returns.
        wait_for_others: When the last trials run elsewhere, stay until they have finished, to take
            over if their workers die.

    Raises:
        StudyError: Three evaluations in a row raised the same kind of error.
        LostDeviceError: The GPU failed. No trial fails by it: the running one is handed back.
        StorageError: The storage could not be reached for as long as calls are retried.
    """
    _Worker(
        study,
        objective,
        total=math.inf if n_trials is None else n_trials,
        deadline=math.inf if timeout is None else time.monotonic() + timeout,
        callbacks=tuple(callbacks),
        stop=stop or StopRequest(),
        wait_for_others=wait_for_others,
    ).run()


@dataclass
class _Failures:
    """Failures since the last success, to tell a bad genome from a broken set-up.

    A sampler may try one genome again until it gives it up; after a first success, only failures
    of different genomes count.
    """

    kind: str = ""
    in_a_row: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    any_success: bool = False

    def forget(self) -> None:
        """Note that a trial has finished."""
        self.any_success = True
        self.kind, self.in_a_row, self.seen = "", 0, []

    def note(self, error: Exception, params: dict[str, Any]) -> bool:
        """Note that a trial has failed; return whether it is time to stop."""
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        if kind != self.kind:
            self.kind, self.in_a_row, self.seen = kind, 0, []
        self.in_a_row += 1
        if params not in self.seen:
            self.seen.append(params)
        n = len(self.seen) if self.any_success and params else self.in_a_row
        return n >= MAX_FAILURES_IN_A_ROW


@dataclass
class _Worker:
    """One call of :func:`run_trials`."""

    study: optuna.Study
    objective: Callable[[optuna.Trial], float]
    total: float
    deadline: float
    callbacks: tuple[Callable[[optuna.Study, FrozenTrial], None], ...]
    stop: StopRequest
    wait_for_others: bool
    trial: optuna.Trial | None = None
    finished: int = 0
    failures: _Failures = field(default_factory=_Failures)

    def run(self) -> None:
        """Work until nothing is left to do."""
        storage = self.study._storage
        self.stale_trials = StaleTrials(self.study)
        local = self.study._thread_local
        local.in_optimize_loop, self.study._stop_flag = True, False
        try:
            with self.stop.calling(self._set_deadline, self._hand_back_at_last), self.stale_trials:
                self._loop()
        except Stopped:
            self._hand_back()
            if not self.stop.requested:
                raise
        except BaseException as error:
            # Whatever ends the worker: nobody should have to wait for a lease to expire.
            if isinstance(error, StorageError):
                self._set_deadline()
            with contextlib.suppress(StorageError):
                self._hand_back()
            raise
        finally:
            local.in_optimize_loop = False
            if isinstance(storage, ResilientStorage):
                storage.retry.clear_deadline()
            with contextlib.suppress(Exception):
                storage.remove_session()

    def _set_deadline(self) -> None:
        if isinstance(self.study._storage, ResilientStorage):
            self.study._storage.retry.set_deadline(_LAST_SECONDS)

    def _hand_back_at_last(self) -> None:
        with contextlib.suppress(Exception):
            self._hand_back()

    def _hand_back(self, why: str = "stopped") -> None:
        """Give up the running trial; its place in the search comes back at once."""
        trial, self.trial = self.trial, None
        if trial is None:
            return
        self._end(trial._trial_id, why)
        release = getattr(self.study.sampler, "release", None)
        if release is not None:
            release(trial)

    def _end(self, trial_id: int, why: str) -> None:
        storage = self.study._storage
        try:
            end_trial(self.study, storage.get_trial(trial_id), why)
        finally:
            if isinstance(storage, ResilientStorage):
                storage.heartbeat.remove(trial_id)

    # -- the loop

    def _loop(self) -> None:
        totals = self._look()
        while not self._is_over():
            # What is known suffices far from the end; near it, look again.
            if totals.finished + self.finished + len(totals.running) >= self.total:
                totals = self._look()
                if not self._may_begin(totals):
                    return
            asked = self._ask()
            if asked is None:
                continue
            if self.stop.requested:
                raise Stopped
            totals = self._look()
            if totals.finished + totals.running_below(asked.number) >= self.total:
                self._hand_back("surplus")
                continue
            self._evaluate(asked)

    def _is_over(self) -> bool:
        return (
            self.stop.requested or bool(self.study._stop_flag) or time.monotonic() >= self.deadline
        )

    def _look(self) -> Totals:
        totals = count(self.study)
        others = [t for t in totals.running if self.trial is None or t.number != self.trial.number]
        if self.stale_trials.fail(others):
            totals = count(self.study)
        self.finished = 0
        return totals

    def _may_begin(self, totals: Totals) -> bool:
        """Wait until a trial may begin; False when none is needed any more."""
        pause, longest = _WAITS
        told = False
        while True:
            if totals.finished >= self.total:
                return False
            if totals.finished + len(totals.running) < self.total:
                return True
            if not self.wait_for_others:
                return False
            if not told:
                told = True
                _logger.warning("%s", waiting_words(totals.running))
            if self.stop.wait(pause) or self._is_over():
                return False
            pause = min(2 * pause, longest)
            totals = self._look()

    def _ask(self) -> optuna.Trial | None:
        held = self._begun_here()
        try:
            self.trial = self.study.ask()
        except (LostTrialError, UpdateFinishedTrialError):
            _logger.info("a trial was given to others before it started; asking for another")
            return None
        except BaseException:
            # Created, but not asked to the end: as this process lives, nobody would call it stale.
            for trial_id in self._begun_here() - held:
                with contextlib.suppress(StorageError):
                    self._end(trial_id, "stopped")
            raise
        return self.trial

    def _begun_here(self) -> frozenset[int]:
        storage = self.study._storage
        if isinstance(storage, ResilientStorage):
            return storage.heartbeat.trials_of_this_thread()
        return frozenset()

    # -- one trial

    def _evaluate(self, trial: optuna.Trial) -> None:
        value: float | None = None
        error: Exception | None = None
        state = TrialState.COMPLETE
        try:
            value = _number(self.objective(trial))
        except optuna.TrialPruned as pruned:
            state = TrialState.PRUNED
            _logger.info("trial %d pruned: %s", trial.number, pruned)
        except (StorageError, LostDeviceError):
            raise
        except Exception as raised:  # noqa: BLE001  (an objective may raise anything)
            if self._is_lost_unbegun(trial, raised):
                return
            state, error = TrialState.FAIL, raised
            self._keep_error(trial, raised)
        self._tell(trial, state, value)
        self.trial = None
        if state == TrialState.FAIL:
            self._note_failure(trial, error)
        else:
            self.finished += 1
            self.failures.forget()
        self._call_back(trial)

    def _is_lost_unbegun(self, trial: optuna.Trial, error: Exception) -> bool:
        if isinstance(error, UpdateFinishedTrialError) and not trial.params:
            self.trial = None
            _logger.info("trial %d was given to others before it started", trial.number)
            return True
        return False

    def _keep_error(self, trial: optuna.Trial, error: Exception) -> None:
        _logger.warning("trial %d failed: %s", trial.number, _one_line(error), exc_info=error)
        with contextlib.suppress(UpdateFinishedTrialError):
            trial.set_user_attr(ERROR_KEY, _describe(error))

    def _tell(self, trial: optuna.Trial, state: TrialState, value: float | None) -> None:
        # On a plain storage a trial that others declared dead is lost; the worker is not.
        try:
            self.study.tell(trial, value, state)
        except (UpdateFinishedTrialError, ValueError):
            found = self.study._storage.get_trial(trial._trial_id)
            if not found.state.is_finished():
                raise
            if (found.state, found.value) != (state, value):
                _logger.warning(
                    "trial %d had been ended by another worker as %s; its result is dropped",
                    trial.number,
                    found.state.name,
                )
        if value is not None:
            _logger.info("trial %d finished with %.6g", trial.number, value)

    def _note_failure(self, trial: optuna.Trial, error: Exception | None) -> None:
        if error is None:
            return
        if self.failures.note(error, trial.params):
            raise StudyError(
                f"{MAX_FAILURES_IN_A_ROW} trials in a row failed with the same kind of error, the "
                f"last with {_one_line(error)}; mend the cause and type the same command again"
            )

    def _call_back(self, trial: optuna.Trial) -> None:
        if self.callbacks:
            frozen = self.study._storage.get_trial(trial._trial_id)
            for callback in self.callbacks:
                callback(self.study, frozen)


def waiting_words(running: Sequence[FrozenTrial]) -> str:
    """Say for which trials a worker waits, and what to do where nobody will finish them.

    Args:
        running: The trials that run elsewhere.
    """
    holders = [read_holder(trial.system_attrs) for trial in running]
    named = sorted({holder.label for holder in holders if holder is not None})
    words = f"waiting for the last {len(running)} trials, which run elsewhere"
    if len(running) == 1:
        words = f"waiting for trial {running[0].number}, which runs elsewhere"
    words += f" ({', '.join(named[:4])}{', …' if len(named) > 4 else ''})" if named else ""
    nameless = [str(t.number) for t, holder in zip(running, holders, strict=True) if holder is None]
    if nameless:
        words += (
            f"; nobody is named for trial {', '.join(nameless[:8])}, as after a plain Optuna ask:"
            f" after {NAMELESS_LEASES * LEASE_SECONDS / 60:.0f} minutes without a change it is"
            " failed (tell it as failed, or stop this worker, to go on sooner)"
        )
    return words


def _number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"the objective returned {value!r:.100}, which is no number") from None
    if math.isnan(number):
        raise ArithmeticError("the objective returned nan")
    return number


def _one_line(error: Exception) -> str:
    text = " ".join(_describe(error).split())
    return text if len(text) <= 200 else text[:199] + "…"


def _describe(error: Exception) -> str:
    return scrub(f"{type(error).__name__}: {error}")[:_LONGEST_ERROR]
