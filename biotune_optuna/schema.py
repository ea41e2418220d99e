"""Every key under which a study or a trial stores something: its type, and what it says.

No other file of the package spells one of them. The file lies on the lowest floor because leases
(``storage/``) and the sampler write attributes too, and imports run downwards only. All values are
JSON. What is stored under a key stays readable: a study made before opens afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


T = TypeVar("T")

# -- user attributes of a study ----------------------------------------------------------------

SPEC_KEY: Final = "biotune"
"""``{"version": str, "spec": dict, "rates": dict, "choice": dict}``: the package's version, what
defines the study (`biotune_optuna.study.spec.StudySpec`) and, where they were looked for, how the
bounds of the learning rate (`biotune_optuna.study.rates.RateCheck`) and the network
(`biotune_optuna.study.auto.Choice`) were found."""

TOTAL_KEY: Final = "n_trials"
"""``int``: the total of finished trials that was last asked for."""

METRIC_KEY: Final = "metric"
"""``str``: what the values are, in a study that another program made. Read, never written."""

LEFT_OUT_KEY: Final = "left_out"
"""``{"count": int, "kinds": {ending: int}, "first": str}``: files of the data that are not used,
see `biotune_optuna.data.left_out`; absent where all are."""

PROBE_KEY: Final = "probe"
"""``dict``: a linear probe before the search (`biotune_optuna.study.probe.FirstAnswer`)."""

LIKE_KEY: Final = "like"
"""``{"study": str, "trials": list}``: an earlier study that gave its best to begin with."""

RACE_KEY: Final = "race"
"""``{"rounds": int, "networks": [dict]}``: networks that were searched side by side, each in a
study of its own (`biotune_optuna.study.race.Race`)."""

CONFIRM_KEY: Final = "confirm"
"""``dict``: the confirmation (`biotune_optuna.confirmation.record.Confirmation`)."""

LEDGER_KEY: Final = "confirm_trainings"
"""``{name: dict}``: all trainings of a confirmation at once, as early versions stored them."""

LEDGER_PREFIX: Final = f"{LEDGER_KEY}: "
"""Before a training's name, ``dict``: one training of a confirmation. All of them in one attribute
would outgrow what a database keeps in a row (MySQL: 64 KB)."""

LOOKS_KEY: Final = "test_looks"
"""``[{"time": str, "what": str}]``: every look at the test images, oldest first."""

MODEL_KEY: Final = "model_dir"
"""``{"path": str, "confirmed": str, "weights": str}``: where the winner was exported to, the time
of the confirmation it came from, and SHA-256 of its weights; ``"members"``, that of the further
members' weights, where there are some; ``"single": True`` where they were left out."""

PREDICTION_COST_KEY: Final = "prediction_cost"
"""``dict``: what predicting with all members of the exported model costs
(`biotune_optuna.export.cost.PredictionCost`)."""

KEPT_KEY: Final = "kept_models"
"""``{"most": int, "id": str}``: how many trials' models are kept, and what is
drawn at random for the name of their folder (`biotune_optuna.study.keeping.SearchModels`)."""

CLOCK_KEY: Final = "clock"
"""``{"plan": dict, "work": dict, "full": float, "limit": float}``: how long the study was expected
to take, see `biotune_optuna.confirmation.timing.Timing`; ``limit`` is the time for everything in
seconds, or null. ``confirmed_at`` is the number of trials at which the evidence was chosen."""

STAGE_KEY: Final = "stage"
"""``{"stage": str, "detail": str, "done": int, "total": int, "time": str, "holder": str}``: the
training outside the search that began last, and who began it; empty when all is over."""

BOARD_KEY: Final = "trainings_of"
"""``str``: the study whose trainings, after the search, are the trials of this one."""

BOARD_ID_KEY: Final = "trainings_id"
"""``str``: drawn at random, a part of the name of the study with this one's trainings. A study that
is deleted and begun anew under its name has other trainings."""

CLAIM_PREFIX: Final = "claim "
"""Before the number of an attempt, a colon and a part's name, ``int``: the trial that claimed it
first (`biotune_optuna.study.board.Board`)."""

EVIDENCE_KEY: Final = "evidence"
"""``{"plan": dict, "total": int, "out": str}``: how any worker confirms the study once it has its
total of trials (`biotune_optuna.confirmation.plan.ConfirmPlan`), and where the model goes. With a
limit of time ``{"total": null, "until": float}`` while it is searched, the second of the epoch at
which the time is over; then ``"plan"``, ``"out"`` and ``"settled": int``, the count behind
`SETTLED_PREFIX` of the trials to confirm."""

SETTLED_PREFIX: Final = "settled: "
"""Before a count, ``{"begun": int, "running": [int], "waiting": [int]}``: the trials as they were
when a confirmation began (`biotune_optuna.confirmation.settled.Settled`); the highest count is the
last one's."""

COMPARISON_KEY: Final = "comparison"
"""``dict``: what the cells of a comparison's task have in common."""

CHOICE_PREFIX: Final = "choice: "
"""Before a repeat's number, ``dict``: the network that was chosen for that repeat of a comparison's
task (`biotune_optuna.study.choice.Choice`)."""

FINGERPRINTS_KEY: Final = "fingerprints"
"""``{"data": str, "weights": str}``: what a comparison's task was begun with."""

# -- system attributes of a study --------------------------------------------------------------

CONFIG_KEY: Final = "biotune:config"
"""``dict``: seed, settings and space of the search."""

STUDY_KEY: Final = "biotune:study"
"""``str``: unique to one creation of a study in SQLite, which gives ids of deleted ones again."""

SHOWN_KEY: Final = "biotune:shown"
"""``{"trials": int, "note": str, "time": float, "took": float}``: what optuna-dashboard was last
given."""

ARTIFACT_PREFIX: Final = "artifacts:"
"""Before an artifact's id, JSON text: a file attached to a study or, there, to a trial. Optuna's
own key."""

DASHBOARD_ARTIFACT_PREFIX: Final = "dashboard:artifacts:"
"""Before a trial's id, a colon and an artifact's id, JSON text: a file attached to a trial that has
ended. Optuna-dashboard's own key."""

# -- user attributes of a trial ----------------------------------------------------------------

RECIPE_KEY: Final = "recipe"
"""``{"lr": float, "weight_decay": float, "multipliers": {block: float}}``, and ``"fitted": true``
for a fitted head; ``"modes"`` and ``"training"`` where a recipe has them: see `RecipeSummary`."""

FROZEN_KEY: Final = "frozen"
"""``str``: which blocks are frozen, in a few characters."""

TRAINABLE_KEY: Final = "trainable_pct"
"""``float``: share of the parameters that train, in percent."""

SECONDS_KEY: Final = "seconds"
"""``float``: wall time of all runs."""

FORWARD_KEY: Final = "forward"
"""``int``: image passes forward of all runs."""

BACKWARD_KEY: Final = "backward"
"""``int``: image passes backward of all runs."""

RUNS_KEY: Final = "runs"
"""``[dict]``: the trainings that the value is the mean of, see `RunRecord`."""

STDERR_KEY: Final = "stderr"
"""``float``: standard error of the value; absent with one run."""

DIVERGED_KEY: Final = "diverged"
"""``True`` where a run diverged, else absent."""

ERROR_KEY: Final = "error"
"""``str``: in one line, why the trial failed."""

GENERATION_KEY: Final = "generation"
"""``int``: the generation the trial belongs to."""

ROLE_KEY: Final = "role"
"""``str``: how its genome was made, see `biotune_optuna.evolution.strategy.Role`."""

PARENTS_KEY: Final = "parents"
"""``str``: numbers of the trials whose genomes it was made of, as ``"3, 5"``."""

DONOR_KEY: Final = "donor"
"""``str``: the study and the trial that a genome was taken from."""

KEPT_MODEL_KEY: Final = "kept_model"
"""``{"digest": str, "bytes": int}``: the trial's model, where it was kept in a file; it may have
given way to a better one's since."""

CELL_KEY: Final = "cell"
"""``str``: which part of the work a trial of a board is: the cell of a comparison, or a training
(`biotune_optuna.study.board.Board`)."""

CONTENDER_KEY: Final = "contender"
"""``dict``: what the cell's contender was (`biotune_optuna.compare.plan.Contender`)."""

RESULT_KEY: Final = "result"
"""``dict``: what came out of the cell (`biotune_optuna.compare.rows.Row`)."""

# -- system attributes of a trial --------------------------------------------------------------

OWN_PREFIX: Final = "biotune:"
"""What all system attributes of this package begin with."""

HOLDER_KEY: Final = "biotune:holder"
"""``[holder, token]``: who works on the trial; the token is unique to one creation of a trial."""

LEASE_KEY: Final = "biotune:lease"
"""``int``: the counter that a living holder raises. Absent until the trial has lived for a beat."""

ENDED_KEY: Final = "biotune:ended"
"""``str``, on a FAIL that is nobody's error: "surplus", "stopped" or "lost"."""

CREATED_KEY: Final = "biotune:created"
"""``str``: unique to one creation of a waiting trial."""

LATE_RESULT_KEY: Final = "biotune:late_result_of"
"""``int``, on an added trial: number of the trial that was declared dead by mistake."""

CLAIM_KEY: Final = "biotune:claim"
"""``dict``: the slot of the search that the trial fills."""

RAISED_KEY: Final = "biotune:raised"
"""``True`` on a FAIL whose objective raised or returned no number."""

SOURCE_KEY: Final = "biotune:source"
"""``int``: number of the enqueued trial that this one stands in for."""

FIXED_KEY: Final = "fixed_params"
"""``{name: value}``: parameters of an enqueued trial. Optuna's own key."""

# -- stored values, typed ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored:
    """A value that is stored as its fields."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what was stored; what is absent has its default, what is unknown is left out."""
        names = {one.name for one in fields(cls)}
        return cls(**{name: _frozen(value) for name, value in data.items() if name in names})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        data: dict[str, Any] = _plain(asdict(self))
        return data


def as_mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping as it is, an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def _frozen(value: Any) -> Any:
    """Return a value of JSON with tuples for lists."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """Return a value with lists for tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class RecipeSummary(Stored):
    """A recipe without its parameter names, small enough for an attribute of a trial.

    Attributes:
        lr: Base learning rate.
        weight_decay: Weight decay.
        multipliers: Learning-rate multiplier of each block from the input on; 0 is frozen.
        fitted: Whether the head is fitted by logistic regression; stored only where it is.
        modes: What of a block trains, where that is neither all nor nothing; stored only then.
        training: What the recipe says of its training besides; stored only where it does.
    """

    lr: float | None = None
    weight_decay: float | None = None
    multipliers: Mapping[str, float] = field(default_factory=dict)
    fitted: bool = False
    modes: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, data: object) -> RecipeSummary:
        """Read what was stored; what is absent or of another kind reads as absent."""
        stored = as_mapping(data)
        multipliers = as_mapping(stored.get("multipliers")).items()
        return cls(
            lr=_number(stored.get("lr")),
            weight_decay=_number(stored.get("weight_decay")),
            multipliers={str(block): float(m) for block, m in multipliers},
            fitted=stored.get("fitted") is True,
            modes=dict(as_mapping(stored.get("modes"))),
            training=dict(as_mapping(stored.get("training"))),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        data = super(RecipeSummary, self).to_dict()  # slots: a class of its own
        return {k: v for k, v in data.items() if v or k not in ("fitted", "modes", "training")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost(Stored):
    """What trainings cost.

    Attributes:
        forward: Image passes forward.
        backward: Image passes backward.
        seconds: Wall time.
    """

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0

    @staticmethod
    def sum(costs: Iterable[Cost]) -> Cost:
        """Add costs up."""
        every = list(costs)
        return Cost(
            forward=sum(one.forward for one in every),
            backward=sum(one.backward for one in every),
            seconds=sum(one.seconds for one in every),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord(Cost):
    """One training of an evaluation, and its cost.

    Attributes:
        fold: Fold trained on; None is the whole training part.
        seed: Seed of the run.
        score: Validation score of its best epoch.
        best_epoch: That epoch, counted from 1; 0 if none counts.
        epochs: Epochs trained.
        peak_mb: Peak memory in MiB.
        cache_hits: Image passes whose frozen blocks' outputs came from memory.
        cache_misses: Images whose frozen blocks' outputs were computed for that.
        batch_size: Images held at once.
        device: What it ran on and in which type, as ``"NVIDIA H200, bf16"``; "" in early studies.
        stopped: Why the run ended.
    """

    fold: int | None = None
    seed: int = 0
    score: float = math.nan
    best_epoch: int = 0
    epochs: int = 0
    peak_mb: float = 0.0
    cache_hits: int = 0
    cache_misses: int = 0
    batch_size: int = 0
    device: str = ""
    stopped: str = ""


@dataclass(frozen=True, slots=True)
class ModelFile(Stored):
    """The file of a trial's model.

    Attributes:
        digest: What it is named by; "" where there is none.
        bytes: Its size.
    """

    digest: str = ""
    bytes: int = 0

    @classmethod
    def of(cls, value: object) -> ModelFile:
        """Read what was stored; anything odd reads as no file."""
        digest, size = (as_mapping(value).get(name) for name in ("digest", "bytes"))
        known = isinstance(digest, str) and isinstance(size, int)
        return cls(digest, size) if known else cls()  # type: ignore[arg-type]


class _Kept(Generic[T]):
    """What a trial stores under a key, read whenever it is asked for."""

    def __init__(self, key: str, read: Callable[[Any], T]) -> None:
        self.key, self.read = key, read

    def __get__(self, record: TrialRecord, _owner: type) -> T:
        return self.read(record.stored.get(self.key))


def _number(value: object) -> float | None:
    """Return a finite number as such, None for anything else."""
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return value if known else None  # type: ignore[return-value]


def _passes(value: object) -> int:
    return round(_number(value) or 0)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _runs(value: object) -> tuple[RunRecord, ...]:
    found = value if isinstance(value, list) else []
    return tuple(RunRecord.from_dict(run) for run in found if isinstance(run, Mapping))


def _numbers(value: object) -> list[int]:
    parts = value if isinstance(value, list) else str(value).replace(",", " ").split()
    return [int(part) for part in parts if str(part).isdigit()]


_OF_TRAINING = frozenset(
    {
        RECIPE_KEY,
        FROZEN_KEY,
        TRAINABLE_KEY,
        SECONDS_KEY,
        FORWARD_KEY,
        BACKWARD_KEY,
        RUNS_KEY,
        STDERR_KEY,
        DIVERGED_KEY,
        ERROR_KEY,
        KEPT_MODEL_KEY,
    }
)


def handed_on(user_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the successor of a dead trial takes over: all but what its training came to.

    Args:
        user_attrs: Those of the dead trial.
    """
    return {key: value for key, value in user_attrs.items() if key not in _OF_TRAINING}


class TrialRecord:
    """What a trial stores beside its value; whatever is absent or odd reads as None or empty.

    A trial that plain Optuna made with somebody's own objective is as welcome as one of ours.

    Args:
        trial: The trial.
    """

    __slots__ = ("stored",)

    def __init__(self, trial: FrozenTrial) -> None:
        self.stored: Mapping[str, Any] = trial.user_attrs

    recipe = _Kept(RECIPE_KEY, RecipeSummary.of)
    """The recipe; without multipliers where the trial stores none."""

    frozen = _Kept(FROZEN_KEY, _text)
    """Which blocks are frozen, in a few characters."""

    trainable_pct = _Kept(TRAINABLE_KEY, _number)
    """Share of the parameters that train, in percent."""

    seconds = _Kept(SECONDS_KEY, _number)
    """Wall time of all runs."""

    forward = _Kept(FORWARD_KEY, _passes)
    """Image passes forward of all runs."""

    backward = _Kept(BACKWARD_KEY, _passes)
    """Image passes backward of all runs."""

    runs = _Kept(RUNS_KEY, _runs)
    """The trainings that the value is the mean of."""

    stderr = _Kept(STDERR_KEY, _number)
    """Standard error of the value; None with one run."""

    kept = _Kept(KEPT_MODEL_KEY, ModelFile.of)
    """The file of its model; one without a digest where none was kept."""

    diverged = _Kept(DIVERGED_KEY, bool)
    """Whether a run diverged."""

    generation = _Kept(GENERATION_KEY, _whole)
    """The generation the trial belongs to."""

    role = _Kept(ROLE_KEY, _text)
    """How its genome was made."""

    parents = _Kept(PARENTS_KEY, _numbers)
    """Numbers of the trials whose genomes it was made of."""

    @property
    def passes(self) -> int:
        """Image passes, forward and backward."""
        return self.forward + self.backward
