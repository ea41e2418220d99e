"""Requests to the dashboard without a server."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import optuna

from biotune_optuna.report.dashboard.artifacts import artifact_store
from biotune_optuna.report.dashboard.serve import dashboard_app

N_TRIALS = 40


def call(app: Any, method: str, path: str, host: str = "127.0.0.1:8080") -> tuple[int, bytes]:
    """One request to a WSGI application."""
    answer: list[str] = []
    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": "", "HTTP_HOST": host,
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8080", "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(b"{}"), "wsgi.errors": io.StringIO(), "CONTENT_LENGTH": "2",
        "CONTENT_TYPE": "application/json", "HTTP_ACCEPT_ENCODING": "",
    }  # fmt: skip
    body = b"".join(app(environ, lambda status, *_: answer.append(status)))
    return int(answer[0].split()[0]), body


def detail(study: optuna.Study, tmp_path: Path) -> dict[str, Any]:
    """What the dashboard's page gets for a study."""
    app = dashboard_app(study._storage, artifact_store(tmp_path))
    status, body = call(app, "GET", f"/api/studies/{study._study_id}")
    assert status == 200
    found: dict[str, Any] = json.loads(body)
    return found
