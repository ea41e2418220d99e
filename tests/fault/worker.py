"""A worker in a process of its own: ``python worker.py URL N_TRIALS SECONDS LOG [SAMPLER]``."""

from __future__ import annotations

import os
import socket
import sys
import time

import optuna

from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.stop import StopRequest
from biotune_optuna.study.worker import run_trials


def main(url: str, n_trials: str, seconds: str, log: str, sampler: str = "biotune") -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def say(what: str, number: int) -> None:
        line = f"{what} {number} {socket.gethostname()} {os.getpid()} {time.monotonic():.2f}\n"
        os.write(file, line.encode())

    study = optuna.create_study(
        study_name="s",
        storage=open_storage(url),
        direction="maximize",
        sampler=BioTuneSampler(seed=1) if sampler == "biotune" else optuna.samplers.RandomSampler(),
        load_if_exists=True,
    )

    def objective(trial: optuna.Trial) -> float:
        xs = [trial.suggest_float(f"x{n}", 0, 1) for n in range(7)]
        say("start", trial.number)
        for step in range(4):
            end = time.monotonic() + float(seconds) / 4
            while time.monotonic() < end:
                time.sleep(0.05)
                stop.check()
            trial.report(sum(xs), step)
        say("end", trial.number)
        return sum(xs)

    with StopRequest.on_signals() as stop:
        run_trials(study, objective, n_trials=int(n_trials), stop=stop)


if __name__ == "__main__":
    main(*sys.argv[1:])
