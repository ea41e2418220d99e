"""The SQL database: connection settings, and Optuna's storage where its transactions fall short."""

from __future__ import annotations

import copy
import json
import os
import threading
import time
import uuid
import weakref
from collections.abc import Container, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from optuna.storages import RDBStorage, _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import and_, event, or_
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import CreateEnginePlugin
from sqlalchemy.exc import DisconnectionError

from biotune_optuna.errors import DeletedStudyError
from biotune_optuna.schema import HOLDER_KEY, STUDY_KEY
from biotune_optuna.storage.fast_read import load_trials

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection, Engine
    from sqlalchemy.orm import Session

    from biotune_optuna.storage.urls import StorageURL


BUSY_SECONDS = 60.0
_IDLE_SECONDS = 5.0
_PLUGIN = "biotune"
_MANY = 5000  # ids in one statement; SQLite takes 32,766
_mode = threading.local()


@contextmanager
def reading() -> Iterator[None]:
    """Within the block this thread only reads: SQLite takes no write lock."""
    before = getattr(_mode, "reading", False)
    _mode.reading = True
    try:
        yield
    finally:
        _mode.reading = before


class ConnectionSettings(CreateEnginePlugin):
    """Sets up each new connection; named in the engine's arguments, so it survives pickling."""

    def __init__(self, url: Any, kwargs: dict[str, Any]) -> None:  # noqa: ARG002  (a fixed protocol)
        self._journal_mode: str = kwargs.pop("biotune_journal_mode", "WAL")
        self._read_only: bool = kwargs.pop("biotune_read_only", False)

    def update_url(self, url: URL) -> URL:
        """Leave the URL as it is: the settings come as engine arguments."""
        return url

    def engine_created(self, engine: Engine) -> None:
        """Listen to the engine's new connections and transactions."""
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", self._connect_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            ping_if_idle(engine)
        if engine.dialect.name == "postgresql":
            event.listen(engine, "connect", self._connect_postgres)
        elif engine.dialect.name != "sqlite" and self._read_only:
            event.listen(engine, "connect", _connect_mysql_read_only)

    def _connect_sqlite(self, connection: Any, _record: Any) -> None:
        # The driver would open transactions by itself, deferred, and only before the first write:
        # two workers that both read first would then both believe to be the first.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        if not self._read_only:
            connection.execute(f"PRAGMA journal_mode={self._journal_mode}")
            # In WAL mode NORMAL survives the death of any process; a power cut can cost the last
            # commits but not the file.
            level = "NORMAL" if self._journal_mode == "WAL" else "FULL"
            connection.execute(f"PRAGMA synchronous={level}")

    def _connect_postgres(self, connection: Any, _record: Any) -> None:
        # A worker that is cut off within a transaction holds the study's row lock; without these
        # the server would wait for it for two hours.
        settings = {
            "idle_in_transaction_session_timeout": "60s",
            "tcp_keepalives_idle": "30",
            "tcp_keepalives_interval": "10",
            "tcp_keepalives_count": "3",
            "lock_timeout": f"{int(BUSY_SECONDS)}s",
        }
        if self._read_only:
            settings["default_transaction_read_only"] = "on"
        calls = ", ".join(
            f"set_config('{key}', '{value}', false)" for key, value in settings.items()
        )
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {calls}")
        connection.commit()


def ping_if_idle(engine: Engine) -> None:
    """Test a connection before use if it has been idle; a lost one is replaced unnoticed.

    SQLAlchemy's own ``pool_pre_ping`` does so before every use, which costs a trial of 30
    transactions 30 more round trips. A connection lost within seconds is met by the retries.
    """

    def note(_connection: Any, record: Any) -> None:
        record.info["biotune_used"] = time.monotonic()

    def test(connection: Any, record: Any, _proxy: Any) -> None:
        used = record.info.get("biotune_used")
        if used is None or time.monotonic() - used < _IDLE_SECONDS:
            return
        try:
            alive = engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error:
            alive = False
        if not alive:
            raise DisconnectionError  # the pool opens another one

    event.listen(engine, "checkin", note)
    event.listen(engine, "checkout", test)


def _begin_sqlite(connection: Connection) -> None:
    kind = "DEFERRED" if getattr(_mode, "reading", False) else "IMMEDIATE"
    connection.exec_driver_sql(f"BEGIN {kind}")


def _connect_mysql_read_only(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION READ ONLY")


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Leave the parent's connections to the parent, and open others when they are needed.

    Two processes on one connection read each other's answers. Not closed either: that would say
    good-bye to the server in the parent's name.
    """
    for database in tuple(_databases):
        database.engine.dispose(close=False)
        database.scoped_session.registry.clear()  # the session of the thread that forked


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _dispose(engine: Engine, process: int) -> None:
    if os.getpid() == process:  # a forked child has no say in its parent's connections
        engine.dispose()


plugins.register(_PLUGIN, __name__, "ConnectionSettings")


def engine_settings(url: StorageURL, *, read_only: bool, network: bool) -> dict[str, Any]:
    """Return SQLAlchemy's engine arguments for a database.

    Args:
        url: The database.
        read_only: Refuse every write, in the database itself.
        network: The file lies on a network file system, where WAL cannot work.
    """
    settings: dict[str, Any] = {"plugins": [_PLUGIN], "biotune_read_only": read_only}
    if url.kind == "sqlite":
        settings["biotune_journal_mode"] = "DELETE" if network else "WAL"
        settings["connect_args"] = {"timeout": BUSY_SECONDS}
        return settings
    # Optuna would switch SQLAlchemy's test before every use on for MySQL.
    settings |= {"pool_pre_ping": False, "pool_recycle": 1800, "pool_timeout": 30}
    if url.kind == "postgresql":
        # Found out within a minute that the other side is gone, rather than within two hours.
        settings["connect_args"] = {
            "connect_timeout": 10,
            "keepalives": 1,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        }
    else:
        settings["connect_args"] = {"connect_timeout": 10, "read_timeout": 90, "write_timeout": 90}
        settings["isolation_level"] = "READ COMMITTED"
    return settings


class Database(RDBStorage):
    """Optuna's SQL storage with transactions of its own.

    A trial is created, or taken from the queue, together with the name of its holder, so that no
    trial runs for which nobody is responsible; both can be repeated when the connection was lost at
    the commit and nobody knows whether it happened. A lost trial is failed and, if it came from the
    queue, put back there in one step. What defines a study is written by the first worker only.

    SQLite gives the ids of a deleted study, and of its trials, to the next ones. So what a process
    knows as its own is looked at in the transaction of each write: studies by their name and a
    token, trials by their holder.

    The connections are closed with the storage or the process, whichever ends first: with its last
    connection an SQLite file takes in its log of changes and is complete by itself.

    Attributes:
        held: This process's trials, by id, with the token of each one's holder: writes to another
            trial that has got such an id are refused.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pinned: dict[int, tuple[str, str | None]] = {}  # study to name and token
        self.held: dict[int, str] = {}
        self._close_at_the_end()

    def __setstate__(self, state: dict[Any, Any]) -> None:
        with reading():  # for the reason given where a database is opened
            super().__setstate__(state)
        self._close_at_the_end()

    def _close_at_the_end(self) -> None:
        weakref.finalize(self, _dispose, self.engine, os.getpid())
        _databases.add(self)

    # -- what this process takes for its own

    def pin_study(self, study_id: int, *, mark: bool) -> None:
        """Remember what a study is: writes to another one that has got its id are refused.

        Args:
            study_id: The study, just looked up or created.
            mark: Give it a token if it has none, which needs a write.
        """
        if self.engine.dialect.name != "sqlite":  # others never give an id again
            return
        known = self.keep_study_system_attr(study_id, STUDY_KEY, uuid.uuid4().hex) if mark else None
        with _create_scoped_session(self.scoped_session) as session:
            name, token = self._identity(study_id, session)
        self._pinned[study_id] = (name, known or token)

    def _identity(self, study_id: int, session: Session) -> tuple[str, str | None]:
        study: Any = models.StudyModel.find_or_raise_by_id(study_id, session)
        found: Any = models.StudySystemAttributeModel.find_by_study_and_key(
            study, STUDY_KEY, session
        )
        return study.study_name, None if found is None else json.loads(found.value_json)

    def _check_study(self, study_id: int, session: Session) -> None:
        known = self._pinned.get(study_id)
        if known is None:
            return
        name, token = self._identity(study_id, session)
        if name != known[0] or (known[1] is not None and token != known[1]):
            raise DeletedStudyError(known[0])

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        """Raise if a trial may not be written to: it has ended, or it is another one by now."""
        token = self.held.get(trial_id)
        if token is not None and self.engine.dialect.name == "sqlite":
            session = self.scoped_session()  # the one of the write that asks
            attribute = models.TrialSystemAttributeModel
            found: Any = (
                session.query(attribute.value_json)
                .filter(attribute.trial_id == trial_id, attribute.key == HOLDER_KEY)
                .one_or_none()
            )
            if found is None or json.loads(found[0])[1:] != [token]:
                names = " or ".join(name for name, _ in self._pinned.values())
                raise DeletedStudyError(names or "of this trial")
        super().check_trial_is_updatable(trial_id, trial_state)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a study."""
        self._set_study_attr(models.StudyUserAttributeModel, study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a system attribute of a study, but for the token, which copying a study brings."""
        if key == STUDY_KEY:
            return
        self._set_study_attr(models.StudySystemAttributeModel, study_id, key, value)

    def delete_study(self, study_id: int) -> None:
        """Delete a study and all its trials."""
        with _create_scoped_session(self.scoped_session, True) as session:
            study: Any = models.StudyModel.find_or_raise_by_id(study_id, session)
            self._check_study(study_id, session)
            session.delete(study)
        self._pinned.pop(study_id, None)

    # -- trials and attributes

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return one trial."""
        with _create_scoped_session(self.scoped_session) as session:
            found = load_trials(session, models.TrialModel.trial_id == trial_id)
        if not found:
            raise KeyError(models.NOT_FOUND_MSG)
        return found[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        trial = models.TrialModel
        newer = trial.trial_id > trial_id_greater_than
        older = [n for n in included_trial_ids if n <= trial_id_greater_than]
        if len(older) > _MANY:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        condition = and_(
            trial.study_id == study_id, or_(newer, trial.trial_id.in_(older)) if older else newer
        )
        if states is not None:
            condition = and_(condition, trial.state.in_([s for s in TrialState if s in states]))
        with _create_scoped_session(self.scoped_session) as session:
            found = load_trials(session, condition)
            if not found:
                models.StudyModel.find_or_raise_by_id(study_id, session)
        return found

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        # Optuna's own repeats here up to five times without knowing whether the first commit
        # happened: a trial too many, which runs nowhere and is never finished.
        with _create_scoped_session(self.scoped_session) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            self._check_study(study_id, session)
            trial: Any = self._get_prepared_new_trial(study_id, template_trial, session)
            if template_trial is None:
                return self._build_frozen_trial_from_trial_model(trial)
            frozen = copy.deepcopy(template_trial)
            frozen.number = trial.number
            frozen.datetime_start = trial.datetime_start
            frozen._trial_id = trial.trial_id
            return frozen

    def find_trial(self, study_id: int, key: str, value_json: str) -> int | None:
        """Return the id of the study's trial that has this system attribute, as stored JSON."""
        attribute = models.TrialSystemAttributeModel
        with _create_scoped_session(self.scoped_session) as session:
            found = (
                session.query(models.TrialModel.trial_id)
                .join(attribute, attribute.trial_id == models.TrialModel.trial_id)
                .filter(models.TrialModel.study_id == study_id)
                .filter(attribute.key == key, attribute.value_json == value_json)
                .first()
            )
        return None if found is None else int(found[0])

    def start_waiting_trial(self, trial_id: int, holder: list[str]) -> bool:
        """Take a trial from the queue for ``holder``; False when somebody else has it."""
        with _create_scoped_session(self.scoped_session) as session:
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            self._check_study(trial.study_id, session)
            self.check_trial_is_updatable(trial_id, trial.state)
            if trial.state != TrialState.WAITING:
                attributes = models.TrialSystemAttributeModel.where_trial_id(trial_id, session)
                return any(
                    a.key == HOLDER_KEY and a.value_json == json.dumps(holder) for a in attributes
                )
            self._set_trial_attr_without_commit(
                session, models.TrialSystemAttributeModel, trial_id, HOLDER_KEY, holder
            )
            trial.state = TrialState.RUNNING
            trial.datetime_start = datetime.now()
        return True

    def keep_study_user_attr(self, study_id: int, key: str, value: Any) -> Any:
        """Set a user attribute of a study unless it has one; return what it has then."""
        return self._set_study_attr(
            models.StudyUserAttributeModel, study_id, key, value, replace=False
        )

    def keep_study_system_attr(self, study_id: int, key: str, value: Any) -> Any:
        """Set a system attribute of a study unless it has one; return what it has then."""
        return self._set_study_attr(
            models.StudySystemAttributeModel, study_id, key, value, check=False, replace=False
        )

    def _set_study_attr(
        self,
        attribute: Any,
        study_id: int,
        key: str,
        value: Any,
        *,
        check: bool = True,
        replace: bool = True,
    ) -> Any:
        """Set an attribute of a study; return what it then has.

        Args:
            attribute: The model of its table.
            study_id: The study.
            key: The attribute's name.
            value: JSON.
            check: Refuse another study than the one pinned.
            replace: Whether a value that is there is replaced.
        """
        with _create_scoped_session(self.scoped_session, True) as session:
            study = models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            if check:
                self._check_study(study_id, session)
            found: Any = attribute.find_by_study_and_key(study, key, session)
            text = json.dumps(value)
            if found is None:
                session.add(attribute(study_id=study_id, key=key, value_json=text))
            elif replace:
                found.value_json = text
            else:
                text = found.value_json
        return json.loads(text)

    def end_trial(
        self, study_id: int, trial_id: int, why: tuple[str, str], requeue: FrozenTrial | None
    ) -> bool:
        """Fail a running trial that nobody finishes; False when it has been finished meanwhile.

        Args:
            study_id: Study of the trial.
            trial_id: Trial to fail.
            why: Key and value of the system attribute that tells the reason.
            requeue: A WAITING trial to create in the same transaction.
        """
        with _create_scoped_session(self.scoped_session) as session:
            self._check_study(study_id, session)
            # The order of all transactions that take both locks: first the study, then the trial.
            if requeue is not None:
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            if trial.state != TrialState.RUNNING:
                return False
            self._set_trial_attr_without_commit(
                session, models.TrialSystemAttributeModel, trial_id, *why
            )
            trial.state = TrialState.FAIL
            trial.datetime_complete = datetime.now()
            if requeue is not None:
                self._get_prepared_new_trial(study_id, requeue, session)
        return True


class Cached(_CachedStorage):
    """Optuna's cache of finished trials; shows the engine, by which the sampler tells copies."""

    _backend: Database

    @property
    def engine(self) -> Engine:
        """The engine of the database."""
        return self._backend.engine

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials of a study, ordered by number."""
        self._read_trials_from_remote_storage(study_id)
        with self._lock:
            trials = self._studies[study_id].trials
            try:  # Optuna sorts them at every call, which is what a long study costs
                ordered = [trials[number] for number in range(len(trials))]
            except KeyError:
                ordered = [trials[number] for number in sorted(trials)]
            if states is not None:
                ordered = [trial for trial in ordered if trial.state in states]
            return copy.deepcopy(ordered) if deepcopy else ordered
