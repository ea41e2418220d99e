"""From a URL to an Optuna storage that survives."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from optuna.storages import InMemoryStorage

from biotune_optuna.errors import StorageError
from biotune_optuna.storage.database import Cached, Database, engine_settings, reading
from biotune_optuna.storage.journal import Journal, JournalFile, check_journal
from biotune_optuna.storage.resilient import ResilientStorage
from biotune_optuna.storage.retry import RetryPolicy
from biotune_optuna.storage.urls import (
    StorageURL,
    describe_url,
    file_url,
    parse_url,
    scrub,
    scrub_logs,
)

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage

    from biotune_optuna.storage.proxy import Proxied

__all__ = ["describe_url", "keep_user_attr", "open_storage", "scrub"]

_logger = logging.getLogger(__name__)

# Opening is retried for a worker that starts before its database, not for a mistyped host name.
_OPENING_SECONDS = 60.0
_NETWORK_FILE_SYSTEMS = (
    *("nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "ncpfs", "lustre", "gpfs"),
    *("beegfs", "beegfs_nodev", "ceph", "glusterfs", "9p", "afs", "ocfs2", "orangefs", "panfs"),
    *("pvfs2", "wekafs", "virtiofs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs"),
    *("fuse.gcsfuse", "fuse.rclone", "fuse.juicefs"),
)
_CREATION_RACES = ("already exists", "duplicate key", "UNIQUE constraint", "Duplicate entry")


def open_storage(
    url: str | os.PathLike[str] | None = None,
    *,
    retry_seconds: float = 300.0,
    create: bool = True,
    read_only: bool = False,
) -> ResilientStorage:
    """Open the storage of studies, for use with any Optuna study.

    Args:
        url: ``sqlite:///FILE.db`` (relative to the working directory; four slashes for an absolute
            path), ``postgresql://USER@HOST/DATABASE``, ``mysql://USER@HOST/DATABASE``,
            ``grpc://HOST:PORT`` of a ``biotune proxy``, ``journal:///FILE.log``, or just a ``.db``
            or ``.log`` file, as text or ``Path``. A password may stand in the URL or in
            ``~/.pgpass``. Default: the environment variable ``BIOTUNE_STORAGE``, else
            ``sqlite:///biotune.db``.
        retry_seconds: For how long each call is retried while the storage cannot be reached.
        create: Create the database file and its tables where there are none.
        read_only: Refuse all writes, in the database itself; implies ``create=False``. An SQLite
            file at rest in a folder that may not be written is read as it is: open it anew to see
            what others write later.

    Returns:
        A storage to give to ``optuna.create_study(storage=…)`` and its kind.

    Raises:
        StorageError: The storage cannot be opened; one line says why and what to do.
    """
    where = parse_url(url)
    scrub_logs()
    create = create and not read_only
    if where.path is not None:
        _check_path(where, where.path, create=create, read_only=read_only)
    opening = min(retry_seconds, _OPENING_SECONDS)
    database: Database | Proxied | None = None
    backend: BaseStorage
    if where.kind == "memory":
        backend = InMemoryStorage()
    elif where.kind == "journal":
        assert where.path is not None
        file = str(where.path.absolute())  # a worker may change its folder
        policy = RetryPolicy(where.place, seconds=opening)
        backend = policy.call(lambda _: Journal(JournalFile(file)))
    elif where.kind == "grpc":
        backend = database = _open_proxied(where, seconds=opening)
    else:
        opened = _open_database(where, seconds=opening, create=create, read_only=read_only)
        database, backend = opened, Cached(opened)
    return ResilientStorage(
        backend, url=where, database=database, retry_seconds=retry_seconds, read_only=read_only
    )


def keep_user_attr(study: optuna.Study, key: str, value: Any) -> Any:
    """Set a user attribute of a study unless it has one; return what it has then.

    Of several workers that do so in the same moment one is the first; on a storage that is not from
    :func:`open_storage` they must not.
    """
    kept = study.user_attrs
    if key in kept:
        return kept[key]
    if isinstance(study._storage, ResilientStorage):
        return study._storage.keep_study_user_attr(study._study_id, key, value)
    study.set_user_attr(key, value)
    return study.user_attrs[key]


def _open_proxied(where: StorageURL, *, seconds: float) -> Proxied:
    from biotune_optuna.storage.proxy import connect

    host, _, port = where.url.removeprefix("grpc://").rpartition(":")
    return RetryPolicy(where.place, seconds=seconds).call(lambda _: connect(host, int(port)))


# -- files


def _check_path(where: StorageURL, path: Path, *, create: bool, read_only: bool) -> None:
    folder = path.absolute().parent
    if path.is_dir():
        raise StorageError(f"{path} is a folder; give a file in it, such as {path / 'biotune.db'}")
    if not folder.is_dir():
        raise StorageError(f"{path} cannot be created: make the folder {folder} first")
    if not path.exists():
        if not create:
            raise StorageError(f"{path} does not exist; give --storage, such as sqlite:///study.db")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StorageError(f"{path} cannot be created: the folder {folder} is not writable")
    elif not os.access(path, os.R_OK):
        raise StorageError(f"{path} cannot be read; check its owner and permissions")
    elif not read_only and not os.access(path, os.W_OK):
        raise StorageError(f"{path} cannot be written; check its owner and permissions")
    if where.kind == "sqlite":
        _check_sqlite(path)
    else:
        check_journal(path)


def _check_sqlite(path: Path) -> None:
    if path.exists() and not _is_database(path):
        raise StorageError(
            f"{path} is not an SQLite database; it was left as it is, give another file"
        )
    if is_on_network(path):
        _logger.warning(
            "%s is on a network file system, where SQLite's locks cannot be relied upon: use it "
            "from one host only; for several use PostgreSQL, or journal:///FILE.log",
            path,
        )


def _is_database(path: Path) -> bool:
    """Ask SQLite itself.

    Opening the file in any other way would, when it is closed, drop all locks that this process
    holds on it through other connections, and another process could then overwrite their pages
    (SQLite, "How to corrupt", Sec. 2.2).
    """
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        return error.sqlite_errorcode != sqlite3.SQLITE_NOTADB
    return True


def is_on_network(path: Path, *, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Say whether the file lies, or would lie, on a network file system."""
    target = str(path.absolute().parent.resolve())
    longest, kind = "", ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        if (target == point or target.startswith(point.rstrip("/") + "/")) and len(point) >= len(
            longest
        ):
            longest, kind = point, right.split()[0]
    return kind in _NETWORK_FILE_SYSTEMS


# -- databases


def _open_database(where: StorageURL, *, seconds: float, create: bool, read_only: bool) -> Database:
    network = where.path is not None and is_on_network(where.path)
    url = where.url
    if where.kind == "sqlite" and read_only:
        assert where.path is not None
        options = {"mode": "ro"}
        closed = not network and not os.access(where.path.parent, os.W_OK)
        if closed and not Path(f"{where.path}-wal").exists():
            options["immutable"] = "1"  # SQLite would make its files for readers beside it
        url = file_url(where.path.absolute(), **options)
    settings = engine_settings(where, read_only=read_only, network=network)
    policy = RetryPolicy(where.place, seconds=seconds)
    # Optuna fills in {SCHEMA_VERSION}; a brace in a password is none of its business.
    escaped = url.replace("{", "{{").replace("}", "}}")

    def build(_attempt: int) -> Database:
        # Optuna checks the schema on a second connection while the first is in a transaction, so
        # neither may take the write lock beforehand.
        with reading():
            return Database(escaped, engine_kwargs=dict(settings), skip_table_creation=not create)

    for trial in range(20):
        try:
            return policy.call(build)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001  (told below, without its chain)
            problem = _explain(error, where)
            racing = any(text in str(error) for text in _CREATION_RACES)
        if not racing:
            break
        time.sleep(0.05 * (trial + 1))  # several workers create the tables at once
    raise StorageError(problem)


def _explain(error: Exception, where: StorageURL) -> str:
    text = str(error)
    if "storage upgrade" in text:
        return (
            f"{where.place} was written by an older Optuna; upgrade it with: "
            f"optuna storage upgrade --storage '{where.shown}'"
        )
    if "latest version" in text:
        return f"{where.place} was written by a newer Optuna; run: pip install -U optuna"
    if "does not exist" not in text:
        reason = scrub(text).splitlines()[0][:300] if text else type(error).__name__
        return f"{where.place} cannot be opened: {reason}"
    return f"{where.place} holds no studies yet; start one with: biotune tune"
