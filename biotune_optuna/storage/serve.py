"""The server of a database for workers elsewhere; `proxy` has its clients and their messages."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from optuna.storages._grpc.auto_generated import api_pb2_grpc
from optuna.storages._grpc.servicer import OptunaStorageProxyService
from optuna.trial import TrialState, create_trial

from biotune_optuna.errors import StorageError
from biotune_optuna.storage.database import Cached, Database
from biotune_optuna.storage.open import open_storage
from biotune_optuna.storage.proxy import END, KEEP, NAME, PING_SECONDS, START, VERSION
from biotune_optuna.storage.retry import fault_of
from biotune_optuna.storage.urls import parse_url

_logger = logging.getLogger(__name__)

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 13000

_CODES = {
    "transient": grpc.StatusCode.UNAVAILABLE,
    "full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "fatal": grpc.StatusCode.PERMISSION_DENIED,
}
_THREADS = 10  # that serve, and so the most connections to the database
_MESSAGE_BYTES = 64 * 2**20
_SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500 * PING_SECONDS),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),  # two proxies at one port would share the calls unnoticed
)


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
        if study_name == NAME:
            return VERSION
        return super().get_study_id_from_name(study_name)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        if key.startswith(KEEP):
            self._backend.keep_study_user_attr(study_id, key.removeprefix(KEEP), value)
        else:
            super().set_study_user_attr(study_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if key == START:
            self._backend.start_waiting_trial(trial_id, value)
        elif key == END:
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
