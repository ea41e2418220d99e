"""Workers, and what happens to them: the driver of the fault tests.

Run as a program it prints what one disturbed study came to as JSON::

    python -c 'from tests.fault.soak import main; main()' --loop ours --seed 0 FOLDER
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState
from sqlalchemy.engine import make_url

from biotune_optuna.evolution.settings import SearchSettings
from biotune_optuna.evolution.strategy import plan as plan_slots
from biotune_optuna.sampler.sampler import BioTuneSampler, slot_of
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.worker import run_trials

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from tests.kit.postgres import Postgres

STUDY = "soak"
N_PARAMS = 7
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Plan:
    """What is run and what happens to it."""

    url: str
    log: str
    loop: str = "ours"  # or "optuna": study.optimize on Optuna's own storage with heartbeats
    sampler: str = "biotune"  # or "random", writing the same attributes
    n_trials: int = 400
    n_workers: int = 8
    seconds: tuple[float, float] = (0.05, 0.35)
    kills: int = 40
    restarts: int = 5
    cuts: int = 20
    suspensions: int = 0
    suspended_for: float = 35.0  # seconds; Optuna takes a journal's lock away after 30
    seed: int = 0
    time_limit: float = 900.0


class Log:
    """Appends one line per event; a line is written whole or not at all."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, **event: Any) -> None:
        line = json.dumps({**event, "pid": os.getpid(), "time": time.time()}) + "\n"
        os.write(self._file, line.encode())


def make_objective(plan: Plan) -> Any:
    log = Log(plan.log)

    def objective(trial: optuna.Trial) -> float:
        log.write(event="start", number=trial.number)
        xs = [trial.suggest_float(f"x{n}", 0, 1) for n in range(N_PARAMS)]
        low, high = plan.seconds
        length = low + (high - low) * random.Random(repr(xs)).random()
        value = -sum((x - 0.3) ** 2 for x in xs)
        for step in range(3):
            time.sleep(length / 3)
            trial.report(value + step, step)
        trial.set_user_attr("length", length)
        log.write(event="end", number=trial.number, value=value)
        return value

    return objective


def work(plan: Plan) -> None:
    """Be one worker until the study has its trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    os.environ["OMP_NUM_THREADS"] = "1"
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        (work_ours if plan.loop == "ours" else work_optuna)(plan)
    except BaseException as error:
        Log(plan.log).write(event="crash", error=f"{type(error).__name__}: {error}"[:300])
        raise


class RandomWithAttributes(optuna.samplers.RandomSampler):
    """Writes what BioTuneSampler writes, to compare the searches and not the attributes."""

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        storage, trial_id = study._storage, trial._trial_id
        claim = {
            "params": {f"x{n}": 0.123456789012345 for n in range(N_PARAMS)},
            "holder": "h" * 80,
        }
        storage.set_trial_system_attr(trial_id, "claim", claim)
        for key, value in {"generation": 0, "role": "random", "parents": ""}.items():
            storage.set_trial_user_attr(trial_id, key, value)


def work_ours(plan: Plan) -> None:
    study = optuna.create_study(
        study_name=STUDY,
        storage=open_storage(plan.url),
        direction="maximize",
        sampler=BioTuneSampler(seed=plan.seed)
        if plan.sampler == "biotune"
        else RandomWithAttributes(seed=os.getpid()),
        load_if_exists=True,
    )
    run_trials(study, make_objective(plan), n_trials=plan.n_trials)


def work_optuna(plan: Plan) -> None:
    url = plan.url.replace("postgresql://", "postgresql+psycopg://")
    storage = optuna.storages.RDBStorage(
        url,
        engine_kwargs={"pool_pre_ping": True},
        heartbeat_interval=1,
        grace_period=5,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
    )
    study = optuna.create_study(
        study_name=STUDY,
        storage=storage,
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(),
        load_if_exists=True,
    )
    enough = optuna.study.MaxTrialsCallback(plan.n_trials, states=DONE)
    if len(study.get_trials(deepcopy=False, states=DONE)) < plan.n_trials:
        study.optimize(make_objective(plan), callbacks=[enough], catch=(Exception,))


@dataclass
class Outcome:
    """What a disturbed study came to."""

    loop: str
    seconds: float = 0.0
    finished: int = 0
    stuck: int = 0
    kills: int = 0
    restarts: int = 0
    cuts: int = 0
    suspensions: int = 0
    connections_cut: int = 0
    crashes: int = 0
    started: int = 0
    ended: int = 0
    values_lost: int = 0
    values_wrong: int = 0
    evaluated_twice: int = 0
    slots_unfilled: int = 0
    in_time: bool = True
    notes: dict[str, int] = field(default_factory=dict)


def run(plan: Plan, server: Postgres | None) -> Outcome:
    """Run the plan and judge what is left; without a server none is restarted or cut off."""
    outcome = Outcome(plan.loop)
    rng = random.Random(plan.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fault.soak"])
    Log(plan.log).write(event="begin")
    workers = [_start(context, plan) for _ in range(plan.n_workers)]
    events = ["kill"] * plan.kills + ["restart"] * plan.restarts + ["cut"] * plan.cuts
    events += ["suspend"] * plan.suspensions
    rng.shuffle(events)
    killed: set[int] = set()
    asleep: dict[int, float] = {}  # process -> when it is woken
    began = time.monotonic()
    # Spread over the study by its progress, and its last moments included.
    at = sorted(rng.uniform(0.02, 0.99) * plan.n_trials for _ in events)
    while any(worker.is_alive() for worker in workers):
        if time.monotonic() - began > plan.time_limit:
            outcome.in_time = False
            break
        ended = _n_ended(plan.log)
        while events and ended >= at[-len(events)]:
            if (event := events.pop(0)) == "suspend":
                outcome.suspensions += _suspend(workers, asleep, rng, plan.suspended_for)
            else:
                _happen(event, server, plan.url, workers, killed, rng, outcome)
        for pid in [pid for pid, until in asleep.items() if time.monotonic() >= until]:
            del asleep[pid]
            _signal(pid, signal.SIGCONT)
        for n, worker in enumerate(workers):
            # 0: the study has its trials, for this worker at least.
            if not worker.is_alive() and worker.exitcode != 0:
                outcome.crashes += worker.pid not in killed
                workers[n] = _start(context, plan)
        time.sleep(0.05)
    outcome.seconds = round(time.monotonic() - began, 1)
    for worker in workers:
        if worker.is_alive():
            worker.kill()
    judge(plan, outcome, killed)
    return outcome


def _start(context: Any, plan: Plan) -> BaseProcess:
    worker: BaseProcess = context.Process(target=work, args=(plan,))
    worker.start()
    return worker


def _suspend(
    workers: list[BaseProcess], asleep: dict[int, float], rng: random.Random, seconds: float
) -> int:
    """Suspend a worker, wherever it is just now; return how many (1, or 0 if all sleep)."""
    awake = [w.pid for w in workers if w.is_alive() and w.pid is not None and w.pid not in asleep]
    if len(awake) < 2:  # somebody has to go on
        return 0
    victim = rng.choice(awake)
    asleep[victim] = time.monotonic() + seconds
    _signal(victim, signal.SIGSTOP)
    return 1


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # killed meanwhile
        os.kill(pid, number)


def _happen(
    event: str,
    server: Postgres | None,
    url: str,
    workers: list[BaseProcess],
    killed: set[int],
    rng: random.Random,
    outcome: Outcome,
) -> None:
    if event == "kill":
        victim = rng.choice([w for w in workers if w.is_alive()] or workers)
        assert victim.pid is not None
        killed.add(victim.pid)
        victim.kill()
        victim.join()
        outcome.kills += 1
        return
    assert server is not None
    if event == "restart":
        server.restart(rng.choice(["fast", "immediate"]))
        outcome.restarts += 1
    else:
        database = str(make_url(url).database)
        outcome.connections_cut += server.cut(database, share=rng.choice([0.3, 1.0]), rng=rng)
        outcome.cuts += 1


def read_log(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def _n_ended(path: str) -> int:
    return sum(event["event"] == "end" for event in read_log(path))


def judge(plan: Plan, outcome: Outcome, killed: set[int]) -> None:
    """Compare what the workers did, by their own log, with what the study holds."""
    events = read_log(plan.log)
    study = optuna.load_study(study_name=STUDY, storage=open_storage(plan.url))
    trials = study.get_trials(deepcopy=False)
    finished = {t.number: t for t in trials if t.state in DONE}
    outcome.finished = len(finished)
    outcome.stuck = sum(t.state == TrialState.RUNNING for t in trials)
    outcome.started = sum(e["event"] == "start" for e in events)
    ends = [e for e in events if e["event"] == "end"]
    outcome.ended = len(ends)
    stored = Counter(t.value for t in finished.values())
    for end in ends:
        trial = finished.get(end["number"])
        if trial is not None and trial.value != end["value"]:
            outcome.values_wrong += 1
        # A worker killed between its last epoch and tell takes its value with it.
        if end["pid"] not in killed and stored[end["value"]] == 0:
            outcome.values_lost += 1
    outcome.notes = dict(Counter(e["error"].split(":")[0] for e in events if e["event"] == "crash"))
    if plan.loop == "ours":
        _judge_slots(outcome, events, trials, killed)


def _judge_slots(
    outcome: Outcome,
    events: list[dict[str, Any]],
    trials: list[optuna.trial.FrozenTrial],
    killed: set[int],
) -> None:
    by_slot: dict[tuple[int, int], list[int]] = defaultdict(list)
    for trial in trials:
        slot = slot_of(trial)
        if slot.generation >= 0:
            by_slot[slot.generation, slot.index].append(trial.number)
    started: dict[int, list[int]] = defaultdict(list)
    for event in events:
        if event["event"] == "start":
            started[event["number"]].append(event["pid"])
    last = max(generation for generation, _ in by_slot)
    states = {trial.number: trial.state for trial in trials}
    filled: Counter[int] = Counter()
    for (generation, _), numbers in by_slot.items():
        evaluations = [pid for number in numbers for pid in started[number]]
        deaths = sum(pid in killed for pid in evaluations)
        outcome.evaluated_twice += max(0, len(evaluations) - 1 - deaths)
        filled[generation] += any(states[n] in DONE for n in numbers)
    # An extra offspring may stand in for a slot whose worker died near the generation's end.
    for generation in range(last):
        planned = len(plan_slots(SearchSettings.of("default"), generation, 0))
        outcome.slots_unfilled += max(0, planned - filled[generation])


def main() -> None:
    from tests.kit.postgres import Postgres

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--loop", default="ours")
    for name in ("trials", "workers", "kills", "restarts", "cuts", "suspensions", "seed"):
        default = getattr(Plan, f"n_{name}", getattr(Plan, name, None))
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    server = Postgres()
    try:
        plan = Plan(
            url=server.create_database(f"soak-{options.loop}-{options.seed}"),
            log=str(folder / f"{options.loop}-{options.seed}.jsonl"),
            loop=options.loop,
            n_trials=options.trials,
            n_workers=options.workers,
            kills=options.kills,
            restarts=options.restarts,
            cuts=options.cuts,
            suspensions=options.suspensions,
            seed=options.seed,
        )
        print(json.dumps(asdict(run(plan, server)), indent=1))
    finally:
        server.close()
