"""Stops, signals and deaths of a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from biotune_optuna.report.status import study_status
from biotune_optuna.study.worker import Stopped, StopRequest, run_trials
from tests.kit.studies import make, objective, states

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize("sampler", ["biotune", "random"])
def test_a_stop_hands_the_trial_back(sampler: str) -> None:
    study = make(sampler=sampler)
    stop = StopRequest()

    def stops_at_two(trial: optuna.Trial) -> float:
        x = objective(trial)
        if trial.number == 2:
            stop.request()
        stop.check()
        return x

    run_trials(study, stops_at_two, n_trials=10, stop=stop)
    assert states(study) == ["COMPLETE", "COMPLETE", "FAIL"]
    assert study.trials[2].system_attrs["biotune:ended"] == "stopped"
    run_trials(study, objective, n_trials=3)
    assert states(study)[3:] == ["COMPLETE"]
    if sampler == "biotune":
        assert study.trials[3].params == study.trials[2].params


def test_a_keyboard_interrupt_hands_the_trial_back_and_goes_on() -> None:
    study = make()

    def interrupted(trial: optuna.Trial) -> float:
        objective(trial)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trials(study, interrupted, n_trials=2)
    assert study.trials[0].system_attrs["biotune:ended"] == "stopped"


def test_a_stop_reaches_a_worker_that_waits_for_others() -> None:
    study = make()
    study.ask()
    stop = StopRequest()
    timer = threading.Timer(0.3, stop.request)
    timer.start()
    run_trials(study, objective, n_trials=1, stop=stop)
    assert states(study) == ["RUNNING"]
    run_trials(study, objective, n_trials=1, wait_for_others=False)
    assert states(study) == ["RUNNING"]


WORKER = """
    import hashlib, sys, time, optuna
    from biotune_optuna.sampler.sampler import BioTuneSampler
    from biotune_optuna.storage.open import open_storage
    from biotune_optuna.study.worker import run_trials, StopRequest, Stopped
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name="s", storage=open_storage(sys.argv[1]),
        direction="maximize", sampler=BioTuneSampler(seed=1), load_if_exists=True)
    polite = sys.argv[2] == "polite"

    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        print("running", trial.number, flush=True)
        if sys.argv[2] == "in C":  # as in a long backward pass, no handler can run
            hashlib.pbkdf2_hmac("sha256", b"a", b"b", 200_000_000)
        for _ in range(600):
            time.sleep(0.1)
            if polite:
                stop.check()
        return x

    with StopRequest.on_signals(polite_seconds=float(sys.argv[3])) as stop:
        run_trials(study, objective, n_trials=10, stop=stop)
        stop.check() if polite else None
    """


def start_worker(url: str, manners: str, seconds: float = 6.0) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORKER), url, manners, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline().startswith("running")
    return worker


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_hands_the_trial_back(url: str, number: signal.Signals) -> None:
    worker = start_worker(url, "polite", seconds=60)
    worker.send_signal(number)
    assert worker.wait(50) == 1, "it noticed by itself and was not made to go"
    (trial,) = make(url).trials
    assert trial.state == TrialState.FAIL
    assert trial.system_attrs["biotune:ended"] == "stopped"


@pytest.mark.parametrize("kind", ["deaf", "in C"])
def test_a_worker_that_does_not_look_is_stopped_all_the_same(url: str, kind: str) -> None:
    worker = start_worker(url, kind, seconds=0.5)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(50) == 128 + signal.SIGTERM
    (trial,) = make(url).trials
    assert trial.system_attrs["biotune:ended"] == "stopped"


@pytest.mark.parametrize("kind", ["deaf", "in C"])
def test_a_second_signal_stops_at_once_and_the_trial_is_found(url: str, kind: str) -> None:
    worker = start_worker(url, kind, seconds=60)
    while worker.poll() is None:  # two that come at once are one to the system
        worker.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert worker.returncode == 128 + signal.SIGINT
    study = make(url)
    assert states(study) == ["RUNNING"]
    (worker_status,) = study_status(study)["workers"]
    assert worker_status["alive"] is False
    run_trials(study, objective, n_trials=2)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].params == study.trials[0].params


def test_a_killed_worker_is_found_at_once_and_its_slot_evaluated_again(url: str) -> None:
    worker = start_worker(url, "polite")
    worker.kill()
    worker.wait()
    study = make(url)
    run_trials(study, objective, n_trials=3)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert study.trials[0].system_attrs["biotune:ended"] == "lost"
    assert study.trials[1].params == study.trials[0].params


FORKS = """
    import multiprocessing, os, signal, sys, time
    from biotune_optuna.study.stop import StopRequest
    fork = multiprocessing.get_context("fork")
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest.on_signals() as stop:
        child = fork.Process(target=time.sleep, args=(300,))
        child.start()
        child.terminate()
        child.join(60)
        with fork.Pool(1) as pool:
            asked = pool.apply(signal.getsignal, (signal.SIGTERM,)) == before
        print(child.exitcode, asked, stop.requested, flush=True)
        if os.fork() == 0:  # it leaves the block as its parent does
            sys.exit(0)
        os.wait()
    print(signal.getsignal(signal.SIGTERM) == before, flush=True)
    """


def test_a_signal_to_a_forked_child_does_not_stop_its_parent() -> None:
    """A pool of processes ends its own by SIGTERM."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORKS)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.stdout.splitlines() == [f"{-signal.SIGTERM} True False", "True"], ran.stderr
    assert ran.returncode == 0


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest.on_signals() as stop:
        assert signal.getsignal(signal.SIGTERM) != before[0]
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
        with pytest.raises(Stopped):
            stop.check()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    time.sleep(0.3)  # the watcher has gone: this process is still here


def test_outside_the_main_thread_no_signal_is_caught() -> None:
    found: list[Any] = []

    def use() -> None:
        with StopRequest.on_signals() as stop:
            found.append(stop.requested)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [False]
