"""The matrix at work: filled once, resumed after a kill, shared by processes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from biotune_optuna.compare import run as work
from biotune_optuna.compare.plan import Comparison
from biotune_optuna.compare.rows import Row
from biotune_optuna.compare.run import CellProgress, read_rows, run_comparison
from biotune_optuna.compare.search import varied
from biotune_optuna.confirmation.record import Confirmation
from biotune_optuna.errors import BioTuneError, StudyError
from biotune_optuna.finetune.results import RunResult
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.models.candidates import Candidate
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.choice import Choice
from biotune_optuna.study.setup import prepare
from biotune_optuna.study.stop import Stopped, StopRequest
from tests.kit.images import digit_folder
from tests.kit.studies import tiny_spec

SMALL: dict[str, Any] = {
    "crop_pct": None,
    "train_size": 30,
    "val_size": 20,
    "n_seeds": 1,
    "train": TrainSettings(epochs=1, batch_size=15),
}
OPTIONS = shlex.split(
    "--data digits --model test_efficientnet --weights none --image-size 32 --train-size 30 "
    "--val-size 20 --test-fraction 0.1 --lr 1e-3,3e-2 --seeds 1 --epochs 1 --batch-size 15 "
    "--device cpu --trials 3 --top-k 1 --runs 1 --json"
)


def make_plan(**changes: Any) -> Comparison:
    options: dict[str, Any] = {
        "tasks": (tiny_spec(**SMALL),),
        "contenders": ("biotune", "full", "linear-probe"),
        "repeats": 1,
        "trials": 3,
        "top_k": 1,
        "runs": 1,
    }
    return Comparison(**(options | changes))


class Log(list[CellProgress]):
    def begun(self) -> list[str]:
        return [p.cell.key for p in self if p.state == "begins"]


def run(plan: Comparison, storage: Any, cache: Path, **options: Any) -> tuple[list[Row], Log]:
    log = Log()
    rows = run_comparison(
        plan, storage=storage, device="cpu", cache_dir=cache, tell=log.append, **options
    )
    return rows, log


def without_seconds(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [
        (r.repeat, r.method, r.score, r.validation, r.forward, r.backward, r.setting) for r in rows
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pixels")


def test_members_are_trained_for_all_methods_alike(cache: Path) -> None:
    storage = optuna.storages.InMemoryStorage()
    single, _ = run(make_plan(), storage, cache)
    plan = make_plan(members=3, name="several")
    rows, _ = run(plan, storage, cache)
    alone = {row.method: row for row in single}
    assert {(row.members, row.score) for row in single if row.members > 1} == set()
    for row in rows:
        assert row.members == 3
        assert 0 <= row.together <= 1
        if row.method != "full@budget":  # whose budget is another one
            assert row.score == alone[row.method].score
    by = {row.method: row for row in rows}
    for method in ("biotune", "full"):
        assert by[method].backward == alone[method].backward + 2 * 50
    assert any(row.together != row.score for row in rows)
    for name, members, said in (("compare", 3, "1, not 3"), ("several", 1, "3, not 1")):
        with pytest.raises(StudyError, match=f"members: {said}"):
            run(make_plan(members=members, name=name), storage, cache)


def test_the_winner_may_be_a_rival_as_in_tune(cache: Path) -> None:
    storage = optuna.storages.InMemoryStorage()
    (usual,), _ = run(make_plan(contenders=("biotune",), equal_budget=False), storage, cache)
    plan = make_plan(contenders=("biotune",), equal_budget=False, as_tune=True, name="tune")
    (row,), _ = run(plan, storage, cache)
    stored = optuna.load_study(study_name=f"tune/{row.task}/0/biotune", storage=storage)
    confirmed = Confirmation.of(stored.user_attrs)
    assert [one.name for one in confirmed.rivals] == ["full", "linear-probe"]
    test = confirmed.test(confirmed.chosen)
    assert test is not None
    assert row.score == pytest.approx(test.score, abs=1e-6)
    assert row.cross_entropy == pytest.approx(test.metrics["cross_entropy"], abs=1e-6)
    assert row.passes > usual.passes, "the tuning of the rivals is charged"
    with pytest.raises(StudyError, match="as_tune: False, not True"):
        run(make_plan(contenders=("biotune",), equal_budget=False, as_tune=True), storage, cache)


def test_a_matrix_is_filled_once_and_charged_for_everything(tmp_path: Path, cache: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/c.db")
    auto = SMALL | {"lr": "auto"}  # so that the finding of rates is charged too
    task = {"tasks": (tiny_spec(**auto),)}
    rows, log = run(make_plan(**task), storage, cache)
    assert log.begun() == ["0/biotune", "0/full", "0/linear-probe", "0/full@budget"]
    assert [p.done for p in log if p.state == "done"] == [1, 2, 3, 4]
    by = {row.method: row for row in rows}
    assert (by["full"].train, by["full"].val, by["full"].test) == (30, 20, 180)
    assert by["full"].pool == 1797 - 180
    assert len({row.split for row in rows}) == 1
    attributes = storage.get_study_user_attrs(
        storage.get_study_id_from_name("compare/digits-test_efficientnet/0/biotune")
    )
    begun = attributes["biotune"]["rates"]
    assert begun["forward"] == begun["backward"] == len(begun["tried"]) * 30 * 15
    # three trials, one fresh run, a final training on 50 images: one epoch each
    assert by["biotune"].backward == begun["backward"] + 3 * 30 + 30 + 50
    assert by["biotune"].forward == by["biotune"].backward + 4 * 20
    assert by["full"].backward == 5 * 30 + 30 + 50
    assert by["linear-probe"].trainable < by["full"].trainable == 100.0
    assert by["biotune"].evaluations == 3
    assert by["full"].evaluations == 5
    assert 0 < by["full@budget"].passes <= by["biotune"].passes
    assert len(attributes["test_looks"]) == 1, "one test a repeat"

    again, log = run(make_plan(**task), storage, cache)
    assert again == rows
    assert not log, "finished cells are not run again"
    more, log = run(make_plan(**task, contenders=("full", "lp-ft"), repeats=2), storage, cache)
    assert log.begun() == ["0/lp-ft", "1/full", "1/lp-ft"]
    assert len(more) == len(rows) + 3
    assert len({row.split for row in more}) == 2, "a fresh split for each repeat"
    with pytest.raises(StudyError, match="trials: 3, not 4"):
        run(make_plan(**task, trials=4), storage, cache)
    assert read_rows(storage, "compare") == more
    for elsewhere in ({"data": str(tmp_path / "none")}, {"weights": "/no/such.safetensors"}):
        other = make_plan(tasks=(tiny_spec(**auto | elsewhere),))
        with pytest.raises(BioTuneError, match=r"none|no/such"):
            run(other, storage, cache)
    with pytest.raises(StudyError, match="no comparison 'other'"):
        read_rows(storage, "other")


@pytest.mark.parametrize("slip", [{"model": "test_efficientnot"}, {"data": "/no/such/images"}])
def test_a_slip_in_the_last_task_shows_before_the_first_cell(
    slip: dict[str, str], cache: Path
) -> None:
    storage = optuna.storages.InMemoryStorage()
    plan = make_plan(tasks=(tiny_spec(**SMALL), tiny_spec(**SMALL | slip)))
    with pytest.raises(BioTuneError, match=r"efficientnot.*nearest|no such folder"):
        run(plan, storage, cache)
    assert storage.get_all_studies() == []


def test_a_storage_without_leases_is_refused(tmp_path: Path) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/plain.db")
    with pytest.raises(StudyError, match=r"plain RDBStorage.*give the storage's URL"):
        run_comparison(make_plan(), storage=storage)


def test_no_method_profits_from_what_another_computed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, cells, computed = Trainer.fit, Log(), Counter[str]()

    def noted(self: Trainer, *args: Any, **options: Any) -> RunResult:
        result = fit(self, *args, **options)
        computed[cells[-1].cell.contender.name] += result.cache_misses
        return result

    monkeypatch.setattr(Trainer, "fit", noted)
    plan = make_plan(contenders=("linear-probe", "lp-ft"))
    storage = optuna.storages.InMemoryStorage()
    run_comparison(plan, storage=storage, device="cpu", cache_dir=cache, tell=cells.append)
    assert computed["linear-probe"] == computed["lp-ft"] == 30 + 20 + 50


def test_a_search_whose_final_training_diverges_is_tested_as_a_rival_is(cache: Path) -> None:
    spec = tiny_spec(**(SMALL | {"lr": 1e8}))
    plan = make_plan(tasks=(spec,), contenders=("biotune",), equal_budget=False)
    (row,), _ = run(plan, optuna.storages.InMemoryStorage(), cache)
    assert 0 <= row.score < 0.5
    # three trials, one fresh run, three final trainings: all end in their first epoch
    assert row.forward > 3 * 15


def test_a_given_validation_part_is_not_in_the_pool_of_the_test(
    tmp_path: Path, cache: Path
) -> None:
    digit_folder(tmp_path / "train", per_class=20)
    digit_folder(tmp_path / "val", per_class=10)
    spec = tiny_spec(**SMALL | {"data": str(tmp_path), "val_size": None})
    plan = make_plan(tasks=(spec,), contenders=("linear-probe",))
    (row,), _ = run(plan, optuna.storages.InMemoryStorage(), cache)
    assert (row.val, row.official) == (30, 0)
    assert row.pool == 60 - row.test


def test_searchers_share_genomes_and_budget(tmp_path: Path, cache: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/c.db")
    rows, _ = run(make_plan(contenders=("tpe", "random"), trials=2), storage, cache)
    assert [row.evaluations for row in rows] == [2, 2]
    (one, other) = (
        optuna.load_study(study_name=f"compare/digits-test_efficientnet/0/{name}", storage=storage)
        for name in ("tpe", "random")
    )
    assert set(one.trials[0].params) == set(other.trials[0].params)
    assert one.trials[0].params != one.trials[1].params


def test_failed_cells_do_not_stop_the_others(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/c.db")
    real = work.run_baseline

    def breaks(setup: Any, method: str, **options: Any) -> Any:
        if method == "full":
            raise RuntimeError("out of luck")
        return real(setup, method, **options)

    monkeypatch.setattr(work, "run_baseline", breaks)
    plan = make_plan(contenders=("full", "linear-probe"))
    with pytest.raises(StudyError, match=r"1 of 2 cells failed.*0/full, with RuntimeError: out of"):
        run(plan, storage, cache)
    assert [row.method for row in read_rows(storage, "compare")] == ["linear-probe"]
    monkeypatch.setattr(work, "run_baseline", real)
    rows, log = run(plan, storage, cache)
    assert log.begun() == ["0/full"]
    assert len(rows) == 2


def test_a_cell_that_another_process_has_done_since_has_not_failed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/c.db"
    plan = make_plan(contenders=("full", "linear-probe"))
    real = work.run_baseline

    def breaks(setup: Any, method: str, **options: Any) -> Any:
        if method == "full":
            raise RuntimeError("out of luck")
        monkeypatch.setattr(work, "run_baseline", real)
        with monkeypatch.context() as other:  # it has both to itself while this one works
            other.setattr(Comparison, "cells", lambda self: cells(self)[:1])
            run(plan, open_storage(url), cache)
        return real(setup, method, **options)

    cells = Comparison.cells
    monkeypatch.setattr(work, "run_baseline", breaks)
    rows, log = run(plan, open_storage(url), cache)
    assert [p.state for p in log if p.cell.contender.name == "full"] == ["begins", "failed"]
    assert len(rows) == 2


def test_a_stop_hands_the_cell_back(tmp_path: Path, cache: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/c.db")
    stop = StopRequest()
    plan = make_plan(contenders=("full",))
    with pytest.raises(Stopped):
        run_comparison(
            plan,
            storage=storage,
            device="cpu",
            cache_dir=cache,
            stop=stop,
            tell=lambda _: stop.request(),
        )
    study = optuna.load_study(study_name="compare/digits-test_efficientnet", storage=storage)
    assert [t.system_attrs["biotune:ended"] for t in study.trials] == ["stopped"]
    rows, _ = run(plan, storage, cache)
    assert len(rows) == 1


def start(tmp_path: Path, cache: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "biotune_optuna", "compare", *OPTIONS, *arguments]
    threads = str(torch.get_num_threads())  # with others, scores may differ
    environment = os.environ | {"BIOTUNE_CACHE": str(cache), "OMP_NUM_THREADS": threads}
    environment["BIOTUNE_STORAGE"] = f"sqlite:///{tmp_path}/c.db"
    return subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def events(output: str) -> list[tuple[str, str]]:
    *cells, report = map(json.loads, output.splitlines())
    assert report["event"] == "report"
    assert report["path"].endswith("report.html")
    return [(cell["event"], f"{cell['repeat']}/{cell['method']}") for cell in cells]


def test_killed_in_the_middle_the_same_command_goes_on(tmp_path: Path, cache: Path) -> None:
    """Killed during the search of a cell: finished cells stay, the search goes on where it was."""
    order = ("linear-probe", "biotune")
    arguments = ("--methods", ",".join(order), "--repeats", "1")
    child = start(tmp_path, cache, *arguments)
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line)["event"] == "begins" and json.loads(line)["method"] == "biotune":
            break
    storage = open_storage(f"sqlite:///{tmp_path}/c.db")
    name = "compare/digits-test_efficientnet/0/biotune"
    while True:  # until a trial of the search has finished
        known = {study.study_name: study._study_id for study in storage.get_all_studies()}
        if name in known and storage.get_n_trials(known[name], optuna.trial.TrialState.COMPLETE):
            break
        assert child.poll() is None
        time.sleep(0.05)
    child.kill()
    child.communicate()
    finished = storage.get_n_trials(known[name], optuna.trial.TrialState.COMPLETE)

    plan = make_plan(contenders=order)
    rows, log = run(plan, storage, cache)
    # nothing is left only where the kill came too late, after the last cell
    assert log.begun() in (["0/biotune"], [])
    search = optuna.load_study(study_name=name, storage=storage)
    complete = [t for t in search.trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert len(complete) == 3
    assert finished >= 1
    whole, _ = run(plan, open_storage(f"sqlite:///{tmp_path}/whole.db"), cache)
    assert without_seconds(rows) == without_seconds(whole)


def test_two_processes_share_the_work(tmp_path: Path, cache: Path) -> None:
    methods = ("--methods", "full,linear-probe,layer-decay", "--repeats", "2")
    both = [start(tmp_path, cache, *methods, "--out", f"out{i}") for i in range(2)]
    told = [child.communicate(timeout=200) for child in both]
    assert [child.returncode for child in both] == [0, 0], told
    done = [key for output, _ in told for state, key in events(output) if state == "done"]
    assert sorted(done) == sorted(f"{r}/{m}" for r in (0, 1) for m in methods[1].split(","))
    for i in range(2):
        assert (tmp_path / f"out{i}" / "report.html").is_file()
    tables = [(tmp_path / f"out{i}" / "results.csv").read_bytes() for i in range(2)]
    assert tables[0] == tables[1]


def test_other_folds_keep_images_and_trainer(cache: Path) -> None:
    setup = prepare(tiny_spec(), device="cpu", cache_dir=cache)
    other = varied(setup, {"n_folds": 2, "scheme": "kfold", "threshold": None})
    assert other.trainer is setup.trainer
    for part in ("train", "val", "test"):
        ours, theirs = getattr(other.splits, part), getattr(setup.splits, part)
        assert np.array_equal(ours, theirs)
    assert len(other.splits.folds) == 2
    assert other.space.threshold is None
    assert other.spec.fingerprints["splits"] != setup.spec.fingerprints["splits"]
    assert varied(setup, {}) is setup


def test_tasks_that_group_the_same_data_otherwise_read_them_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []
    real = work.open_images

    def noted(data: str, **options: Any) -> Any:
        opened.append(options["group_regex"])
        return real(data, **options)

    monkeypatch.setattr(work, "open_images", noted)
    tasks = (
        tiny_spec(**SMALL),
        tiny_spec(**SMALL, model="test_vit", group_regex=r"\d+"),
    )
    plan = make_plan(tasks=tasks, contenders=("linear-probe",))
    run_comparison(plan, storage=optuna.storages.InMemoryStorage())
    assert opened[-2:] == [None, r"\d+"]


def test_a_network_is_chosen_once_for_each_repeat_and_charged_to_all(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("test_efficientnet", "test_resnet")
    monkeypatch.setattr(
        "biotune_optuna.study.auto.select",
        lambda _among, _limits: [Candidate(n, 1_000_000) for n in names],
    )
    calls: list[int] = []
    choose = work.choose_model

    def counted(spec: Any, **options: Any) -> Any:
        calls.append(spec.seed)
        return choose(spec, **options)

    monkeypatch.setattr(work, "choose_model", counted)
    storage = optuna.storages.InMemoryStorage()
    task = tiny_spec(**SMALL | {"model": "auto", "weights": "none"})
    plan = make_plan(tasks=(task,), contenders=("full", "linear-probe"), repeats=2)
    rows, _ = run(plan, storage, cache_dir)
    assert len(calls) == 2, "one choice a repeat"
    assert len(rows) == 4
    assert {row.model for row in rows} == {"auto"}
    board = optuna.load_study(study_name=f"{plan.name}/{rows[0].task}", storage=storage)
    for row in rows:
        choice = Choice.of(board.user_attrs[f"choice: {row.repeat}"])
        assert row.setting.startswith(f"{choice.chosen}: ")
        assert row.forward > choice.cost.forward > 0
    run(plan, storage, cache_dir)
    assert len(calls) == 2, "nothing is chosen again"
