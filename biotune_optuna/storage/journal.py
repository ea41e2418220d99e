"""A journal file of Optuna's: told from other files, and mended where a writer was stopped."""

from __future__ import annotations

import json
import os
import sys
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.storages.journal._file import get_lock_file
from optuna.storages.journal._storage import JournalOperation

from biotune_optuna.errors import StorageError

if TYPE_CHECKING:
    from io import BufferedRandom
    from typing import Any

    from optuna.storages.journal._file import BaseJournalFileLock


_RECORD_BEGINS = b'{"op_code"'


def check_journal(path: Path) -> None:
    """Refuse a file that something else than a journal has been written to.

    Raises:
        StorageError: The first line is no record of a journal, nor the beginning of one.
    """
    if path.is_file() and not _is_journal(path):
        raise StorageError(
            f"{path} is no journal of Optuna; it is left as it is; give another file"
        )


def _is_journal(path: Path) -> bool:
    with path.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):  # an empty file, or a first record cut short
        return line.startswith(_RECORD_BEGINS) or _RECORD_BEGINS.startswith(line)
    try:
        return _has_operation(json.loads(line))
    except (ValueError, RecursionError):
        return False


def _has_operation(record: object) -> bool:
    return isinstance(record, dict) and {"op_code", "worker_id"} <= record.keys()


class JournalFile(JournalFileBackend):
    """A journal that outlives a writer which was stopped, or ran out of disk, within a line."""

    _is_locked = False

    def __init__(self, file_path: str, lock: BaseJournalFileLock | None = None) -> None:
        if lock is None and sys.platform == "win32":
            # Optuna's own choice is a symbolic link, which not everybody may make there.
            lock = JournalFileOpenLock(file_path)
        super().__init__(file_path, lock)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within the block nobody else appends records; not for two threads at a time."""
        with get_lock_file(self._lock):
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the records from this number on.

        Raises:
            StorageError: A line is no record.
        """
        records = super().read_logs(log_number_from)
        number = log_number_from
        while True:
            number += 1
            record: Any = None
            try:
                record = next(records)
            except StopIteration:
                return
            except (ValueError, RecursionError):  # no JSON, or no text at all
                pass
            if not _has_operation(record):
                raise StorageError(
                    f"{self._file_path} is damaged: line {number} is no record of a journal; "
                    "remove that line, or give another file"
                )
            yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, after what a stopped writer left of its last one is cut off."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        lock = nullcontext() if self._is_locked else get_lock_file(self._lock)
        with lock, Path(self._file_path).open("rb+") as file:
            _cut_partial_line(file)
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())


def _cut_partial_line(file: BufferedRandom) -> None:
    """Leave the file after its last whole line, and cut it there.

    Whoever wrote the rest never saw it succeed; the next line, joined to it, would make the whole
    journal unreadable.
    """
    end = file.seek(0, os.SEEK_END)
    at = end
    while at > 0:
        at = max(0, at - 4096)
        file.seek(at)
        newline = file.read(min(4096, end - at)).rfind(b"\n")
        if newline >= 0:
            at += newline + 1
            break
    file.seek(at)
    if at < end:
        file.truncate()


class Journal(JournalStorage):
    """A journal whose users in forked processes are workers of their own.

    Who has taken a queued trial is told by worker ids, which a forked child shares with its parent
    and its siblings: all of them would take it.
    """

    def __init__(self, file: JournalFile) -> None:
        super().__init__(file)
        self._file = file
        _journals.add(self)

    def keep_study_user_attr(self, study_id: int, key: str, value: Any) -> Any:
        """Set a user attribute of a study unless it has one; return what it has then."""
        with self._thread_lock, self._file.alone():
            self._sync_with_backend()
            kept = self._replay_result.get_study(study_id).user_attrs
            if key not in kept:
                log = {"study_id": study_id, "user_attr": {key: value}}
                self._write_log(JournalOperation.SET_STUDY_USER_ATTR, log)
                self._sync_with_backend()
                kept = self._replay_result.get_study(study_id).user_attrs
            return kept[key]

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._file._is_locked = False  # by a thread of the process that this one was forked from
        _journals.add(self)


_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for journal in tuple(_journals):
        journal.__setstate__(journal.__getstate__())  # a new id, and a lock that nobody holds


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)
