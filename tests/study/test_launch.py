"""One process per device: started again when it dies, stopped with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING

import pytest

from biotune_optuna.errors import LostDeviceError, StorageError, StudyError
from biotune_optuna.finetune.sharing import sharers
from biotune_optuna.study import launch as module
from biotune_optuna.study.launch import launch
from biotune_optuna.study.stop import StopRequest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.02)


def script(path: Path, body: str, *, before: str = "") -> list[str]:
    """Write a stand-in for ``biotune worker``: appends its device to a file, then does ``body``."""
    file = path / "worker.py"
    head = """
        import os, signal, sys, time
        device = sys.argv[sys.argv.index("--device") + 1]
        """
    told = f"""
        with open({str(path / "starts")!r}, "a") as file:
            print(device, os.getpid(), os.environ.get("BIOTUNE_STORAGE"), *sys.argv[1:], file=file)
        n = open({str(path / "starts")!r}).read().count("--device " + device)
        """
    file.write_text("".join(map(textwrap.dedent, (head, before, told, body))))
    return [sys.executable, str(file)]


def starts(path: Path) -> list[list[str]]:
    file = path / "starts"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def launch_elsewhere(command: list[str]) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from biotune_optuna.study.launch import launch;"
        f"sys.exit(launch('s', devices=['a'], command={command!r}))"
    )
    return subprocess.Popen([sys.executable, "-c", code])


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def until(condition: object, seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def test_one_worker_per_device_with_the_storage_in_its_environment(tmp_path: Path) -> None:
    code = launch(
        "flowers",
        storage="postgresql://me:abracadabra@host/db",
        devices=["cuda:0", "cuda:1"],
        arguments=["--data", "/here"],
        command=script(tmp_path, ""),
    )
    assert code == 0
    found = sorted(starts(tmp_path))
    assert [one[0] for one in found] == ["cuda:0", "cuda:1"]
    for device, _pid, storage, *arguments in found:
        assert storage == "postgresql://me:abracadabra@host/db"
        assert arguments == ["--study", "flowers", "--device", device, "--data", "/here"]


def test_a_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    body = """
        if device == "a" and n < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        """
    assert launch("s", devices=["a", "b"], command=script(tmp_path, body)) == 0
    devices = [one[0] for one in starts(tmp_path)]
    assert (devices.count("a"), devices.count("b")) == (3, 1)


@pytest.mark.parametrize("code", [1, LostDeviceError.exit_code])
def test_a_worker_that_keeps_dying_is_given_up(tmp_path: Path, code: int) -> None:
    assert launch("s", devices=["a"], command=script(tmp_path, f"sys.exit({code})")) == code
    assert len(starts(tmp_path)) == 5


def test_a_mistake_of_the_user_is_not_repeated(tmp_path: Path) -> None:
    assert launch("s", devices=["a"], command=script(tmp_path, "sys.exit(2)")) == 2
    assert len(starts(tmp_path)) == 1


def test_a_stop_asks_the_workers_once_and_waits_for_them(tmp_path: Path) -> None:
    ready_to_stop = f"""
        def asked(number, frame):
            with open({str(tmp_path / "asked")!r}, "a") as file:
                print(device, file=file)
            time.sleep(0.5)
            sys.exit(130)
        signal.signal(signal.SIGTERM, asked)
        """
    command = script(tmp_path, "time.sleep(60)", before=ready_to_stop)
    stop = StopRequest()
    thread = threading.Thread(
        target=lambda: (until(lambda: len(starts(tmp_path)) == 2), stop.request())
    )
    thread.start()
    assert launch("s", devices=["a", "b"], command=command, stop=stop) == 130
    thread.join()
    assert sorted((tmp_path / "asked").read_text().split()) == ["a", "b"]
    assert all(gone(int(one[1])) for one in starts(tmp_path))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_workers_stop_when_the_launcher_is_killed(tmp_path: Path) -> None:
    command = script(tmp_path, "time.sleep(60)")
    launcher = launch_elsewhere(command)
    assert until(lambda: starts(tmp_path))
    launcher.kill()
    launcher.wait()
    pid = int(starts(tmp_path)[0][1])
    assert until(lambda: gone(pid))


def test_interrupting_the_launcher_ends_everything(tmp_path: Path) -> None:
    command = script(tmp_path, "time.sleep(60)")
    launcher = launch_elsewhere(command)
    assert until(lambda: starts(tmp_path))
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(20) == 130
    assert gone(int(starts(tmp_path)[0][1]))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(StudyError, match="no device"):
        launch("s", devices=[])
    with pytest.raises(StudyError, match="per_device 0 starts no worker"):
        launch("s", devices=["a"], per_device=0)
    with pytest.raises(StorageError):
        launch("s", storage="nonsense", devices=["a"])


def test_several_workers_share_a_device_and_divide_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "_cores", lambda: 9)
    told = f"""
        with open({str(tmp_path / "told")!r}, "a") as file:
            print(device, os.environ["OMP_NUM_THREADS"], os.environ[{module.SHARING!r}], file=file)
        """
    command = script(tmp_path, told)
    assert launch("s", devices=["a", "b"], per_device=2, command=command) == 0
    assert sorted((tmp_path / "told").read_text().splitlines()) == ["a 2 2"] * 2 + ["b 2 2"] * 2
    (tmp_path / "told").unlink()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert launch("s", devices=["a", "a", "b"], command=command) == 0
    assert sorted((tmp_path / "told").read_text().splitlines()) == ["a 7 2"] * 2 + ["b 7 1"]


def test_workers_that_share_a_gpu_are_told_of_mps_where_it_does_not_run(tmp_path: Path) -> None:
    here = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    assert "nvidia-cuda-mps-control -d" in module._mps_hint({"cuda:0": 4}, here)
    assert module._mps_hint({"cuda:0": 1, "cuda:1": 1, "cpu": 2}, here) == ""
    (tmp_path / "control").touch()
    assert module._mps_hint({"cuda:0": 4}, here) == ""


@pytest.mark.parametrize(("said", "found"), [("", 1), ("4", 4), ("0", 1), ("many", 1)])
def test_a_worker_knows_how_many_share_its_device(
    monkeypatch: pytest.MonkeyPatch, said: str, found: int
) -> None:
    monkeypatch.setenv(module.SHARING, said)
    assert sharers() == found


def test_all_devices_are_those_that_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert module.all_devices() == ["mps"]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert module.all_devices() == ["cpu"]
