"""Workers alone bring a study to its end: they search, confirm, and one writes report and model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from biotune_optuna.cli.finish import evidence_of, keep_evidence
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.record import Confirmation
from biotune_optuna.report.status import study_status
from biotune_optuna.study.study import create_study
from tests.kit.studies import tiny_spec

PLAN = ConfirmPlan(top_k=1, n_runs=2, rates=(1e-3, 1e-2), more_rates=0, members=2)
TOTAL = 4


def test_two_workers_end_a_study_once(home: Path, url: str) -> None:
    study = create_study(tiny_spec(), storage=url, name="s")
    study.study.set_user_attr("n_trials", TOTAL)
    keep_evidence(study, PLAN, TOTAL, home / "out")
    command = [sys.executable, "-m", "biotune_optuna", "worker", "--study", "s"]
    environment = os.environ | {"BIOTUNE_STORAGE": url}
    workers = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = "".join(worker.communicate(timeout=500)[1] for worker in workers)
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert said.count("Study s is confirmed.") == 2
    assert (
        said.count(f"Report: {home / 'out' / 'report.html'}, model: {home / 'out' / 'model'}") == 1
    )
    assert (home / "out" / "report.html").exists()
    assert (home / "out" / "model" / "model.safetensors").exists()
    confirmed = Confirmation.of(study.study.user_attrs)
    assert confirmed.basis == PLAN.basis(_complete(study.study))
    looks = [look["what"] for look in study.study.user_attrs["test_looks"]]
    assert len(looks) == len(set(looks)) == len(confirmed.tests)
    status = study_status(study.study)
    assert (status["workers"], status["stage"], status["trials"]["complete"] >= 1) == (
        [],
        None,
        True,
    )
    assert not list((home / "cache" / "final").iterdir())


def _complete(study: object) -> int:
    return sum(trial.state.name == "COMPLETE" for trial in study.trials)  # type: ignore[attr-defined]


def test_what_is_kept_of_the_evidence(home: Path, url: str) -> None:
    study = create_study(tiny_spec(), storage=url, name="s")
    assert evidence_of(study, TOTAL) is None
    keep_evidence(study, PLAN, None, home / "out")  # time ends the search
    assert evidence_of(study, None) is None
    assert "evidence" not in study.study.user_attrs
    keep_evidence(study, PLAN, TOTAL, Path("out"))
    assert evidence_of(study, TOTAL) == (PLAN, home / "out")
    assert evidence_of(study, TOTAL + 1) is None
    keep_evidence(study, PLAN, None, home / "out")
    assert evidence_of(study, TOTAL) is None
