"""What starts workers: which engines there are, what they refuse, what Slurm is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from biotune_optuna.cli import cli
from biotune_optuna.errors import StudyError
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.engines.base import engines, find_engine, url_for_others
from tests.kit.cli import fails


@pytest.fixture
def journal(tmp_path: Path) -> str:
    url = f"journal:///{tmp_path / 'study.log'}"
    open_storage(url).create_new_study([1], "s")  # type: ignore[list-item]
    return url


def test_an_engine_is_a_file() -> None:
    assert engines() == ["local", "ray", "slurm"]
    for name in engines():
        found, engine, address = find_engine(f"{name}://somewhere:1")
        assert (found, address) == (name, "somewhere:1")
        assert callable(engine.start)
        assert engine.OPTIONS


def test_an_unknown_engine_is_named(journal: str) -> None:
    said = fails("launch", "--storage", journal, "--on", "kubernetes")
    assert said == "there is no engine 'kubernetes'; give one of local, ray, slurm"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--partition", "gpu"],
            "--partition means nothing to --on local, which takes --devices, --per-device",
        ),
        (["--on", "ray", "--time", "4h"], "--time means nothing to --on ray, which takes"),
        (["--on", "slurm", "--devices", "cpu"], "--devices means nothing to --on slurm"),
        (["--on", "slurm", "--time", "30s"], "'30s' is too short for a job"),
        (["--on", "slurm", "--time", "4"], "'4' of what? Write 4s, 4m or 4h"),
        (["--on", "slurm", "--sbatch", "=lab"], "--sbatch '=lab' is not NAME=VALUE"),
    ],
)
def test_an_option_of_another_engine_is_refused(
    journal: str, options: list[str], said: str
) -> None:
    assert said in fails("launch", "--storage", journal, *options)


def test_a_file_of_one_machine_is_no_storage_for_several(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/a.db", "memory://"):
        with pytest.raises(StudyError, match="serves one machine only, and Ray starts workers on"):
            url_for_others(url, "Ray")
    postgres = "postgresql://me:abracadabra@db/studies"
    assert url_for_others(postgres, "Ray") == postgres


def test_a_journal_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert url_for_others("journal:///a.log", "Ray") == f"journal:///{tmp_path}/a.log"


# -- Slurm: what is printed is what would be submitted ---------------------------------------------


def script(journal: str, *options: str) -> list[str]:
    pytest.importorskip("submitit")
    given = ["launch", "--storage", journal, "--on", "slurm", "--dry-run", *options]
    done = CliRunner().invoke(cli, given)
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_the_script_of_an_array(
    journal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--workers", "20", "--partition", "gpu", "--time", "4:00:00", "--cpus-per-worker"]
    lines = script(journal, *options, "4", "--sbatch", "account=lab", "--sbatch", "exclusive")
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert lines[0] == "#!/bin/bash"
    assert asked >= {
        "array=0-19%20",
        "job-name=biotune-s",
        "partition=gpu",
        "time=240",
        "cpus-per-task=4",
        "gpus-per-node=1",
        "requeue",
        "signal=USR2@60",
        "account=lab",
        "exclusive",
        f"output={tmp_path}/biotune-slurm/%A_%a_0_log.out",
    }
    assert not list(tmp_path.glob("biotune-slurm/*"))
    assert "study.log" not in "\n".join(lines)  # the storage, which may hold a password


def test_no_gpu_is_asked_for_where_none_is_wanted(journal: str) -> None:
    assert not [line for line in script(journal, "--gpus-per-worker", "0") if "gpus" in line]


def test_no_name_of_a_study_is_a_line_of_the_script(tmp_path: Path) -> None:
    journal = f"journal:///{tmp_path / 'shared.log'}"
    open_storage(journal).create_new_study([1], "rosen ä\ntouch /tmp/x\n#")  # type: ignore[list-item]
    lines = script(journal)
    assert "#SBATCH --job-name=biotune-rosen-touch-tmp-x-" in lines
    assert not [line for line in lines if line.startswith("touch")]


def test_slurm_gives_whole_gpus(journal: str) -> None:
    said = fails("launch", "--storage", journal, "--on", "slurm", "--gpus-per-worker", "0.25")
    assert said == "--gpus-per-worker 0.25: Slurm gives whole GPUs to a job; give 1, or 0 for none"
