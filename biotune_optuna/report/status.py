"""How a study stands, for a glance from any machine that reaches its storage."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.confirmation.timing import Timing, plan_of, trial_epochs, trial_share, work_of
from biotune_optuna.page.text import count, duration, plural
from biotune_optuna.report.bill import BillLine, bill, bill_words
from biotune_optuna.report.cost import time_spent
from biotune_optuna.report.view import StudyView, as_view, seconds
from biotune_optuna.report.words import (
    kept_sentence,
    label,
    members_words,
    search_totals,
    verdict,
)
from biotune_optuna.schema import (
    CELL_KEY,
    CLOCK_KEY,
    EVIDENCE_KEY,
    HOLDER_KEY,
    STAGE_KEY,
    TOTAL_KEY,
    TrialRecord,
    as_mapping,
)
from biotune_optuna.storage.lease import read_holder
from biotune_optuna.study.board import parts_of

if TYPE_CHECKING:
    from optuna import Study


RECENT = 20
_STATES = ("complete", "pruned", "fail", "running", "waiting")


class WorkerStatus(TypedDict):
    """One running trial, or one training after the search, and who holds it.

    ``trial`` is None for a training, ``training`` for a trial. ``alive`` is None where it cannot be
    told from here: the worker is on another machine.
    """

    holder: str | None
    trial: int | None
    training: str | None
    seconds: float | None
    alive: bool | None


class BestTrial(TypedDict):
    """The best trial so far."""

    trial: int
    value: float
    stderr: float | None
    recipe: str | None


class StudyStatus(TypedDict):
    """How a study stands; JSON-ready.

    Attributes:
        study: Its name.
        metric: What it optimises.
        trials: Number of trials by state.
        finished: Trials that count towards a total: complete ones and those stopped early.
        goal: Total asked for, when the study says so.
        generation: The latest one.
        best: The best trial.
        workers: The running trials and trainings and who holds them.
        trials_per_hour: Rate over the last 20 finished trials, while trials run.
        seconds_left: Until the goal at that rate.
        seconds: Computing so far, summed over workers.
        forward: Images passed forward, search and confirmation.
        backward: Images passed backward.
        bill: What each part took, and what tuned full fine-tuning alone would have: ``part``,
            image ``passes`` and ``seconds`` of computing.
        search: What the trainings of the search came to: how many, their epochs, the image passes
            whose frozen prefix came from the cache, the largest one's memory in MiB, and how many
            ran on which device and in which type.
        confirmed: Name of the confirmed winner.
        verdict: What came out, in a sentence.
        test_looks: How often the test data was looked at.
        model_dir: Where the winner was exported to.
        stage: The training outside the search that is under way: ``stage``, ``detail``, ``done``
            of ``total``, ``holder`` and whether that is ``alive``; None where there is none.
        recipe: The recipe of the confirmed winner, or of the best trial so far.
        limit: Seconds for everything, where a limit was given.
        next: The command that goes on.
        left_out: Which files of the data are not used, in a sentence; "" where all are.
        kept: How many trials' models are kept, and their size, in a sentence; "" where none are.
    """

    study: str
    metric: str
    trials: dict[str, int]
    finished: int
    goal: int | None
    generation: int | None
    best: BestTrial | None
    workers: list[WorkerStatus]
    trials_per_hour: float | None
    seconds_left: float | None
    seconds: float
    forward: int
    backward: int
    bill: list[dict[str, Any]]
    search: dict[str, Any]
    confirmed: str | None
    verdict: str
    test_looks: int
    model_dir: str | None
    stage: dict[str, Any] | None
    recipe: str | None
    limit: float | None
    next: str
    left_out: str
    kept: str


def study_status(study: Study | StudyView, *, now: datetime | None = None) -> StudyStatus:
    """Read how a study stands.

    Args:
        study: A study of one objective.
        now: The moment to count from; default the present. Optuna's times are naive local ones.

    Returns:
        Plain data, ready for JSON.
    """
    view = as_view(study)
    moment = now or datetime.now()
    running = view.in_state(TrialState.RUNNING)
    parts = [one for one in parts_of(view.study) if one.state == TrialState.RUNNING]
    generations = [g for g in (TrialRecord(t).generation for t in view.trials) if g is not None]
    rate = _trials_per_hour(view, moment) if running else None
    goal = view.user_attrs.get(TOTAL_KEY)
    goal = goal if isinstance(goal, int) and goal > 0 else None
    limit = as_mapping(view.user_attrs.get(CLOCK_KEY)).get("limit")
    if limit is not None:  # time ends the search, not a number
        goal = None
    stage = _stage(view)
    at_work = running or parts or (stage and stage["alive"] is not False)
    left = _left(view, rate, goal, max(1, len(running) + len(parts))) if at_work else None
    return {
        "study": view.name,
        "metric": view.metric,
        "trials": {s: len(view.in_state(TrialState[s.upper()])) for s in _STATES},
        "finished": view.evaluated,
        "goal": goal,
        "generation": max(generations, default=None),
        "best": _best(view),
        "workers": [_worker(t, moment) for t in (*running, *parts)],
        "trials_per_hour": rate,
        "seconds_left": left,
        "seconds": sum(time_spent(view).values()),
        "forward": view.passes[0],
        "backward": view.passes[1],
        "bill": [asdict(line) for line in bill(view)],
        "search": dict(search_totals(view)._asdict()),
        "confirmed": view.confirmation.chosen or None,
        "verdict": verdict(view).headline,
        "test_looks": len(view.test_looks),
        "model_dir": view.model_dir,
        "stage": stage,
        "recipe": _recipe(view),
        "limit": limit,
        "next": _next(view, goal),
        "left_out": view.left_out,
        "kept": kept_sentence(view),
    }


def list_studies(studies: Iterable[Study]) -> list[dict[str, str]]:
    """Say of each study what it is and how far it has come, in two lines.

    Args:
        studies: Studies of any kind.

    Returns:
        For each its name, ``what`` it tunes and its ``state``.
    """
    found = []
    for study in studies:
        name = study.study_name
        if len(study.directions) != 1:
            found.append({"study": name, "what": "a study of several values", "state": ""})
            continue
        view = as_view(study)
        model, data = view.spec.get("model"), view.spec.get("data")
        what = f"{model} on {data}" if model else "not made by this package"
        state = f"{plural(view.evaluated, 'trial')}; {verdict(view).headline}"
        found.append({"study": name, "what": what, "state": state.replace("\u00a0", " ")})
    return found


def format_status(status: StudyStatus) -> str:
    """Return the status in a few aligned lines.

    Args:
        status: As `study_status` gave it.
    """
    trials = status["trials"]
    words = {"pruned": "stopped early", "fail": "failed or stopped"}
    said = ", ".join(f"{n:,} {words.get(s, s)}" for s, n in trials.items() if n) or "none yet"
    total = f" of {status['goal']:,}" if status["goal"] else ""
    lines = [("study", status["study"]), ("trials", f"{status['finished']:,}{total} ({said})")]
    if status["generation"] is not None:
        lines.append(("generation", str(status["generation"])))
    lines.append(("result", status["verdict"]))
    if status["recipe"]:
        lines.append(("recipe", status["recipe"]))
    if status["stage"]:
        lines.append(("now", _stage_words(status["stage"])))
    if status["workers"]:
        lines.append(("workers", _worker_words(status["workers"])))
    if status["trials_per_hour"]:
        lines.append(("rate", f"{status['trials_per_hour']:.3g} trials an hour"))
    if status["seconds_left"] is not None:
        lines.append(("time left", duration(status["seconds_left"])))
    lines += _cost_lines(status)
    lines += _search_lines(status["search"])
    if status["test_looks"]:
        lines.append(("test", f"looked at in {plural(status['test_looks'], 'test')}"))
    if status["left_out"]:
        lines.append(("data", status["left_out"]))
    if status["kept"]:
        lines.append(("kept", status["kept"]))
    if status["model_dir"]:
        lines.append(("model", status["model_dir"]))
    lines.append(("go on with", status["next"]))
    # A name with line ends could show lines of its own.
    shown = (f"{key:<11} {value}".replace("\n", "\\n") for key, value in lines)
    return "\n".join(shown).replace("\u00a0", " ")


def _cost_lines(status: StudyStatus) -> list[tuple[str, str]]:
    cost = [duration(status["seconds"]) + " of computing"] if status["seconds"] else []
    if status["forward"]:
        cost.append(
            f"{count(status['forward'])} image passes forward, {count(status['backward'])} backward"
        )
    lines = [("cost", ", ".join(cost))] if cost else []
    if len(status["bill"]) > 1:
        lines += [("", said) for said in bill_words(BillLine(**one) for one in status["bill"])]
    return lines


def _recipe(view: StudyView) -> str | None:
    """Say the recipe that the result is about: the winner's, before a confirmation the best's."""
    if view.winner is not None and view.confirmation.from_search:
        return f"models of the search: {members_words(view)}"
    if view.winner is not None:
        return f"{view.winner.describe} ({label(view.winner.name, view.winner.method)})"
    words = view.recipe_words(view.best) if view.best is not None else None
    return f"{words} (trial {view.best.number})" if words and view.best is not None else None


def _stage(view: StudyView) -> dict[str, Any] | None:
    """Read which training outside the search is under way, and whether its process lives."""
    stored = dict(as_mapping(view.user_attrs.get(STAGE_KEY)))
    if not stored:
        return None
    holder = read_holder({HOLDER_KEY: [stored.get("holder"), ""]})
    dead = holder.is_dead() if holder else None
    who = {"holder": holder.label if holder else None, "alive": None if dead is None else not dead}
    return stored | who


def _stage_words(stage: Mapping[str, Any]) -> str:
    part = f" {stage['done'] + 1} of {stage['total']}" if stage.get("total") else ""
    dead = ", stopped" if stage["alive"] is False else ""
    detail = f": {stage['detail']}" if stage["detail"] else ""
    return f"{stage['stage']}{part}{detail} ({stage['holder'] or 'someone'}{dead})"


def _left(view: StudyView, rate: float | None, goal: int | None, workers: int) -> float | None:
    """Return the seconds until all is done: the search at its rate, and what follows it.

    What follows is shared by the workers where any worker may confirm the study.
    """
    search = 3600 * max(0, goal - view.evaluated) / rate if rate and goal is not None else None
    stored = as_mapping(view.user_attrs.get(CLOCK_KEY))
    if not stored:
        return search
    if limit := stored.get("limit"):
        return max(0.0, float(limit) - sum(time_spent(view).values()))
    clock = Timing(
        plan=plan_of(stored),
        work=work_of(stored),
        full=float(stored["full"]),
        trials=[seconds(trial) or 0.0 for trial in view.complete],
        done=view.evaluated,
    )
    clock.shares = [trial_share(trial, clock.plan, clock.work) for trial in view.complete]
    clock.epochs = [trial_epochs(trial, clock.plan) for trial in view.complete]
    parts = clock.forecast()
    after = max(parts.report, parts.after - view.confirm_seconds)
    if view.user_attrs.get(EVIDENCE_KEY):
        after = parts.report + (after - parts.report) / workers
    return (parts.search if search is None else search) + after


def _next(view: StudyView, goal: int | None) -> str:
    """Return the command that goes on, or uses what came out."""
    place = f" --storage {shlex.quote(view.storage_url)}" if view.storage_url else ""
    name = f"--study {shlex.quote(view.name)}{place}"
    if view.model_dir and view.confirmation and not view.unconfirmed:
        return f"biotune predict {shlex.quote(view.model_dir)} IMAGE..."
    if not view.spec:
        return f"biotune report {name}"
    limit = as_mapping(view.user_attrs.get(CLOCK_KEY)).get("limit")
    until = f" --trials {goal}" if goal is not None else ""
    if limit:
        until = f" --within {limit:.0f}s"
    data, model = (shlex.quote(str(view.spec.get(key))) for key in ("data", "model"))
    return f"biotune tune --data {data} --model {model} {name}{until}, and its other options"


def _best(view: StudyView) -> BestTrial | None:
    best = view.best
    if best is None or best.value is None:
        return None
    return {
        "trial": best.number,
        "value": best.value,
        "stderr": TrialRecord(best).stderr,
        "recipe": view.recipe_words(best),
    }


def _worker(trial: FrozenTrial, now: datetime) -> WorkerStatus:
    holder = read_holder(trial.system_attrs)
    dead = holder.is_dead() if holder else None
    begun = trial.datetime_start
    training = _training(trial)
    return {
        "holder": holder.label if holder else None,
        "trial": None if training else trial.number,
        "training": training,
        "seconds": max(0.0, (now - begun).total_seconds()) if begun else None,
        "alive": None if dead is None else not dead,
    }


def _training(trial: FrozenTrial) -> str | None:
    """Say which training a trial of a board is, None for one of a search."""
    part = str(trial.user_attrs.get(CELL_KEY, ""))
    if part.startswith("end: "):
        return "report and model"
    return part.rpartition(" | ")[0] or None


def _worker_words(workers: Sequence[WorkerStatus]) -> str:
    said = []
    for worker in workers[:8]:
        name = worker["holder"] or "someone"
        since = f" for {duration(worker['seconds'])}" if worker["seconds"] is not None else ""
        dead = ", dead" if worker["alive"] is False else ""
        what = worker["training"] or f"trial {worker['trial']}"
        said.append(f"{name} ({what}{since}{dead})")
    more = f" and {len(workers) - 8} more" if len(workers) > 8 else ""
    return ", ".join(said) + more


def _search_lines(search: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say what the trainings of the search came to, and what they ran on."""
    if not search["trainings"]:
        return []
    said = f"{count(search['trainings'])} in the search, {count(search['epochs'])} epochs"
    if search["cached"]:
        said += f", {count(search['cached'])} passes from cached prefixes"
    lines = [("trainings", f"{said}, at most {count(search['peak_mb'])} MiB")]
    if devices := search["devices"]:
        each = "; ".join(f"{kind} ({plural(n, 'training')})" for kind, n in devices.items())
        alike = len(devices) == 1
        lines.append(
            ("device", next(iter(devices)) if alike else f"{each}: they round differently")
        )
    return lines


def _trials_per_hour(view: StudyView, now: datetime) -> float | None:
    """Rate over the last finished trials, up to this moment, so that a stall shows."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    times = sorted(
        t.datetime_complete for t in view.trials if t.state in ended and t.datetime_complete
    )[-RECENT:]
    if len(times) < 2:
        return None
    span = (max(now, times[-1]) - times[0]).total_seconds()
    return 3600 * (len(times) - 1) / span if span > 0 else None
