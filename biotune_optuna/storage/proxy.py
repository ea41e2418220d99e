"""A database behind a proxy: ``grpc://HOST:PORT``, by Optuna's own gRPC storage.

Workers then need neither a driver nor a password, and the database sees a handful of connections.
Optuna's messages are those of its storages. What our storage does in one transaction, and Optuna's
has no message for, is sent as an attribute with a name of its own, which the server does not write
down but carries out. All of it may be sent twice.
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import grpc
import optuna
from optuna.storages import GrpcStorageProxy
from optuna.storages._grpc.auto_generated import api_pb2_grpc
from optuna.storages._grpc.client import GrpcClientCache
from optuna.trial import TrialState

from biotune_optuna.errors import StorageError
from biotune_optuna.schema import HOLDER_KEY

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

NAME = "biotune-proxy"  # a study's name, by which a client asks which server this is
VERSION = 1
KEEP = "biotune-proxy:keep:"  # before the key of a study's attribute
START = "biotune-proxy:start"
END = "biotune-proxy:end"

PING_SECONDS = 30  # so that a host that is cut off is noticed within a minute
_CLIENT_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 1000 * PING_SECONDS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
)


def connect(host: str, port: int) -> Proxied:
    """Open the storage behind a proxy.

    Raises:
        StorageError: The server there is another one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        proxied = Proxied(host=host, port=port)
    try:
        version = proxied.get_study_id_from_name(NAME)
    except KeyError:
        version = 0
    if version != VERSION:
        raise StorageError(
            f"the server at grpc://{host}:{port} is not one of this version of biotune; start it "
            "with: biotune proxy"
        )
    return proxied


class Proxied(GrpcStorageProxy):
    """Optuna's client, with what `Database` does in one transaction.

    Attributes:
        held: As `Database` has it; ids are looked after at the server's side.
    """

    def __init__(self, *, host: str, port: int) -> None:
        super().__init__(host=host, port=port)
        self.held: dict[int, str] = {}

    def _setup(self) -> None:
        target = f"{self._host}:{self._port}"
        self._channel = grpc.insecure_channel(target, options=list(_CLIENT_OPTIONS))
        self._stub = api_pb2_grpc.StorageServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._cache = GrpcClientCache(self._stub)

    def remove_session(self) -> None:
        """Give back nothing: the connections are the server's."""

    def pin_study(self, study_id: int, *, mark: bool) -> None:
        """Look after nothing: see `Database.pin_study`, which is for SQLite only."""

    def keep_study_user_attr(self, study_id: int, key: str, value: Any) -> Any:
        """Set a user attribute of a study unless it has one; return what it has then."""
        self.set_study_user_attr(study_id, KEEP + key, value)
        return self.get_study_user_attrs(study_id)[key]

    def start_waiting_trial(self, trial_id: int, holder: list[str]) -> bool:
        """Take a trial from the queue for ``holder``; False when somebody else has it."""
        self.set_trial_system_attr(trial_id, START, holder)
        trial = self.get_trial(trial_id)
        return trial.system_attrs.get(HOLDER_KEY) == holder and trial.state == TrialState.RUNNING

    def find_trial(self, study_id: int, key: str, value_json: str) -> int | None:
        """Return the id of the study's trial that has this system attribute, as stored JSON."""
        for trial in self.get_all_trials(study_id, deepcopy=False):
            if json.dumps(trial.system_attrs.get(key)) == value_json:
                return trial._trial_id
        return None

    def end_trial(
        self, study_id: int, trial_id: int, why: tuple[str, str], requeue: FrozenTrial | None
    ) -> bool:
        """Fail a running trial that nobody finishes: see `Database.end_trial`."""
        if self.get_trial(trial_id).state != TrialState.RUNNING:
            return False
        again = requeue and [requeue.system_attrs, requeue.user_attrs]
        message = {"study": study_id, "why": list(why), "again": again}
        self.set_trial_system_attr(trial_id, END, message)
        trial = self.get_trial(trial_id)
        return trial.state == TrialState.FAIL and trial.system_attrs.get(why[0]) == why[1]
