"""A real file system that runs full under a study."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState

from biotune_optuna.errors import StorageError
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.worker import run_trials

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.parametrize("kind", ["study.db", "study.log"])
def test_a_clear_error_and_the_study_goes_on(small_disk: Path, kind: str) -> None:
    url = str(small_disk / kind)
    filler = small_disk / "filler"

    def make() -> optuna.Study:
        return optuna.create_study(
            study_name="s",
            storage=open_storage(url, retry_seconds=1.0),
            direction="maximize",
            sampler=BioTuneSampler(seed=1),
            load_if_exists=True,
        )

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.number == 5 and not filler.exists():
            with filler.open("wb", buffering=0) as file:
                for size in (65536, 4096, 1):  # to the last byte
                    while True:
                        try:
                            file.write(b"0" * size)
                        except OSError:
                            break
        trial.set_user_attr("long", "y" * 20_000)
        return x

    study = make()
    with pytest.raises(StorageError) as caught:
        run_trials(study, objective, n_trials=12)
    assert "disk is full" in str(caught.value)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)
    filler.unlink()
    filler = small_disk / "none"
    filler.touch()
    again = make()
    run_trials(again, objective, n_trials=12)
    done = [t for t in again.trials if t.state == TrialState.COMPLETE]
    assert len(done) == 12
    assert all(t.value == t.params["x"] for t in done)
