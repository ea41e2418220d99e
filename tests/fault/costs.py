"""What the storage costs: per trial, by the length of the study, and with eight workers at once.

Run as a program it prints JSON::

    python -c 'from tests.fault.costs import main; main()'
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import insert

from biotune_optuna.sampler.sampler import slot_of
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.worker import run_trials
from tests.fault.soak import (
    N_PARAMS,
    STUDY,
    Log,
    Plan,
    RandomWithAttributes,
    _start,
    read_log,
)
from tests.kit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable


def fill(url: str, n_trials: int) -> optuna.Study:
    """Create a study with finished trials, as fast as the database takes rows."""
    storage = open_storage(url)
    study = optuna.create_study(study_name=STUDY, storage=storage, direction="maximize")
    database = storage._database
    assert database is not None
    now, shape = datetime.now(), distribution_to_json(FloatDistribution(0, 1))
    rows: dict[Any, list[dict[str, Any]]] = {
        models.TrialModel: [
            {
                "number": n,
                "study_id": study._study_id,
                "state": TrialState.COMPLETE,
                "_datetime_start_utc": now,
                "_datetime_complete_utc": now,
            }
            for n in range(n_trials)
        ]
    }
    ids = range(1, n_trials + 1)
    rows[models.TrialParamModel] = [
        {"trial_id": i, "param_name": f"x{n}", "param_value": 0.5, "distribution_json": shape}
        for i in ids
        for n in range(N_PARAMS)
    ]
    rows[models.TrialValueModel] = [
        {"trial_id": i, "objective": 0, "value": i / n_trials, "value_type": "FINITE"} for i in ids
    ]
    rows[models.TrialUserAttributeModel] = [
        {"trial_id": i, "key": key, "value_json": '"some text"'} for i in ids for key in "abcdef"
    ]
    rows[models.TrialSystemAttributeModel] = [
        {"trial_id": i, "key": "holder", "value_json": json.dumps("h" * 100)} for i in ids
    ]
    with database.scoped_session() as session:
        for model, values in rows.items():
            for at in range(0, len(values), 2000):
                session.execute(insert(model), values[at : at + 2000])
        session.commit()
    return study


def objective(trial: optuna.Trial) -> float:
    value = sum(trial.suggest_float(f"x{n}", 0, 1) for n in range(N_PARAMS))
    for step in range(3):
        trial.report(value, step)
    trial.set_user_attr("seconds", 1.0)
    return value


def cost_by_length(url_of: Callable[[str], str], lengths: tuple[int, ...]) -> dict[str, Any]:
    """Median milliseconds of a whole trial, by the number of trials in the study."""
    studies, cold = {}, {}
    for n in lengths:
        fill(url_of(f"n{n}"), n)
        began = time.perf_counter()
        studies[n] = optuna.load_study(
            study_name=STUDY,
            storage=open_storage(url_of(f"n{n}")),
            sampler=RandomWithAttributes(seed=0),
        )
        studies[n].get_trials(deepcopy=False)
        cold[n] = round(time.perf_counter() - began, 2)
    taken: dict[int, list[float]] = {n: [] for n in lengths}
    total = dict.fromkeys(lengths, 0)
    for _ in range(60):  # in turns, so that both meet the same machine
        for n, study in studies.items():
            total[n] += 1
            began = time.perf_counter()
            run_trials(study, objective, n_trials=n + total[n])
            taken[n].append(1000 * (time.perf_counter() - began))
    return {
        "median_ms": {n: round(statistics.median(ms), 1) for n, ms in taken.items()},
        "fastest_ms": {n: round(min(ms), 1) for n, ms in taken.items()},
        "first_load_s": cold,
    }


def throughput(server: Postgres, folder: Path, n_trials: int = 80, rounds: int = 2) -> Any:
    """Trials per second of eight workers with one-second trials, samplers in turns."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fault.soak"])
    results: dict[str, list[float]] = {"random": [], "biotune": []}
    idle: dict[str, list[float]] = {"random": [], "biotune": []}
    at_ends: list[float] = []
    for turn in range(rounds):
        for sampler, speeds in results.items():
            name = f"speed-{sampler}-{turn}"
            plan = Plan(
                url=server.create_database(name),
                log=str(folder / name),
                sampler=sampler,
                n_trials=n_trials,
                seconds=(1.0, 1.0),
                seed=turn,
            )
            Log(plan.log)
            workers = [_start(context, plan) for _ in range(plan.n_workers)]
            for worker in workers:
                worker.join()
            starts, ends, gaps = _gaps(plan)
            # From the moment all eight are at work to the moment the first has no more to do.
            first = sorted(starts.values())[8]
            last = sorted(ends.values())[-8]
            done = sum(first <= end <= last for end in ends.values())
            speeds.append(done / (last - first))
            idle[sampler] += [gap for gap, _ in gaps]
            if sampler == "biotune":
                at_ends += _gaps_at_generation_ends(plan, gaps)
    return {
        "trials_per_s": {k: [round(x, 3) for x in v] for k, v in results.items()},
        "ratio": round(statistics.mean(results["biotune"]) / statistics.mean(results["random"]), 4),
        "pause_between_trials_ms": {
            k: round(1000 * statistics.median(v), 1) for k, v in idle.items()
        },
        "pause_at_generation_ends_ms": round(1000 * statistics.median(at_ends), 1),
    }


def _gaps(plan: Plan) -> tuple[dict[int, float], dict[int, float], list[tuple[float, int]]]:
    starts: dict[int, float] = {}
    ends: dict[int, float] = {}
    gaps: list[tuple[float, int]] = []
    last: dict[int, float] = {}
    for event in read_log(plan.log):
        if event["event"] == "start":
            starts[event["number"]] = event["time"]
            if event["pid"] in last:
                gaps.append((event["time"] - last[event["pid"]], event["number"]))
        elif event["event"] == "end":
            ends[event["number"]] = last[event["pid"]] = event["time"]
    return starts, ends, gaps


def _gaps_at_generation_ends(plan: Plan, gaps: list[tuple[float, int]]) -> list[float]:
    """Pauses before the last eight trials of a generation and the first eight of the next."""
    study = optuna.load_study(study_name=STUDY, storage=open_storage(plan.url))
    generation = {t.number: slot_of(t).generation for t in study.get_trials(deepcopy=False)}
    openers = [n for n in generation if n > 0 and generation[n] > generation.get(n - 1, 0)]
    return [gap for gap, n in gaps if any(-8 <= n - opener < 8 for opener in openers)]


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = Path(tempfile.mkdtemp())
    server = Postgres()
    try:
        lengths = (100, 10_000)
        sqlite = cost_by_length(lambda name: f"sqlite:///{folder}/{name}.db", lengths)
        print(json.dumps({"sqlite": sqlite}), flush=True)
        for n in lengths:
            server.create_database(f"n{n}")
        postgres = cost_by_length(server.url, lengths)
        print(json.dumps({"postgresql": postgres}), flush=True)
        print(json.dumps({"throughput": throughput(server, folder)}), flush=True)
    finally:
        server.close()
