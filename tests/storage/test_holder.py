"""Holders name processes for good and know a dead one on the same machine."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys

import pytest

from biotune_optuna.storage.holder import Holder, current_holder

_SAY_HOLDER = (
    "from biotune_optuna.storage.holder import current_holder;"
    "print(current_holder().to_str(), flush=True); input()"
)


def test_text_round_trip_even_with_separators_in_the_host_name() -> None:
    holder = Holder("odd:host name%", "boot", "4026531836", 17, 4711)
    assert Holder.from_str(holder.to_str()) == holder
    assert " " not in holder.to_str()


@pytest.mark.parametrize("text", ["", "a:b", "a:b:c:d:e", "a:b:c:1:2:3"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Holder.from_str(text)


def test_a_killed_process_is_dead_and_a_living_one_is_not() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SAY_HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        holder = Holder.from_str(child.stdout.readline().strip())
        assert holder.pid == child.pid
        assert holder != current_holder()
        assert holder.is_dead() is False
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # still a zombie
        assert holder.is_dead() is True
    assert holder.is_dead() is True


def test_a_reused_process_id_is_another_holder() -> None:
    mine = current_holder()
    assert mine.is_dead() is False
    assert dataclasses.replace(mine, started=mine.started - 1).is_dead() is True


@pytest.mark.parametrize(
    ("error", "gone", "dead"),
    [
        (FileNotFoundError, False, None),  # /proc hides the processes of others
        (FileNotFoundError, True, True),
        (PermissionError, False, None),
        (OSError, False, None),  # too many open files
        (OSError, True, None),
    ],
)
def test_a_process_that_cannot_be_looked_at_is_not_called_dead(
    error: type[OSError], gone: bool, dead: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = current_holder()

    def fail(*_args: object) -> str:
        raise error

    def kill(_pid: int, _number: int) -> None:
        if gone:
            raise ProcessLookupError
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.read_text", fail)
    monkeypatch.setattr(os, "kill", kill)
    assert mine.is_dead() is dead


@pytest.mark.parametrize("field", ["host", "boot_id", "pid_namespace"])
def test_elsewhere_nothing_is_known(field: str) -> None:
    other = dataclasses.replace(current_holder(), **{field: "elsewhere"}, pid=1)
    assert other.is_dead() is None


def test_without_proc_only_oneself_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Holder("host", "", "", 5, 0)
    assert bare.is_dead() is None
    monkeypatch.setattr("biotune_optuna.storage.holder.current_holder", lambda: bare)
    assert bare.is_dead() is False


def test_a_fork_is_another_holder() -> None:
    parent = current_holder()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, current_holder().to_str().encode())
        os._exit(0)
    os.waitpid(child, 0)
    forked = Holder.from_str(os.read(read, 1000).decode())
    assert forked.pid == child
    assert forked != parent
