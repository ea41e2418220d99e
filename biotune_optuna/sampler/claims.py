"""Claims: what a trial says about the slot it fills, and how that is kept in Optuna's storage.

This module and `biotune_optuna.sampler.sampler` are the only ones of the sampler that reach for
Optuna's private storage calls. docs/method, "Slots, claims and leases" has the protocol.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import operator
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.schema import CLAIM_KEY, CONFIG_KEY, ENDED_KEY, FIXED_KEY, HOLDER_KEY
from biotune_optuna.storage.holder import Holder, current_holder
from biotune_optuna.storage.lease import LeaseWatch

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from biotune_optuna.evolution.generation import Role


@dataclass(frozen=True, slots=True)
class Opening:
    """The facts that open a generation; they ride on the claim of its first trial.

    Attributes:
        population: Trial numbers of the survivors, best first.
        unfinished: Trials below the opening one that had not finished, as (first, last) ranges.
            Everything else below it has been judged.
    """

    population: tuple[int, ...]
    unfinished: tuple[tuple[int, int], ...]

    def judged(self, number: int, opener: int) -> bool:
        """Whether trial ``number`` was already judged when trial ``opener`` opened."""
        return number < opener and not any(a <= number <= b for a, b in self.unfinished)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a trial says about itself before it starts.

    Attributes:
        number: The trial's number; a claim found on another trial is void.
        home: Study id, trial id and storage for which the claim holds its slot.
        holder: The process that made it (`Holder.to_str`).
        generation: g.
        index: Slot index, below 0 for an enqueued trial, which has none.
        role: What the slot is for.
        parents: Trial numbers of the parents.
        repeat: How many earlier trials evaluate or evaluated this genome.
        params: The genome: parameter values by name.
        move: Displacement by parameter name, zeros left out.
        opening: Set on the first claim of a generation.
        source: The dead enqueued trial that this one stands in for.
    """

    number: int
    home: tuple[int, int, str]
    holder: str
    generation: int
    index: int
    role: Role
    parents: tuple[int, ...] = ()
    repeat: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    move: Mapping[str, float] = field(default_factory=dict)
    opening: Opening | None = None
    source: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the claim as JSON-ready data; floats keep every bit."""
        data: dict[str, Any] = {
            "number": self.number,
            "home": list(self.home),
            "holder": self.holder,
            "slot": [self.generation, self.index],
            "role": self.role,
            "parents": list(self.parents),
            "repeat": self.repeat,
            "params": dict(self.params),
            "move": dict(self.move),
        }
        if self.opening is not None:
            data["population"] = list(self.opening.population)
            data["unfinished"] = [list(span) for span in self.opening.unfinished]
        if self.source is not None:
            data["source"] = self.source
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Claim:
        """Read what `to_json` wrote."""
        opening = None
        if "population" in data:
            spans = tuple((int(a), int(b)) for a, b in data["unfinished"])
            opening = Opening(tuple(data["population"]), spans)
        study_id, trial_id, place = data["home"]
        return cls(
            number=data["number"],
            home=(study_id, trial_id, place),
            holder=data["holder"],
            generation=data["slot"][0],
            index=data["slot"][1],
            role=data["role"],
            parents=tuple(data["parents"]),
            repeat=data["repeat"],
            params=data["params"],
            move=data["move"],
            opening=opening,
            source=data.get("source"),
        )

    @classmethod
    def of(cls, trial: FrozenTrial) -> Claim | None:
        """Return the claim that a trial has published; None where it has none of its own."""
        return cls.among(trial.system_attrs, trial.number)

    @classmethod
    def among(cls, attrs: Mapping[str, Any], number: int) -> Claim | None:
        """Return the claim among a trial's system attributes; None where it has none of its own."""
        data = attrs.get(CLAIM_KEY)
        return None if data is None or data["number"] != number else cls.from_json(data)


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """Where a trial belongs in the evolution.

    Attributes:
        generation: g; 0 where the trial is none of the sampler's.
        index: Slot index within the generation, below 0 for a trial that fills no slot.
        role: What the trial is for.
        parents: Trial numbers of the parents.
        repeat: How many earlier trials evaluate or evaluated the very same genome. An objective
            with noise should evaluate repeat r on its r-th set of (fold, seed) runs: then repeats
            add information, and they are pooled into one mean.
    """

    generation: int
    index: int
    role: Role
    parents: tuple[int, ...]
    repeat: int


def slot_of(trial: optuna.trial.BaseTrial | FrozenTrial) -> SlotInfo:
    """Where a trial belongs in the evolution; usable within an objective.

    Args:
        trial: A trial of a study whose sampler is a BioTuneSampler.
    """
    if isinstance(trial, optuna.trial.Trial):
        attrs = trial.storage.get_trial_system_attrs(trial._trial_id)
    else:
        attrs = getattr(trial, "system_attrs", {})
    claim = Claim.among(attrs, trial.number)
    if claim is None:
        role: Role = "enqueued" if FIXED_KEY in attrs else "added"
        return SlotInfo(0, -1 - trial.number, role, (), 0)
    return SlotInfo(claim.generation, claim.index, claim.role, claim.parents, claim.repeat)


class Liveness:
    """Tells which RUNNING trials have lost their worker.

    Args:
        seconds: How long a trial that names no holder may go without publishing its claim.
    """

    def __init__(self, *, seconds: float) -> None:
        self._leases = LeaseWatch()
        self._silent = LeaseWatch()
        self._nameless = LeaseWatch(seconds=seconds)

    def is_lost(self, study: optuna.Study, trial: FrozenTrial, claim: Claim | None) -> bool:
        """Whether nobody works on a RUNNING trial, from attributes read just now.

        A trial without a claim must not hold up the others for ever: it is lost after a lease,
        or, where it names no holder, after ``seconds``. Ask only about the lowest-numbered of
        these, for the others may be waiting for it.
        """
        named = HOLDER_KEY in trial.system_attrs
        if claim is not None and _is_copy(study, trial, claim):
            return True
        if named and self._leases.is_lost(trial._trial_id, trial.system_attrs):
            return True
        if claim is None:
            return (self._silent if named else self._nameless).is_lost(trial._trial_id, {})
        # A plain storage keeps no lease alive: only a death on this machine is certain.
        with contextlib.suppress(ValueError):
            return not named and bool(Holder.from_str(claim.holder).is_dead())
        return False

    def keep_only(self, trial_ids: set[int]) -> None:
        """Forget all trials but these."""
        for watch in (self._leases, self._silent, self._nameless):
            watch.keep_only(trial_ids)


def _is_copy(study: optuna.Study, trial: FrozenTrial, claim: Claim) -> bool:
    """Whether ``copy_study`` brought the claim here: then nobody works on this trial."""
    study_id, trial_id, place = claim.home
    if (study_id, trial_id) != (study._study_id, trial._trial_id):
        return True
    here = _place(study._storage)
    if not place or not here or place == here:
        return False
    # Files and objects can be told apart on one machine only; kinds of storage anywhere.
    if place.partition(":")[0] != here.partition(":")[0]:
        return True
    machine = operator.attrgetter("host", "boot_id", "pid_namespace")
    return bool(machine(Holder.from_str(claim.holder)) == machine(current_holder()))


_memory_ids: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_memory_counter = itertools.count()


def _place(storage: BaseStorage) -> str:
    """Name the storage well enough to tell a copy from its original; "" where that is unknown."""
    backend: Any = storage
    while isinstance(inner := getattr(backend, "_backend", None), optuna.storages.BaseStorage):
        backend = inner
    if isinstance(backend, optuna.storages.InMemoryStorage):
        return f"memory:{_memory_ids.setdefault(backend, next(_memory_counter))}"
    url = getattr(getattr(backend, "engine", None), "url", None)
    if url is None:
        return ""
    if url.get_backend_name() != "sqlite" or not url.database:
        return str(url.get_backend_name())
    try:
        stat = Path(url.database).stat()
    except OSError:
        return ""
    name = f"{stat.st_dev}-{stat.st_ino}"
    return f"sqlite:{hashlib.sha256(name.encode()).hexdigest()[:16]}"


# -- Optuna's private storage calls ------------------------------------------------------------


def read_trials(
    study: optuna.Study, known: list[FrozenTrial], pending: Iterable[int]
) -> list[FrozenTrial]:
    """Return all trials of the study by number, whatever a pruner filters out of sight.

    Args:
        study: The study.
        known: What the last call returned; it is brought up to date where that is cheaper.
        pending: Numbers of the trials in it that had not finished.

    Returns:
        The storage's own trials, not to be changed.
    """
    storage, study_id = study._storage, study._study_id
    if not isinstance(storage, optuna.storages.InMemoryStorage):
        return storage.get_all_trials(study_id, deepcopy=False)
    # In memory a single trial costs nothing, but a list of all of them is copied at every call.
    for number in pending:
        known[number] = storage.get_trial(known[number]._trial_id)
    while True:
        try:
            new = storage.get_trial_id_from_study_id_trial_number(study_id, len(known))
        except KeyError:
            return known
        known.append(storage.get_trial(new))


def home_of(study: optuna.Study, trial: FrozenTrial) -> tuple[int, int, str]:
    """Return what a claim names as its home."""
    return (study._study_id, trial._trial_id, _place(study._storage))


def mark(study: optuna.Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Set a system attribute of a running trial, in the storage and on the given object."""
    study._storage.set_trial_system_attr(trial._trial_id, key, value)
    trial.system_attrs[key] = value


def publish(study: optuna.Study, trial: FrozenTrial, claim: Claim) -> bool:
    """Publish a claim; False when the trial was failed meanwhile and must not start."""
    try:
        mark(study, trial, CLAIM_KEY, claim.to_json())
    except UpdateFinishedTrialError:
        return False
    return study._storage.get_trial(trial._trial_id).state == TrialState.RUNNING


def annotate(study: optuna.Study, trial: FrozenTrial, attrs: Mapping[str, Any]) -> None:
    """Set user attributes of a running trial, in the storage and on the given object."""
    for key, value in attrs.items():
        study._storage.set_trial_user_attr(trial._trial_id, key, value)
        trial.user_attrs[key] = value


def fail(study: optuna.Study, trial: FrozenTrial, why: str) -> bool:
    """Set a trial to FAIL for a reason that is nobody's error; False where another was faster."""
    try:
        study._storage.set_trial_system_attr(trial._trial_id, ENDED_KEY, why)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False
    return True


def fixed_params(trial: FrozenTrial) -> dict[str, Any] | None:
    """Return the parameters an enqueued trial was given; None where it was not enqueued."""
    fixed = trial.system_attrs.get(FIXED_KEY)
    return None if fixed is None else dict(fixed)


def study_config(study: optuna.Study) -> dict[str, Any] | None:
    """Return the search configuration kept in the study."""
    attrs: dict[str, Any] = study._storage.get_study_system_attrs(study._study_id)
    return attrs.get(CONFIG_KEY)


def keep_config(study: optuna.Study, config: Mapping[str, Any]) -> None:
    """Write the search configuration into the study."""
    study._storage.set_study_system_attr(study._study_id, CONFIG_KEY, dict(config))
