"""Storage URLs are understood, and their passwords are never shown."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest

from biotune_optuna.errors import StorageError
from biotune_optuna.storage.open import open_storage
from biotune_optuna.storage.urls import describe_url, parse_url, scrub, scrub_logs

SECRET = "s3cr:t@/%"  # needs quoting in a URL
QUOTED = "s3cr%3At%40%2F%25"


@pytest.mark.parametrize(
    ("url", "kind", "path", "shown"),
    [
        ("sqlite:///a/b.db", "sqlite", "a/b.db", "sqlite:///a/b.db"),
        ("sqlite:////a/b.db", "sqlite", "/a/b.db", "sqlite:////a/b.db"),
        ("studies/b.db", "sqlite", "studies/b.db", "sqlite:///studies/b.db"),
        ("journal:///a.log", "journal", "a.log", "journal:///a.log"),
        ("journal:////a.log", "journal", "/a.log", "journal:////a.log"),
        ("run.jsonl", "journal", "run.jsonl", "journal:///run.jsonl"),
        ("memory://", "memory", None, "memory://"),
        ("sqlite:///:memory:", "memory", None, "memory://"),
        ("postgresql://me@h:5/d", "postgresql", None, "postgresql+psycopg://me@h:5/d"),
        ("postgres://me@h/d", "postgresql", None, "postgresql+psycopg://me@h/d"),
    ],
)
def test_forms(url: str, kind: str, path: str | None, shown: str) -> None:
    parsed = parse_url(url)
    assert parsed.kind == kind
    assert parsed.path == (None if path is None else Path(path))
    assert parsed.shown == shown == describe_url(url)


def test_default_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIOTUNE_STORAGE", raising=False)
    assert parse_url().shown == "sqlite:///biotune.db"
    monkeypatch.setenv("BIOTUNE_STORAGE", "elsewhere.db")
    assert parse_url().shown == "sqlite:///elsewhere.db"
    assert parse_url("mine.db").shown == "sqlite:///mine.db"


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "journal://",
        "oracle://u:hunter22@h/d",
        "postgresql://u:hunter22@h:port/d",
        "postgres://u:hunt@er22:x@h:y/d",
        "postgresql+pg8000://u:hunter22@h/d",
        "mysql+mysqldb://u:hunter22@h/d",
        "mariadb+mysqlconnector://u:hunter22@h/d",
        "postgresql://u:hunt@er22@h/d",
        "mysql://u:hunt@er22@h/d",
        "postgresql://u:hu@nt/er22@h/d",
    ],
)
def test_bad_urls_get_one_line_without_the_password(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        parse_url(url)
    message = str(caught.value)
    assert "\n" not in message
    assert "er22" not in message
    assert "pip install" not in message
    assert "sqlite:///" in message or "journal:///" in message  # what would be right


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{QUOTED}@host/db",
        f"postgresql+psycopg://me:{QUOTED}@host/db?sslmode=require",
        f"postgresql:///db?host=/run&user=me&password={QUOTED}",
    ],
)
def test_the_password_reaches_the_driver_and_nobody_else(url: str) -> None:
    parsed = parse_url(url)
    assert QUOTED in parsed.url or SECRET in parsed.url
    for text in (repr(parsed), parsed.shown, parsed.place, scrub(f"failed: {parsed.url}")):
        assert SECRET not in text
        assert QUOTED not in text
    # Once known, it is taken out of whatever a driver may say.
    assert scrub(f"FATAL: wrong password {SECRET}.") == "FATAL: wrong password ***."


def test_urls_never_parsed_are_scrubbed_too() -> None:
    assert scrub("at mysql://bob:pw@h/d, or") == "at mysql://bob:***@h/d, or"
    assert scrub("host=h password=abc dbname=d") == "host=h password=*** dbname=d"
    assert scrub("no secret: http://host:80/path user@host") == (
        "no secret: http://host:80/path user@host"
    )


def test_logs_of_optuna_and_sqlalchemy_are_scrubbed_with_their_tracebacks() -> None:
    parse_url("postgresql://me:correcthorse@host/db")
    scrub_logs()
    for name in ("optuna.storages._rdb.storage", "sqlalchemy.engine.Engine", "biotune_optuna"):
        logger = logging.getLogger(name)
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        logger.addHandler(handler)
        try:
            int("me:correcthorse@host")
        except ValueError:
            logger.exception("tried %s", "postgresql://me:correcthorse@host/db")
        finally:
            logger.removeHandler(handler)
        assert "correcthorse" not in stream.getvalue()
        assert "Traceback" in stream.getvalue()
        assert "***" in stream.getvalue()


@pytest.mark.parametrize("name", ["study.db", "study.log"])
def test_a_path_is_as_good_as_its_text(tmp_path: Path, name: str) -> None:
    assert parse_url(tmp_path / name) == parse_url(str(tmp_path / name))
    open_storage(tmp_path / name)
    assert (tmp_path / name).exists()


def test_a_proxy_has_no_password_and_shows_none() -> None:
    with pytest.raises(StorageError) as error:
        parse_url("grpc://bob:hunter2@db:13000")
    assert "hunter2" not in str(error.value)
    with pytest.raises(StorageError, match="no address of a proxy"):
        parse_url("grpc://db:" + "1" * 5000)
