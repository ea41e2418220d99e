"""optuna-dashboard, served so that nobody else reaches it."""

from __future__ import annotations

import atexit
import errno
import logging
import shutil
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from biotune_optuna.errors import BioTuneError, StudyError
from biotune_optuna.report.dashboard.artifacts import artifact_store
from biotune_optuna.report.dashboard.attach import refresh_study
from biotune_optuna.report.dashboard.guard import LOCAL, WSGIApp, guard
from biotune_optuna.report.dashboard.storage import ShortStorage
from biotune_optuna.storage.urls import default_artifact_dir
from biotune_optuna.study.board import study_names

if TYPE_CHECKING:
    from optuna.artifacts import FileSystemArtifactStore
    from optuna.storages import BaseStorage


logger = logging.getLogger(__name__)


def dashboard_app(
    storage: BaseStorage,
    store: FileSystemArtifactStore,
    *,
    host: str = "127.0.0.1",
    read_only: bool = False,
    token: str | None = None,
) -> WSGIApp:
    """Return the dashboard as a WSGI application, guarded.

    Args:
        storage: A caching storage, as `biotune_optuna.open_storage` gives.
        store: The artifacts.
        host: Address it will be served on. On the local machine only requests that name it are
            answered, so that a web page elsewhere cannot reach it through a name of its own.
        read_only: Refuse every request that could change something.
        token: Answer only who has opened an address with ``?token=`` and this text, or sends it as
            ``Authorization: Bearer``. None answers everybody.

    Raises:
        BioTuneError: optuna-dashboard is not installed.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise BioTuneError(
            "optuna-dashboard is not installed; pip install optuna-dashboard"
        ) from error
    app: WSGIApp = wsgi(ShortStorage(storage), artifact_store=store)
    return guard(app, host=host, read_only=read_only, token=token)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        logger.debug(format, *args)


def run_dashboard(
    url: str | None,
    study: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    artifact_dir: str | Path | None = None,
    read_only: bool = False,
    token: str | None = None,
    open_browser: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve optuna-dashboard until interrupted.

    The storage caches finished trials, so that a poll of a large study costs a fraction of what the
    ``optuna-dashboard`` command's does.

    Args:
        url: The storage, as in `biotune_optuna.open_storage`.
        study: The study to open first; None for the list of all.
        host: Address to listen on. Anything but the local machine draws a warning: the dashboard
            has no login, whoever reaches it can change and delete studies.
        port: Port to listen on; 0 takes a free one.
        artifact_dir: Folder of artifacts, see `default_artifact_dir`.
        read_only: Refuse every change, in the web server and in the database connection.
        token: See `dashboard_app`; it is part of the address that is printed.
        open_browser: Open the address in a web browser, where there is one.
        ready: Called with the address once it is served; default prints it.

    Raises:
        StudyError: There is no such study.
        BioTuneError: optuna-dashboard is missing, the port is taken or the host is not this one.
    """
    from biotune_optuna.storage.open import open_storage

    storage = open_storage(url, create=False, read_only=read_only)
    path = _page_of(storage, study, renew=not read_only)
    folder = Path(artifact_dir) if artifact_dir else default_artifact_dir(url)
    if read_only and not folder.is_dir():  # nor is a folder made
        folder = Path(tempfile.mkdtemp(prefix="biotune-no-artifacts-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    app = dashboard_app(
        storage, artifact_store(folder), host=host, read_only=read_only, token=token
    )
    shown = f"[{host}]" if ":" in host else host
    kind = _Server6 if ":" in host else _Server
    try:
        server = make_server(host, port, app, server_class=kind, handler_class=_Handler)
    except OSError as error:
        wrong = "port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "host"
        raise BioTuneError(
            f"cannot listen on {shown}:{port} ({error.strerror}); give another --{wrong}"
        ) from error
    if host not in LOCAL and not token:
        sys.stderr.write(
            f"Warning: the dashboard has no login; everybody who reaches {shown}:{port} can"
            f" {'see' if read_only else 'change and delete'} all studies in this storage."
            " With --token it asks for one.\n"
        )
    with server:
        asked = f"?{urlencode({'token': token})}" if token else ""
        address = f"http://{shown}:{server.server_port}{path}{asked}"
        (ready or _announce)(address)
        if open_browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def _page_of(storage: BaseStorage, study: str | None, *, renew: bool) -> str:
    """Path of the page to open first; renews that study's figures when it may."""
    import optuna

    if study is None:
        return "/dashboard"
    try:
        loaded = optuna.load_study(study_name=study, storage=storage)
    except KeyError:
        names = ", ".join(map(repr, study_names(storage))) or "none"
        raise StudyError(f"there is no study {study!r}; the storage holds {names}") from None
    from optuna_dashboard import get_note

    if renew:
        refresh_study(loaded)
    # the note says the outcome in words; where there is none, figures
    noted = get_note(loaded)
    return f"/dashboard/studies/{loaded._study_id}" + ("/note" if noted else "")


def _announce(address: str) -> None:
    sys.stderr.write(f"Dashboard at {address} (Ctrl-C ends it)\n")
