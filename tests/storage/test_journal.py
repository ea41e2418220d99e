"""Journal files: other files are left alone, and a damaged one is named."""

from __future__ import annotations

import multiprocessing
import os
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import TrialState

from biotune_optuna.errors import StorageError
from biotune_optuna.storage import journal
from biotune_optuna.storage.journal import JournalFile
from biotune_optuna.storage.open import open_storage

if TYPE_CHECKING:
    from pathlib import Path


def objective(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


def test_a_journal_outlives_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    study = optuna.create_study(study_name="s", storage=open_storage(str(path)))
    study.optimize(objective, n_trials=2)
    with path.open("ab") as file:
        file.write(b'{"op_code": 4, "worker_')  # its writer was killed here
    again = optuna.load_study(study_name="s", storage=open_storage(str(path)))
    again.optimize(objective, n_trials=1)
    last = optuna.load_study(study_name="s", storage=open_storage(str(path)))
    assert len(last.trials) == 3


class Nobodys(BaseJournalFileLock):
    """A lock that is always free: the others have taken it away."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        raise RuntimeError("Error: did not possess lock")


RECORDS = [{"op_code": 0, "worker_id": name} for name in ("first", "other", "late")]


@pytest.mark.parametrize("begun", [b"", b'{"op_code": 4, "wor', b'{"op_code":4,"worker_id":"x"}'])
@pytest.mark.parametrize(
    "held_up", ["before looking", "before blanking", "before writing", "after"]
)
def test_a_writer_that_is_held_up_overwrites_nothing(
    tmp_path: Path, begun: bytes, held_up: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.log"
    JournalFile(str(path)).append_logs(RECORDS[:1])
    with path.open("ab") as file:
        file.write(begun)
    blank = journal._blank_partial_line

    def others_write() -> None:
        monkeypatch.setattr(journal, "_blank_partial_line", blank)
        JournalFile(str(path), Nobodys()).append_logs(RECORDS[1:2])

    class HeldUp:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, content: bytes) -> int:
            others_write()
            return int(self.file.write(content))

    def blank_late(file: Any) -> None:
        if held_up == "before looking":
            others_write()
        blank(HeldUp(file) if held_up == "before blanking" else file)
        if held_up == "before writing":
            others_write()

    monkeypatch.setattr(journal, "_blank_partial_line", blank_late)
    late = JournalFile(str(path), Nobodys())
    late.append_logs(RECORDS[2:])
    if held_up == "after" or (held_up == "before blanking" and not begun):
        others_write()
    found = list(JournalFile(str(path)).read_logs(0))
    assert sorted(record["worker_id"] for record in found) == ["first", "late", "other"]
    plain = JournalFileBackend(str(path))  # what another program reads
    assert list(plain.read_logs(0)) == found


def test_a_disk_that_fills_within_a_record_costs_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.log"
    file = JournalFile(str(path))
    file.append_logs(RECORDS[:1])
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda handle, content: write(handle, content[:9]))
        with pytest.raises(OSError, match="No space left"):
            file.append_logs(RECORDS[1:2])
    file.append_logs(RECORDS[2:])
    assert list(file.read_logs(0)) == [RECORDS[0], RECORDS[2]]


def test_of_two_first_values_the_earlier_one_stands(tmp_path: Path) -> None:
    path = str(tmp_path / "study.log")
    one, other = open_storage(path)._backend, open_storage(path)._backend
    assert isinstance(one, journal.Journal)
    assert isinstance(other, journal.Journal)
    study_id = one.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "s")
    write = one._write_log

    def write_late(op_code: int, fields: dict[str, Any]) -> None:
        one._write_log = write  # type: ignore[method-assign]
        one._file._lock.release()  # taken away, as of a suspended process
        assert other.keep_study_user_attr(study_id, "key", "theirs") == "theirs"
        write(op_code, fields)

    one._write_log = write_late  # type: ignore[method-assign]
    assert one.keep_study_user_attr(study_id, "key", "ours") == "theirs"
    assert open_storage(path).get_study_user_attrs(study_id) == {"key": "theirs"}


class StoppedWriter(BaseJournalFileLock):
    """A lock that is next held by a writer which is killed within its line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        with self.path.open("ab") as file:
            file.write(b'{"op_code": 4, "wor')


def test_no_writer_comes_between_the_cut_and_the_next_line(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    file = JournalFile(str(path), StoppedWriter(path))
    records = [{"op_code": 0, "worker_id": "é"}, {"op_code": 1, "worker_id": "a" * 5000}]
    for record in records:
        file.append_logs([record])
    file.append_logs(records)
    assert list(file.read_logs(0)) == 2 * records


def test_a_queued_trial_is_taken_by_one_of_the_children(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "study.log"))
    study = optuna.create_study(study_name="s", storage=storage)
    study.enqueue_trial({"x": 0.5})
    context = multiprocessing.get_context("fork")
    seen_free, taken = context.Event(), context.Event()
    answers = context.SimpleQueue()

    def take(name: str) -> None:
        answers.put((name, storage.set_trial_state_values(0, TrialState.RUNNING)))

    def take_first() -> None:
        assert seen_free.wait(60)
        take("first")
        taken.set()

    def take_late() -> None:
        file = storage._backend._backend
        append = file.append_logs

        def append_late(logs: list[dict[str, Any]]) -> None:
            seen_free.set()
            assert taken.wait(60)
            append(logs)

        file.append_logs = append_late
        take("late")

    children = [context.Process(target=target) for target in (take_first, take_late)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert dict([answers.get(), answers.get()]) == {"first": True, "late": False}


def test_a_child_forked_from_a_writer_locks_for_itself(tmp_path: Path) -> None:
    journal = open_storage(str(tmp_path / "study.log"))._backend
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put(journal._file._is_locked))
    with journal._file.alone():
        assert journal._file._is_locked
        child.start()
    child.join()
    assert answers.get() is False


@pytest.mark.parametrize(
    "content",
    [
        b"all my notes in one line",
        b"{}",
        b"first line\nsecond line\n",
        b'{"level": "info"}\n{"level": "warning"}\n',
        b"[1, 2]\nnull\n",
        b"\n",
        b"\xff\xfe binary \x00\n\xff\n",
        b'{"op_code" is what I wrote about\n',
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_another_file_is_left_as_it_is(tmp_path: Path, content: bytes, *, read_only: bool) -> None:
    path = tmp_path / "notes.log"
    path.write_bytes(content)
    with pytest.raises(StorageError) as caught:
        open_storage(str(path), read_only=read_only)
    assert str(caught.value) == (
        f"{path} is no journal of Optuna; it is left as it is; give another file"
    )
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b'{"op', b'{"op_code":0,"worker_id":"a'])
def test_a_journal_whose_first_record_was_cut_short_is_used(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(content)
    study = optuna.create_study(study_name="s", storage=open_storage(str(path)))
    study.optimize(objective, n_trials=1)
    assert len(optuna.load_study(study_name="s", storage=open_storage(str(path))).trials) == 1


@pytest.mark.parametrize(
    "line", [b"spoiled\n", b"\xff\xfe\n", b"{}\n", b"null\n", b'{"op_code": 4}\n']
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "study.log"
    optuna.create_study(study_name="s", storage=open_storage(str(path)))
    lines = path.read_bytes().splitlines(keepends=True)
    content = b"".join([lines[0], line, lines[0]])
    path.write_bytes(content)
    with pytest.raises(StorageError) as caught:
        open_storage(str(path))
    assert f"{path} is damaged: line 2 is no record" in str(caught.value)
    assert path.read_bytes() == content
