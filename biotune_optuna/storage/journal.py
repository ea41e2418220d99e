"""A journal file of Optuna's: told from other files, and mended where a writer was stopped."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.storages.journal._storage import JournalOperation

from biotune_optuna.errors import StorageError

if TYPE_CHECKING:
    from io import BufferedRandom
    from typing import Any

    from optuna.storages.journal._file import BaseJournalFileLock


_logger = logging.getLogger(__name__)

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
    if not line.endswith(b"\n"):  # an empty file, or a first record cut short, perhaps blanked
        line = line.lstrip(b" ")
        return line.startswith(_RECORD_BEGINS) or _RECORD_BEGINS.startswith(line)
    try:
        return _has_operation(json.loads(line))
    except (ValueError, RecursionError):
        return False


def _has_operation(record: object) -> bool:
    return isinstance(record, dict) and {"op_code", "worker_id"} <= record.keys()


class JournalFile(JournalFileBackend):
    """A journal that outlives a writer which was stopped, or ran out of disk, within a line.

    The lock of Optuna's is taken away from whoever holds it for 30 seconds, as a worker does that
    is suspended. So nothing here relies on it: records are appended by one call to the system,
    which puts them at the end of the file whoever else writes, and the beginning of a line that was
    never finished is overwritten with spaces, which does no harm when it is done late, or twice.
    (On NFS, whose clients append to an end that they remember, the lock is needed all the same.)
    """

    _is_locked = False

    def __init__(self, file_path: str, lock: BaseJournalFileLock | None = None) -> None:
        if lock is None and sys.platform == "win32":
            # Optuna's own choice is a symbolic link, which not everybody may make there.
            lock = JournalFileOpenLock(file_path)
        super().__init__(file_path, lock)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within the block nobody else appends records; not for two threads at a time."""
        with self._locked():
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            yield
        finally:
            try:
                self._lock.release()
            except RuntimeError:  # others took it away meanwhile
                _logger.warning(
                    "%s: this process was held up for so long that others went on without it",
                    self._file_path,
                )

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
        """Append records, after what a stopped writer left of its last one is blanked."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with nullcontext() if self._is_locked else self._locked():
            with Path(self._file_path).open("rb+") as file:
                _blank_partial_line(file)
            handle = os.open(
                self._file_path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)
            )
            try:
                if os.write(handle, lines) < len(lines):
                    # What is missing must not be written later, when others may have written.
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            finally:
                os.close(handle)


def _blank_partial_line(file: BufferedRandom) -> None:
    """Overwrite what follows the last whole line of a file with spaces.

    Whoever wrote it never saw it succeed; the next record, joined to it, would make the whole
    journal unreadable. Joined to spaces it is a line of JSON like any other.
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
    if at < end:
        file.seek(at)
        file.write(b" " * (end - at))


class Journal(JournalStorage):
    """A journal whose users in forked processes are workers of their own.

    Who has taken a queued trial is told by worker ids, which a forked child shares with its parent
    and its siblings: all of them would take it.
    """

    def __init__(self, file: JournalFile) -> None:
        try:
            super().__init__(file)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            # As of a record that is JSON and yet says nothing that Optuna writes.
            raise StorageError(
                f"{file._file_path} is damaged: a record of it cannot be understood"
                f" ({type(error).__name__}); it is left as it is; give another file"
            ) from None
        self._file = file
        _journals.add(self)

    def keep_study_user_attr(self, study_id: int, key: str, value: Any) -> Any:
        """Set a user attribute of a study unless it has one; return what it has then."""
        with self._thread_lock, self._file.alone():
            self._sync_with_backend()
            kept = self._replay_result.get_study(study_id).user_attrs
            if key in kept:
                return kept[key]
            known = self._replay_result.log_number_read
            self._set(study_id, key, value)
            # Held up in between, this process may have lost the lock and be the second.
            first = next(
                attrs[key]
                for record in self._file.read_logs(known)
                if record["op_code"] == JournalOperation.SET_STUDY_USER_ATTR
                and record["study_id"] == study_id
                and key in (attrs := record["user_attr"])
            )
            if first != self._replay_result.get_study(study_id).user_attrs[key]:
                self._set(study_id, key, first)
            return first

    def _set(self, study_id: int, key: str, value: Any) -> None:
        log = {"study_id": study_id, "user_attr": {key: value}}
        self._write_log(JournalOperation.SET_STUDY_USER_ATTR, log)
        self._sync_with_backend()

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
