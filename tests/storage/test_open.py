"""Opening a storage: what works, and one clear line for everything that does not."""

from __future__ import annotations

import contextlib
import os
import pickle
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event

from biotune_optuna.errors import StorageError
from biotune_optuna.sampler import claims
from biotune_optuna.storage import open as module
from biotune_optuna.storage.open import is_on_network, open_storage
from tests.kit.studies import check_first_writer

if TYPE_CHECKING:
    from collections.abc import Iterator


def objective(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


def one_line(caught: pytest.ExceptionInfo[StorageError], *parts: str) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


def test_default_is_a_file_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BIOTUNE_STORAGE", raising=False)
    open_storage()
    assert (tmp_path / "biotune.db").exists()


@pytest.mark.parametrize(
    "name", ["x?y.db", "x%41y.db", "x%3Fy.db", "a#b.db", "a b+c.db", "größe.db", "a&mode=ro.db"]
)
def test_a_file_may_have_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage(name)
    optuna.create_study(study_name="s", storage=storage)
    assert {path.name.removesuffix("-wal").removesuffix("-shm") for path in tmp_path.iterdir()} == {
        name
    }
    for again in (name, str(tmp_path / name), storage.url.shown):
        reader = open_storage(again, read_only=True)
        assert optuna.load_study(study_name="s", storage=reader).trials == []


def test_sqlite_is_set_up_for_several_processes(path: Path) -> None:
    storage = open_storage(str(path))
    assert storage._database is not None
    with storage._database.engine.connect() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout")
        }
    assert pragma == {"journal_mode": "wal", "synchronous": 1, "busy_timeout": 60_000}


def test_writes_take_the_lock_first_and_reads_do_not(path: Path) -> None:
    storage = open_storage(str(path))
    study = optuna.create_study(study_name="s", storage=storage)
    begun: list[str] = []
    assert storage._database is not None

    @event.listens_for(storage._database.engine, "before_cursor_execute")
    def _(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("BEGIN"):
            begun.append(statement)

    study.get_trials()
    assert set(begun) == {"BEGIN DEFERRED"}
    begun.clear()
    study.set_user_attr("a", 1)
    assert set(begun) == {"BEGIN IMMEDIATE"}


@pytest.mark.parametrize("kind", ["study.db", "study.log"])
def test_read_only_reads_and_refuses_writes(tmp_path: Path, kind: str) -> None:
    url = str(tmp_path / kind)
    optuna.create_study(study_name="s", storage=open_storage(url)).optimize(objective, n_trials=2)
    study = optuna.load_study(study_name="s", storage=open_storage(url, read_only=True))
    assert len(study.trials) == 2
    for write in (study.ask, lambda: study.set_user_attr("a", 1)):
        with pytest.raises(StorageError, match="opened read-only"):
            write()


def test_read_only_works_while_a_worker_writes_and_on_a_file_one_may_only_read(path: Path) -> None:
    writing = optuna.create_study(study_name="s", storage=open_storage(str(path)))
    reading = optuna.load_study(study_name="s", storage=open_storage(str(path), read_only=True))
    for n in range(3):
        writing.optimize(objective, n_trials=1)
        assert len(reading.get_trials()) == n + 1


@contextlib.contextmanager
def powerless() -> Iterator[None]:
    """Nobody's rights where the tests run as root, who may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_finished_study_is_read_where_nothing_may_be_written() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        path = Path(folder, "study.db")
        storage = open_storage(str(path))
        optuna.create_study(study_name="s", storage=storage).optimize(objective, n_trials=2)
        assert storage._database is not None
        storage._database.engine.dispose()
        path.chmod(0o444)
        path.parent.chmod(0o555)
        with powerless():
            with pytest.raises(StorageError, match="cannot be written"):
                open_storage(str(path))
            reading = open_storage(str(path), read_only=True)
            assert len(optuna.load_study(study_name="s", storage=reading).trials) == 2
        path.parent.chmod(0o755)
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("read_only", [False, True])
def test_missing_file_is_not_created_unasked(path: Path, *, read_only: bool) -> None:
    with pytest.raises(StorageError) as caught:
        open_storage(str(path), create=False, read_only=read_only)
    one_line(caught, str(path), "does not exist")
    assert not path.exists()


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        open_storage(f"sqlite:///{tmp_path}/none/study.db")
    one_line(caught, f"make the folder {tmp_path}/none")


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        open_storage(f"sqlite:///{tmp_path}")
    one_line(caught, str(tmp_path), "is a folder")


@pytest.mark.parametrize("kind", ["sqlite:///{}.db", "journal:///{}.log", "memory://"])
def test_the_first_of_several_writers_is_kept(tmp_path: Path, kind: str) -> None:
    check_first_writer(kind.format(tmp_path / "study"))


def test_something_else_is_named_and_left_alone(path: Path) -> None:
    path.write_text("my thesis, chapter one" * 100)
    with pytest.raises(StorageError) as caught:
        open_storage(str(path))
    one_line(caught, str(path), "is not an SQLite database")
    assert path.read_text() == "my thesis, chapter one" * 100


def test_a_corrupt_database_is_named_and_left_alone(path: Path) -> None:
    storage = open_storage(str(path))
    optuna.create_study(study_name="s", storage=storage).optimize(objective, n_trials=5)
    assert storage._database is not None
    storage._database.engine.dispose()
    good = path.read_bytes()
    bad = good[:200] + os.urandom(len(good) - 200)
    path.write_bytes(bad)
    with pytest.raises(StorageError) as caught:
        open_storage(str(path))
    one_line(caught, str(path), "corrupt", "left as it is")
    assert path.read_bytes()[200:] == bad[200:]


def test_a_database_that_becomes_corrupt_while_it_is_open(path: Path) -> None:
    storage = open_storage(str(path))
    optuna.create_study(study_name="s", storage=storage).optimize(objective, n_trials=5)
    assert storage._database is not None
    storage._database.engine.dispose()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(StorageError) as caught:
        storage.get_all_studies()
    one_line(caught, str(path), "corrupt")


def test_not_writable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_storage(str(path))
    # Root may write everything; what the user's process is told is what counts.
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    with pytest.raises(StorageError) as caught:
        open_storage(str(path))
    one_line(caught, str(path), "cannot be written; check its owner and permissions")
    open_storage(str(path), read_only=True)


def test_a_file_that_turns_out_to_be_read_only(path: Path) -> None:
    storage = open_storage(str(path))
    assert storage._database is not None
    engine = storage._database.engine
    event.listen(engine, "connect", lambda c, _record: c.execute("PRAGMA query_only=1"))
    engine.dispose()
    with pytest.raises(StorageError) as caught:
        optuna.create_study(study_name="s", storage=storage)
    one_line(caught, str(path), "cannot be written")


def test_an_older_schema_gets_the_upgrade_command(path: Path) -> None:
    open_storage(str(path))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v3.0.0.d'")
    with pytest.raises(StorageError) as caught:
        open_storage(str(path))
    one_line(caught, f"optuna storage upgrade --storage 'sqlite:///{path}'")


def test_a_newer_schema_asks_for_a_newer_optuna(path: Path) -> None:
    open_storage(str(path))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    with pytest.raises(StorageError) as caught:
        open_storage(str(path))
    one_line(caught, "newer Optuna", "pip install -U optuna")


def test_a_database_without_studies(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    with pytest.raises(StorageError) as caught:
        open_storage(str(path), create=False)
    one_line(caught, str(path), "no tables of Optuna")


def test_a_full_disk_is_named_and_the_study_goes_on_after_it(path: Path) -> None:
    storage = open_storage(str(path), retry_seconds=0.3)
    study = optuna.create_study(study_name="s", storage=storage)
    assert storage._database is not None
    engine = storage._database.engine
    pages = path.stat().st_size // 4096 + 100

    def may_not_grow(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    event.listen(engine, "connect", may_not_grow)
    engine.dispose()
    study.set_user_attr("small", 1)
    with pytest.raises(StorageError) as caught:
        study.set_user_attr("large", "x" * 4096 * 200)
    one_line(caught, str(path), "disk is full")
    event.remove(engine, "connect", may_not_grow)
    engine.dispose()
    study.optimize(objective, n_trials=2)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 2
    assert study.user_attrs == {"small": 1}


def test_network_file_systems_are_recognised(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        f"2 1 0:9 / {tmp_path}/far rw shared:1 - nfs4 server:/x rw\n"
        f"3 2 0:9 / {tmp_path}/far/near rw - tmpfs tmpfs rw\n"
    )
    assert is_on_network(tmp_path / "far" / "a.db", mounts=mounts)
    assert is_on_network(tmp_path / "far" / "sub" / "a.db", mounts=mounts)
    assert not is_on_network(tmp_path / "far" / "near" / "a.db", mounts=mounts)
    assert not is_on_network(tmp_path / "farther" / "a.db", mounts=mounts)
    assert not is_on_network(tmp_path / "a.db", mounts=tmp_path / "none")


def test_network_file_systems_get_a_warning_and_no_wal(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "is_on_network", lambda _path: True)
    storage = open_storage(str(path))
    assert "network file system" in caplog.text
    assert "PostgreSQL" in caplog.text
    assert storage._database is not None
    with storage._database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"


@pytest.mark.parametrize("name", ["s.db", "s.log"])
def test_a_worker_may_change_its_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "there")
    open_storage(name)  # another project's file of that name
    monkeypatch.chdir(tmp_path / "here")
    storage = open_storage(name)
    study = optuna.create_study(storage=storage, study_name="s")
    before = claims._place(storage)
    monkeypatch.chdir(tmp_path / "there")
    study.tell(study.ask(), 1.0)
    assert claims._place(storage) == before
    storage.remove_session()
    monkeypatch.chdir(tmp_path / "here")
    assert len(optuna.load_study(study_name="s", storage=open_storage(name)).trials) == 1


def test_processes_that_create_the_same_database_at_once(path: Path) -> None:
    code = (
        "import sys, optuna; from biotune_optuna.storage.open import open_storage\n"
        "s = optuna.create_study(study_name='s', storage=open_storage(sys.argv[1]),"
        "load_if_exists=True); s.optimize(lambda t: t.suggest_float('x', 0, 1), n_trials=3)"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    study = optuna.load_study(study_name="s", storage=open_storage(str(path)))
    assert [t.number for t in study.trials] == list(range(12))


def test_storage_can_be_pickled(path: Path) -> None:
    study = optuna.create_study(study_name="s", storage=open_storage(str(path)))
    copy = pickle.loads(pickle.dumps(study))
    copy.optimize(objective, n_trials=1)
    assert len(study.trials) == 1
    assert copy._storage._database.engine.dialect.name == "sqlite"
    with copy._storage._database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1


def test_only_sqlite_itself_opens_a_database(tmp_path):
    # Closing any other descriptor of the file drops all POSIX locks that this process has on it:
    # what another process then writes is lost to a connection that was idle meanwhile.
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=open_storage(url), study_name="s")
    opened: list[str] = []
    watching = True

    def watch(name: str, arguments: tuple[object, ...]) -> None:
        if watching and name == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)  # for good: no hook can be taken back
    again = optuna.load_study(study_name="s", storage=open_storage(url))
    watching = False
    assert opened
    assert not [path for path in opened if path.endswith("study.db")]
    again.optimize(objective, n_trials=2)
    assert len(study.trials) == 2
