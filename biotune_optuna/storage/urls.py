"""Storage URLs: what a user may type, what it means, and how it is said without its password."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, quote_plus

from biotune_optuna.errors import StorageError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


DEFAULT_URL = "sqlite:///biotune.db"
ENVIRONMENT = "BIOTUNE_STORAGE"

_HIDDEN = "***"
_JOURNAL_SUFFIXES = (".log", ".jsonl", ".journal")
_SQLITE_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_POSTGRES, _MYSQL = ("psycopg", "psycopg2"), ("pymysql",)
_DRIVERS = {"postgresql": _POSTGRES, "postgres": _POSTGRES, "mysql": _MYSQL, "mariadb": _MYSQL}
"""Drivers of each dialect, the usual one first."""
_PACKAGES = {"psycopg": "psycopg[binary]", "pymysql": "pymysql"}
_FORMS = (
    "sqlite:///FILE.db, postgresql://USER@HOST/DATABASE, mysql://USER@HOST/DATABASE, "
    "grpc://HOST:PORT or journal:///FILE.log"
)
# A user part may hold anything but a slash; the password reaches to the last @ before the host.
_USER_INFO = re.compile(r"(?P<head>[A-Za-z][\w+.-]*://[^\s/:@]*):[^\s/]*@")
_QUERY_SECRET = re.compile(r"(?P<head>(?:pass|password|passwd|sslpassword)=)[^\s&'\"]+", re.I)

Kind = Literal["sqlite", "postgresql", "mysql", "grpc", "journal", "memory"]

_secrets: set[str] = set()


@dataclass(frozen=True, repr=False)
class StorageURL:
    """One storage, as opened.

    Attributes:
        kind: Family of the storage.
        url: What SQLAlchemy connects to, password included, or ``grpc://HOST:PORT``; "" for a
            journal or memory.
        path: The file of SQLite or of a journal, None otherwise.
        shown: The URL as it may be printed.
    """

    kind: Kind
    url: str
    path: Path | None
    shown: str

    def __repr__(self) -> str:
        return f"StorageURL({self.shown!r})"

    @property
    def place(self) -> str:
        """What messages call the storage: the file, or the URL without its password."""
        return str(self.path) if self.path is not None else self.shown


def parse_url(url: str | os.PathLike[str] | None = None) -> StorageURL:
    """Read a storage URL and take its password out of everything that is printed from now on.

    Args:
        url: A SQLAlchemy URL, ``grpc://HOST:PORT`` of a proxy, ``journal:///FILE``, ``memory://``,
            or the path of a SQLite
            (``.db``, ``.sqlite``) or journal (``.log``, ``.jsonl``) file, as text or ``Path``.
            Default: the environment variable ``BIOTUNE_STORAGE``, else ``sqlite:///biotune.db``.

    Raises:
        StorageError: This is no URL of a storage that can be used.
    """
    text = os.fspath(url or os.environ.get(ENVIRONMENT) or DEFAULT_URL).strip()
    scheme, mark, rest = text.partition("://")
    if not mark:
        return _parse_path(text)
    if scheme == "memory" or text in {"sqlite://", "sqlite:///:memory:"}:
        return StorageURL("memory", "", None, "memory://")
    if scheme == "journal":
        if not rest.strip("/"):
            raise StorageError("journal:// names no file; write journal:///path/to/study.log")
        return _journal(Path(rest[1:] if rest.startswith("/") else rest))
    if scheme == "grpc":
        return _parse_grpc(rest)
    return _parse_sql(text)


def default_artifact_dir(url: str | os.PathLike[str] | StorageURL | None) -> Path:
    """Where a storage's artifacts lie: beside an SQLite or journal file, else in the work folder.

    Args:
        url: The storage's URL as in `biotune_optuna.open_storage`.
    """
    path = (url if isinstance(url, StorageURL) else parse_url(url)).path
    return path.with_name(f"{path.stem}-artifacts") if path else Path("biotune-artifacts")


def _parse_grpc(rest: str) -> StorageURL:
    host, _, port = rest.rstrip("/").rpartition(":")
    good = re.fullmatch(r"[0-9]{1,5}", port) is not None and 0 < int(port) < 65536
    if not good or not re.fullmatch(r"[\w.-]+|\[[0-9A-Fa-f:.]+\]", host):
        raise StorageError(
            f"the storage URL {scrub(f'grpc://{rest}')} is no address of a proxy; write grpc://HOST:PORT,"
            " such as grpc://10.0.0.1:13000"
        )
    need_grpc()
    text = f"grpc://{host}:{int(port)}"
    return StorageURL("grpc", text, None, text)


def need_grpc() -> None:
    """Look whether gRPC is there.

    Raises:
        StorageError: It is not.
    """
    missing = [name for name in ("grpc", "google.protobuf") if not _is_there(name)]
    if missing:
        raise StorageError(
            "a proxy needs the packages grpcio and protobuf; install them with: "
            "pip install 'biotune-optuna[proxy]'"
        )


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what holds it
        return False


def _parse_path(text: str) -> StorageURL:
    path = Path(text)
    if path.suffix in _JOURNAL_SUFFIXES:
        return _journal(path)
    if path.suffix in _SQLITE_SUFFIXES:
        return _sqlite(path)
    raise StorageError(f"{scrub(text)!r} is no storage URL; write {_FORMS}")


def _journal(path: Path) -> StorageURL:
    return StorageURL("journal", "", path, f"journal:///{path}")


def _sqlite(path: Path) -> StorageURL:
    path = path.expanduser()
    # As it would have to be typed: a bare ? ends the file of a URL, and % begins a code.
    typed = str(path).replace("%", "%25").replace("?", "%3F")
    # Opened by the absolute path: a worker may change its folder.
    return StorageURL("sqlite", file_url(path.absolute()), path, f"sqlite:///{typed}")


def file_url(path: Path, **options: str) -> str:
    """Return what SQLAlchemy opens this SQLite file by, whatever its name holds.

    Args:
        path: The file.
        options: SQLite's own, such as ``mode="ro"``.
    """
    from sqlalchemy.engine import URL, make_url

    text = URL.create("sqlite", database=str(path)).render_as_string()
    if not options and make_url(text).database == str(path):  # SQLAlchemy 2.0 quotes nothing
        return text
    query = {**options, "uri": "true"}
    return URL.create("sqlite", database=f"file:{quote(str(path))}", query=query).render_as_string()


def _parse_sql(text: str) -> StorageURL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = make_url(text)
    except (SQLAlchemyError, ValueError):
        raise _unreadable(text) from None
    if url.get_backend_name() == "sqlite":
        where = _sqlite(Path(url.database or ""))
        given = url.set(database=str(where.path)).render_as_string()
        return replace(where, url=given) if url.query else where
    dialect, _, driver = url.drivername.partition("+")
    if dialect not in _DRIVERS or driver not in ("", *_DRIVERS[dialect]):
        raise StorageError(f"no storage of kind {scrub(url.drivername)!r} is known; write {_FORMS}")
    if "@" in f"{url.host}{url.database}":  # the end of a password that holds one
        raise _unreadable(text)
    url = _with_driver(url)
    _keep_secret(url)
    kind: Kind = "postgresql" if url.get_backend_name() == "postgresql" else "mysql"
    shown = scrub(url.render_as_string(hide_password=True))
    return StorageURL(kind, url.render_as_string(hide_password=False), None, shown)


def _unreadable(text: str) -> StorageError:
    # What cannot be parsed may hold a password anywhere: say nothing of it but the scheme.
    return StorageError(
        f"the storage URL {text.partition('://')[0]}://{_HIDDEN} cannot be read; write "
        f"{_FORMS}, special characters in the password as %XX"
    )


def _with_driver(url: URL) -> URL:
    dialect, _, driver = url.drivername.partition("+")
    driver = driver or _DRIVERS[dialect][0]
    try:
        __import__(driver)
    except ImportError:
        wanted = _PACKAGES.get(driver, driver)
        raise StorageError(
            f"{dialect} needs the package {driver}; install it with: pip install '{wanted}'"
        ) from None
    if dialect == "postgres":
        dialect = "postgresql"
    return url.set(drivername=f"{dialect}+{driver}")


def _keep_secret(url: URL) -> None:
    query = [v for k, values in url.normalized_query.items() if "pass" in k.lower() for v in values]
    for value in filter(None, [url.password, *query]):
        _secrets.update({value, quote(value, safe=""), quote_plus(value)})


def describe_url(url: str | os.PathLike[str] | None = None) -> str:
    """Return the storage URL as it may be shown: normalised, with the password hidden."""
    return parse_url(url).shown


def scrub(text: str) -> str:
    """Return ``text`` with every password replaced: those in URLs, and those seen so far."""
    text = _USER_INFO.sub(rf"\g<head>:{_HIDDEN}@", text)
    text = _QUERY_SECRET.sub(rf"\g<head>{_HIDDEN}", text)
    for secret in sorted(_secrets, key=len, reverse=True):
        # A password of one or two letters would turn every sentence into stars; the forms above
        # have hidden it where it stands as a password.
        if len(secret) > 2:
            text = text.replace(secret, _HIDDEN)
    return text


class ScrubFilter(logging.Filter):
    """Takes passwords out of log records, tracebacks included."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Scrub the record in place; never drop it."""
        message = record.getMessage()
        clean = scrub(message)
        if clean != message:
            record.msg, record.args = clean, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = scrub(logging.Formatter().formatException(record.exc_info))
        return True


_FILTER = ScrubFilter()
_FILTERED = (
    "optuna",
    "optuna.storages._rdb.storage",
    "optuna.storages._heartbeat",
    "optuna.study._optimize",
    "optuna.study._tell",
    "sqlalchemy.engine.Engine",
    "sqlalchemy.pool",
    "sqlalchemy.pool.impl.QueuePool",
    "biotune_optuna",
)


def scrub_logs() -> None:
    """Scrub what Optuna, SQLAlchemy and this package log (a logger's filter skips its children)."""
    for name in _FILTERED:
        logging.getLogger(name).addFilter(_FILTER)
    for name in ("optuna", "biotune_optuna"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_FILTER)
