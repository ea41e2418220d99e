"""Workers alone bring a study to its end: they search, confirm, and one writes report and model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import optuna
from click.testing import CliRunner

from biotune_optuna.cli import cli
from biotune_optuna.cli.finish import TimedEnd, begin_end, evidence_of, keep_evidence
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.record import Confirmation
from biotune_optuna.report.status import study_status
from biotune_optuna.study.stop import StopRequest
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
    keep_evidence(study, PLAN, None, home / "out")
    assert "evidence" not in study.study.user_attrs
    keep_evidence(study, PLAN, TOTAL, Path("out"))
    assert evidence_of(study, TOTAL) == (PLAN, home / "out", None)
    assert evidence_of(study, TOTAL + 1) is None
    keep_evidence(study, PLAN, None, home / "out", left=60.0)  # time ends the search
    assert evidence_of(study, TOTAL) is None
    assert evidence_of(study, None) is None


def test_of_a_search_for_a_time_workers_know_the_end_once_it_has_begun(
    home: Path, url: str
) -> None:
    study = create_study(tiny_spec(), storage=url, name="s")
    assert TimedEnd(study).left() is None
    keep_evidence(study, PLAN, None, home / "out", left=600.0)
    end = TimedEnd(study)
    left = end.left()
    assert left is not None
    assert 0 < left <= 600
    assert not end.has_begun

    stopped_after = []

    def leader(_study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number == 1:
            study.study.ask()  # somebody else is at one, and brings it late
            assert [one.number for one in begin_end(study, PLAN, home / "out")] == [0, 1]
        stopped_after.append(trial.number)

    search = create_study(tiny_spec(), storage=url, name="s")
    search.study.optimize(lambda _: 0.5, n_trials=9, callbacks=[leader, end.look])
    assert stopped_after == [0, 1], "no trial was begun after the end had"
    study.study.tell(2, 0.9)
    for total in (None, 9):
        known = evidence_of(study, total)
        assert known is not None
        assert (known.plan, known.out) == (PLAN, home / "out")
        assert [one.number for one in known.trials or ()] == [0, 1]
    study.study.set_user_attr(
        "confirm", Confirmation(chosen="trial 0", basis={"trials": 2}).to_dict()
    )
    assert end.has_begun, "who was at a trial meanwhile"
    assert not TimedEnd(study).has_begun, "who comes after may add trials"


def test_a_worker_ends_what_time_has_ended_and_its_leader_left(home: Path, url: str) -> None:
    study = create_study(tiny_spec(), storage=url, name="s", device="cpu")
    study.search(2)
    study.study.set_user_attr("n_trials", None)  # as with --timeout
    keep_evidence(study, PLAN, None, home / "out", left=600.0)
    begin_end(study, PLAN, home / "out")
    line = ["worker", "--study", "s", "--storage", url, "--device", "cpu"]
    done = CliRunner().invoke(cli, line, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert f"Study s is confirmed. Report: {home / 'out' / 'report.html'}" in done.stderr
    assert Confirmation.of(study.study.user_attrs).basis == PLAN.basis(_complete(study.study))
    looks = study.study.user_attrs["test_looks"]
    keep_evidence(study, PLAN, None, home / "out", left=-1.0)
    done = CliRunner().invoke(cli, [*line, "--timeout", "1h", "--trials", "2"])
    assert done.stderr.endswith("Study s has its trials; biotune tune confirms the winner.\n")
    assert study.study.user_attrs["test_looks"] == looks


def test_a_worker_waits_for_the_end_while_somebody_is_at_a_trial(home: Path, url: str) -> None:
    study = create_study(tiny_spec(), storage=url, name="s", device="cpu")
    keep_evidence(study, PLAN, None, home / "out", left=-1.0)
    trial, end = study.study.ask(), TimedEnd(study)
    waits = []

    class Stop(StopRequest):
        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            if len(waits) == 3:
                study.study.tell(trial, 0.5)
                begin_end(study, PLAN, home / "out")
            return False

    end.wait(Stop(), seconds=600.0)
    assert (len(waits), end.has_begun) == (3, True)
    keep_evidence(study, PLAN, None, home / "out", left=-1.0)
    end.wait(Stop(), seconds=0.0)
    assert (len(waits), end.has_begun) == (3, False), "nobody is left to begin it"
