"""A database behind a proxy: ``grpc://HOST:PORT``, by Optuna's own gRPC storage.

Workers then need neither a driver nor a password, and the database sees a handful of connections.
Optuna's messages are those of its storages. What our storage does in one transaction, and Optuna's
has no message for, is sent as an attribute with a name of its own, which the server does not write
down but carries out. All of it may be sent twice.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import optuna
from optuna.storages import GrpcStorageProxy
from optuna.storages._grpc.auto_generated import api_pb2_grpc
from optuna.storages._grpc.client import GrpcClientCache
from optuna.storages._grpc.servicer import OptunaStorageProxyService
from optuna.trial import FrozenTrial, TrialState, create_trial

from biotune_optuna.errors import StorageError
from biotune_optuna.schema import HOLDER_KEY
from biotune_optuna.storage.open import Cached, open_storage
from biotune_optuna.storage.retry import fault_of
from biotune_optuna.storage.urls import parse_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from biotune_optuna.storage.database import Database

_logger = logging.getLogger(__name__)

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 13000

_NAME = "biotune:proxy"  # a study's name, by which a client asks which server this is
_VERSION = 1
_KEEP = "biotune:proxy:keep:"  # before the key of a study's attribute
_START = "biotune:proxy:start"
_END = "biotune:proxy:end"

_CODES = {
    "transient": grpc.StatusCode.UNAVAILABLE,
    "full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "fatal": grpc.StatusCode.PERMISSION_DENIED,
}
_THREADS = 10  # that serve, and so the most connections to the database
_PING_SECONDS = 30  # so that a host that is cut off is noticed within a minute
_MESSAGE_BYTES = 64 * 2**20
_CLIENT_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 1000 * _PING_SECONDS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
)
_SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500 * _PING_SECONDS),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),  # two proxies at one port would share the calls unnoticed
)


# -- the client


def connect(host: str, port: int) -> Proxied:
    """Open the storage behind a proxy.

    Raises:
        StorageError: The server there is another one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        proxied = Proxied(host=host, port=port)
    try:
        version = proxied.get_study_id_from_name(_NAME)
    except KeyError:
        version = 0
    if version != _VERSION:
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
        self.set_study_user_attr(study_id, _KEEP + key, value)
        return self.get_study_user_attrs(study_id)[key]

    def start_waiting_trial(self, trial_id: int, holder: list[str]) -> bool:
        """Take a trial from the queue for ``holder``; False when somebody else has it."""
        self.set_trial_system_attr(trial_id, _START, holder)
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
        """Fail a running trial that nobody finishes; False when it has been finished otherwise.

        Args:
            study_id: Study of the trial.
            trial_id: Trial to fail.
            why: Key and value of the system attribute that tells the reason.
            requeue: A WAITING trial to create in the same transaction.
        """
        if self.get_trial(trial_id).state != TrialState.RUNNING:
            return False
        again = requeue and [requeue.system_attrs, requeue.user_attrs]
        message = {"study": study_id, "why": list(why), "again": again}
        self.set_trial_system_attr(trial_id, _END, message)
        trial = self.get_trial(trial_id)
        return trial.state == TrialState.FAIL and trial.system_attrs.get(why[0]) == why[1]


# -- the server


def serve(url: str | None, *, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> Proxy:
    """Start a proxy of a database; it serves until it is stopped.

    Optuna's protocol has no login: whoever reaches the port may read and write all studies.

    Args:
        url: The database, as in `open_storage`.
        host: Address to listen on. Beyond this machine a warning is logged.
        port: Port to listen on; 0 takes a free one.

    Raises:
        StorageError: The database cannot be served, or the port is not to be had.
    """
    where = parse_url(url)
    if where.kind not in ("sqlite", "postgresql", "mysql"):
        raise StorageError(
            f"{where.place} cannot be served by a proxy; give a database: sqlite:///FILE.db, "
            "postgresql://USER@HOST/DATABASE or mysql://USER@HOST/DATABASE"
        )
    if not _is_loopback(host):
        _logger.warning(
            "the proxy has no login: whoever reaches %s port %d may read, change and delete all "
            "studies; let only a network in that you trust, or use an SSH tunnel to 127.0.0.1",
            host,
            port,
        )
    return Proxy(url, host, port)


class Proxy:
    """A running server; see `serve`."""

    def __init__(self, url: str | None, host: str, port: int) -> None:
        opened = open_storage(url)
        self.place = opened.url.place
        backend: Cached = opened._backend  # type: ignore[assignment]
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="biotune-proxy"),
            interceptors=[_Faults()],
            options=list(_SERVER_OPTIONS),
        )
        service = OptunaStorageProxyService(_Served(backend._backend))
        add_service = api_pb2_grpc.add_StorageServiceServicer_to_server
        add_service(service, self._server)  # type: ignore[no-untyped-call]
        shown = f"[{host}]" if ":" in host else host
        try:
            self.port = self._server.add_insecure_port(f"{shown}:{port}")
        except RuntimeError:
            raise StorageError(
                f"port {port} of {host} cannot be listened on; it is taken or not this machine's: "
                "give another --port or --host"
            ) from None
        self.url = f"grpc://{shown}:{self.port}"
        self._server.start()

    def stop(self, seconds: float = 2.0) -> None:
        """Stop; calls that run have so many seconds to end."""
        self._server.stop(seconds).wait()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Served(Cached):
    """The storage as the server's side sees it: it carries out our own messages."""

    _backend: Database

    def get_study_id_from_name(self, study_name: str) -> int:
        if study_name == _NAME:
            return _VERSION
        return super().get_study_id_from_name(study_name)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        if key.startswith(_KEEP):
            self._backend.keep_study_user_attr(study_id, key.removeprefix(_KEEP), value)
        else:
            super().set_study_user_attr(study_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if key == _START:
            self._backend.start_waiting_trial(trial_id, value)
        elif key == _END:
            again = None
            if value["again"] is not None:
                system, user = value["again"]
                again = create_trial(state=TrialState.WAITING, system_attrs=system, user_attrs=user)
            self._backend.end_trial(value["study"], trial_id, tuple(value["why"]), again)
        else:
            super().set_trial_system_attr(trial_id, key, value)


class _Faults(grpc.ServerInterceptor):  # type: ignore[misc]
    """Tells a client that it is the database that cannot be used, and whether to wait.

    Otherwise all it learned was that the call had failed.
    """

    def intercept_service(
        self, continuation: Callable[..., Any], details: grpc.HandlerCallDetails
    ) -> Any:
        """Return what handles a call."""
        handler = continuation(details)
        if handler is None:
            return None

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return handler.unary_unary(request, context)
            except Exception as error:
                fault = fault_of(error)
                if fault is None:
                    raise
            context.abort(_CODES[fault.nature], fault.text)
            return None

        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
