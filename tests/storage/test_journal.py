"""Journal files: other files are left alone, and a damaged one is named."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import TrialState

from biotune_optuna.errors import StorageError
from biotune_optuna.storage.journal import JournalFile
from biotune_optuna.storage.open import open_storage

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


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
