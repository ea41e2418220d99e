"""Bad input at the command line: one clear line, exit code 2, nothing written."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner

import biotune_optuna
from biotune_optuna.cli import cli
from biotune_optuna.errors import StudyError
from biotune_optuna.study.rates import RateCheck
from biotune_optuna.study.setup import Setup
from biotune_optuna.study.study import create_study
from tests.kit.cli import RATES, TINY, fails, tree, tune
from tests.kit.studies import tiny_spec


def test_no_such_folder(home: Path) -> None:
    assert "nowhere" in tune(home / "nowhere")
    assert not (home / "nowhere").exists()


def test_a_folder_without_images(home: Path) -> None:
    (home / "data" / "empty").mkdir(parents=True)
    assert "no images in" in tune(home / "data")


def test_one_class(home: Path) -> None:
    message = tune(tree(home / "data", {"cat": 9}))
    assert "cat" in message or "one class" in message


def test_a_class_too_small_to_split(home: Path) -> None:
    assert "dog" in tune(tree(home / "data", {"cat": 9, "dog": 2}))


def test_a_truncated_image_is_named(home: Path) -> None:
    data = tree(home / "data", {"cat": 9, "dog": 9})
    bad = data / "cat" / "3.png"
    bad.write_bytes(bad.read_bytes()[:200])
    message = tune(data)
    assert "3.png" in message
    assert "--skip-bad-images" in message


def test_an_unknown_model_gets_the_nearest_names(home: Path) -> None:
    data = tree(home / "data", {"cat": 9, "dog": 9})
    message = fails("tune", "--data", str(data), "--model", "resnet5o", "--trials", "2")
    assert "resnet5o" in message
    assert "resnet50" in message
    assert "resnet50" in fails("blocks", "resnet5o")


def test_weights_of_another_architecture_are_listed(home: Path) -> None:
    import timm
    from safetensors.torch import save_file

    data = tree(home / "data", {"cat": 9, "dog": 9})
    save_file(timm.create_model("test_vit").state_dict(), home / "vit.safetensors")
    message = fails(
        "tune", "--data", str(data), "--model", "test_efficientnet", "--trials", "2",
        "--weights", str(home / "vit.safetensors"),
    )  # fmt: skip
    assert "vit.safetensors" in message
    assert "conv_stem" in message or "blocks" in message


def test_a_storage_that_cannot_be_opened(home: Path) -> None:
    data = tree(home / "data", {"cat": 9, "dog": 9})
    message = tune(data, "--storage", f"sqlite:///{home}/no/such/folder/x.db")
    assert "x.db" in message
    message = tune(data, "--storage", "carrier-pigeon://loft")
    assert "carrier-pigeon" in message


def test_a_file_that_is_no_database_is_left_alone(home: Path) -> None:
    data = tree(home / "data", {"cat": 9, "dog": 9})
    precious = home / "notes.db"
    precious.write_text("these are my notes, not a database\n" * 99)
    before = precious.read_bytes()
    assert "notes.db" in tune(data, "--storage", f"sqlite:///{precious}")
    assert precious.read_bytes() == before


def test_an_output_folder_that_cannot_be_written(home: Path) -> None:
    data = tree(home / "data", {"cat": 9, "dog": 9})
    (home / "out").write_text("a file, not a folder")
    inside = home / "out" / "mine"  # click itself refuses a file, but looks no further
    assert "output folder" in tune(data, "--out", str(inside))
    assert not (home / "biotune.db").exists()


def test_a_foreign_model_folder_is_refused_before_the_search(home: Path) -> None:
    data = tree(home / "data", {"cat": 9, "dog": 9})
    model = home / "out" / "data-test_efficientnet" / "model"
    model.mkdir(parents=True)
    (model / "notes.txt").write_text("mine")
    assert "holds notes.txt" in tune(data, "--out", str(home / "out"))
    assert not (home / "biotune.db").exists()


def test_a_range_of_rates_that_had_to_be_lowered_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lowered(setup: Setup, **_options: object) -> RateCheck:
        tried: tuple[dict[str, float | None], ...] = ({"lr": 0.0055, "loss": None},)
        tried += ({"lr": 0.00055, "loss": 1.3},)
        return RateCheck((1e-4, 3e-3), 2.3, tried, forward=9, backward=9, seconds=1.0)

    def enough(*_args: object) -> None:
        raise StudyError("here it ends, before the search")

    monkeypatch.setattr("biotune_optuna.study.study.find_rates", lowered)
    monkeypatch.setattr("biotune_optuna.confirmation.winner.check_export", enough)
    data = tree(home / "data", {"cat": 9, "dog": 9})
    command = ["tune", "--data", str(data), *TINY, "--trials", "2"]
    said = CliRunner().invoke(cli, command).stderr
    assert (
        "Base rates are searched between 0.0001 and 0.003: in a short training at 0.0055 the"
        in said
    )
    said = CliRunner().invoke(cli, [*command, "--study", "own", "--lr", "1e-4,3e-3"]).stderr
    assert "Base rates" not in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder(home: Path) -> None:
    data = tree(home / "data", {"cat": 9, "dog": 9})
    (home / "out").mkdir(mode=0o500)
    assert "output folder" in tune(data, "--out", str(home / "out"))
    assert not (home / "biotune.db").exists()


def test_zero_trials(home: Path) -> None:
    data = tree(home / "data", {"cat": 9, "dog": 9})
    message = fails("tune", "--data", str(data), *TINY, "--trials", "0")
    assert "--trials 0" in message


def test_an_unknown_method_gets_the_known_ones() -> None:
    message = fails("baseline", "prayer", "--data", "digits", *TINY)
    assert "'prayer'" in message
    assert "auto-rgn" in message


@pytest.mark.parametrize("option", ["--seeds", "--folds", "--scheme"])
def test_a_baseline_takes_nothing_that_it_would_ignore(option: str) -> None:
    message = fails("baseline", "full", "--data", "digits", *TINY, option, "2")
    assert message.startswith("No such option")  # releases of click differ in the rest
    assert option in message


@pytest.mark.parametrize("display", [(), ("--json",)])
def test_a_baseline_alone(home: Path, display: tuple[str, ...]) -> None:
    small = ("--train-size", "30", "--val-size", "20", "--test-fraction", "0.1", "--runs", "1")
    line = ["baseline", "linear-probe-sgd", "--data", "digits", *TINY, *small, *display]
    line += ["--to", "kept"]
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 0, result.output
    if not display:
        assert result.stdout.startswith("linear-probe-sgd: lr ")
        told, tried = result.stdout.splitlines()[:2]
        assert told.endswith(", the best of 5 settings on validation images")
        scores = dict(one.split(": ") for one in tried.removeprefix("  one run each: ").split("; "))
        assert len(scores) == 5
        setting = told.removeprefix("linear-probe-sgd: ").partition(", the best")[0]
        assert scores[setting] == max(scores.values())
        assert "180 test images" in result.stdout
        assert result.stdout.endswith("Model   kept\nNext:   biotune predict kept IMAGE...\n")
        assert Path("kept", "model.safetensors").exists()
        return
    *stages, found = map(json.loads, result.stdout.splitlines())
    assert {stage["event"] for stage in stages} == {"stage", "trained"}
    assert found["method"] == "linear-probe-sgd"
    assert found["test"]["low"] <= found["test"]["value"] <= found["test"]["high"]


def test_ctrl_c_while_things_are_prepared_is_told_in_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("biotune_optuna.study.study.create_study", interrupted)
    result = CliRunner().invoke(cli, ["tune", "--data", "digits", *TINY, "--trials", "2"])
    assert result.exit_code == 130
    assert result.stderr.splitlines()[1:] == ["Stopped."]


def test_the_demo_is_a_job_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from biotune_optuna.cli import tune as module

    jobs: list[module.Job] = []
    monkeypatch.setattr(module, "run", jobs.append)  # it takes minutes: nox -s demo runs it
    result = CliRunner().invoke(cli, ["demo", "--seed", "3", "--out", "elsewhere", "--plain"])
    assert result.exit_code == 0, result.output
    (job,) = jobs
    assert (job.name, job.trials, job.out, job.display) == (
        "demo", None, Path("elsewhere/demo"), "plain",
    )  # fmt: skip
    assert job.within == module.DEMO_SECONDS
    assert (job.spec.data, job.spec.seed) == ("digits", 3)


def test_looking_at_studies_that_are_not_there(home: Path) -> None:
    assert "biotune.db" in fails("status")
    assert not (home / "biotune.db").exists()


def test_help_needs_no_heavy_library() -> None:
    code = (
        "import sys; from biotune_optuna.cli import cli\n"
        "try: cli(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'optuna', 'sklearn', 'plotly', 'pandas', 'sqlalchemy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


@pytest.mark.parametrize("module", ["report.status", "report.view", "storage.open"])
def test_looking_at_a_study_loads_no_pytorch(module: str) -> None:
    code = (
        f"import sys, biotune_optuna.{module}\n"
        "heavy = {'torch', 'timm', 'sklearn', 'plotly'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_is_installed() -> None:
    command = shutil.which("biotune", path=str(Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run([command, "--version"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"biotune, version {biotune_optuna.__version__}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device of a full disk")
def test_output_to_a_full_disk_ends_with_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "biotune_optuna", "--help"]
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "Error: the output cannot be written: No space left on device\n"


def test_the_blocks_of_a_network_are_listed() -> None:
    done = CliRunner().invoke(cli, ["blocks", "resnet50"])
    assert done.exit_code == 0, done.output
    assert "layer4" in done.stdout
    assert "6 blocks" in done.stdout


def test_a_study_name_leads_nowhere_else(home: Path) -> None:
    """Names come from a database that others may write to."""
    for name in ("../escaped", "/tmp/escaped", "a/../../b"):
        optuna.create_study(storage=f"sqlite:///{home}/names.db", study_name=name)
        message = fails("report", "--storage", f"sqlite:///{home}/names.db", "--study", name)
        assert "is no folder name; give --to" in message
        assert tune("digits", "--study", name).endswith("is no folder name; give another --study")
    assert not (home.parent / "escaped").exists()


def test_without_a_test_part_the_job_ends_well_and_says_so(home: Path) -> None:
    data = tree(home / "data", {"cat": 12, "dog": 12})
    line = ["tune", "--data", str(data), *TINY, *RATES, "--trials", "1"]
    result = CliRunner().invoke(cli, [*line, "--test-fraction", "0", "--batch-size", "8"])
    assert result.exit_code == 0, result.output
    assert "no images were held out for a test" in result.output
    assert "Chosen before the test" not in result.output
    card = (home / "biotune-out" / "data-test_efficientnet" / "model" / "README.md").read_text()
    assert "| test images | 0 |" in card or "test images: 0" in card
    assert "No images were held out for a test." in card
    assert "Chosen before the test" not in card


def test_a_password_is_not_part_of_what_to_type_next(capsys: pytest.CaptureFixture[str]) -> None:
    from biotune_optuna.cli.tune import Job, _say_result
    from biotune_optuna.confirmation.record import Confirmation, Contender
    from biotune_optuna.report.view import as_view
    from biotune_optuna.study.spec import StudySpec

    job = Job(
        spec=StudySpec(model="m", data="d"),
        storage="postgresql+psycopg:///studies?host=db&user=u&password=hunter2",
        name="my s", trials=1, timeout=None, device="cpu", out=Path("out"), display=None,
    )  # fmt: skip
    alone = Contender(name="trial 0", method="biotune")
    study = optuna.create_study()
    Confirmation(chosen="trial 0", why="it is alone", candidates=(alone,)).store(study)
    _say_result(as_view(study), Path("report.html"), Path("my results/model"), job)
    printed = capsys.readouterr().out
    assert "biotune status --study 'my s'\n" in printed
    assert "biotune predict 'my results/model' IMAGE..." in printed
    assert "hunter2" not in printed


def test_names_that_are_no_utf8_are_printed_as_bytes() -> None:
    from biotune_optuna.cli.model import _printable

    assert _printable("caf\udce9.jpg") == "caf\\xe9.jpg"
    assert _printable("café.jpg") == "café.jpg"


def test_the_results_of_a_comparison_are_left_alone(home: Path) -> None:
    data = tree(home / "images", {"a": 8, "b": 8})
    results = home / "biotune-out" / "mine" / "results.csv"
    results.parent.mkdir(parents=True)
    results.write_text("task,method\n")
    assert "holds the results of a comparison" in tune(data, "--study", "mine")
    assert [f.name for f in results.parent.iterdir()] == ["results.csv"]
    assert not (home / "biotune.db").exists()
    create_study(tiny_spec(), storage="sqlite:///biotune.db", name="mine", device="cpu")
    said = fails("report", "--study", "mine")
    assert said == "biotune-out/mine holds the results of a comparison; give --to"
    assert [f.name for f in results.parent.iterdir()] == ["results.csv"]


@pytest.mark.parametrize("parts", [("",), ("train", "test")])
def test_nothing_is_written_among_the_images(
    home: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[str, ...]
) -> None:
    for part in parts:
        tree(home / "images" / part, {"a": 8, "b": 8})
    before = sorted(home.rglob("*"))
    monkeypatch.chdir(home / "images")
    why = "lies in the data folder ., where its files would be taken for images; type the command"
    elsewhere = f"sqlite:///{home}/biotune.db"
    assert tune(".") == (
        f"biotune-out/test_efficientnet {why} in another folder, or give --out and "
        "--storage elsewhere"
    )
    assert tune(".", "--out", str(home / "out")) == (
        f"biotune-artifacts {why} in another folder, or give --storage elsewhere"
    )
    assert tune("../images", "--out", str(home / "images" / "a" / "out")).startswith(str(home))
    line = ("compare", "--data", ".", *TINY, "--methods", "full", "--storage", elsewhere)
    assert fails(*line) == (f"biotune-out/compare {why} in another folder, or give --out elsewhere")
    assert sorted(home.rglob("*")) == before


def test_a_worker_writes_nothing_among_the_images(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tree(home / "images", {"a": 12, "b": 12})
    monkeypatch.chdir(data)
    spec = dataclasses.replace(tiny_spec(), data=str(data), train_size=None, val_size=None)
    create_study(spec, storage="sqlite:///biotune.db", name="mine", device="cpu")
    said = fails("worker", "--study", "mine", "--trials", "1", "--device", "cpu")
    assert said.startswith("biotune-artifacts lies in the data folder ")
    assert not (data / "biotune-artifacts").exists()


def test_a_worker_needs_an_end_when_the_study_has_none(home: Path) -> None:
    create_study(tiny_spec(), storage="sqlite:///biotune.db", name="endless", device="cpu")
    said = fails("worker", "--study", "endless", "--device", "cpu")
    assert "'endless' has no number of trials, and no tune searches it for a time now" in said
    assert said.endswith("give --trials or --timeout")
