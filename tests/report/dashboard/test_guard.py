"""Who is answered by the dashboard, and what a browser may do with the answers."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.artifacts.exceptions import ArtifactNotFound

from biotune_optuna.report.dashboard.artifacts import artifact_store
from biotune_optuna.report.dashboard.serve import dashboard_app
from biotune_optuna.storage.open import open_storage

Answer = tuple[int, dict[str, str], bytes]


def ask(app: Any, path: str, method: str = "GET", query: str = "", **headers: str) -> Answer:
    found: dict[str, Any] = {}
    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query,
        "HTTP_HOST": "127.0.0.1:8080", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8080",
        "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(b"{}"), "CONTENT_LENGTH": "2",
        "wsgi.errors": io.StringIO(), "CONTENT_TYPE": "application/json", **headers,
    }  # fmt: skip

    def start(status: str, fields: list[tuple[str, str]], *_: object) -> None:
        found.update(
            status=int(status.split(maxsplit=1)[0]), headers={k.lower(): v for k, v in fields}
        )

    body = b"".join(app(environ, start))
    return found["status"], found["headers"], body


KINDS = {"a1": "text/html", "b2": "image/svg+xml", "c3": "image/png", "d4": "text/plain"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    for name in KINDS:
        (folder / name).write_text("<script>fetch('/api/studies')</script>")
    return folder


@pytest.fixture
def app(tmp_path: Path, folder: Path) -> Any:
    return make(tmp_path, folder)


def make(tmp_path: Path, folder: Path, **how: Any) -> Any:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
    for name, kind in (*KINDS.items(), ("e5", "text/plain"), ("f6", "text/plain")):
        meta = {"artifact_id": name, "filename": "x", "mimetype": kind, "encoding": None}
        storage.set_study_system_attr(study._study_id, f"artifacts:{name}", json.dumps(meta))
    return dashboard_app(storage, artifact_store(folder), **how)


@pytest.mark.parametrize("name", KINDS)
def test_nothing_of_an_artifact_is_run_nor_read_by_other_pages(app: Any, name: str) -> None:
    status, headers, _ = ask(app, f"/artifacts/1/{name}")
    assert status == 200
    assert "access-control-allow-origin" not in headers
    assert headers["content-security-policy"].startswith("default-src 'none'; sandbox")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert (headers.get("content-disposition") == "attachment") == (name != "c3")


@pytest.mark.parametrize("read_only", [False, True])
def test_no_link_leads_out_of_the_folder(tmp_path: Path, folder: Path, read_only: bool) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("PRIVATE KEY")
    (folder / "e5").symlink_to(secret)
    os.mkfifo(folder / "f6")  # reading it would wait for ever
    app = make(tmp_path, folder, read_only=read_only)
    for name in ("e5", "f6"):
        status, _, body = ask(app, f"/artifacts/1/{name}")
        assert status in {404, 500}
        assert b"PRIVATE" not in body
    store = artifact_store(folder)
    for name in ("e5", "f6", "../id_rsa"):
        with pytest.raises((ArtifactNotFound, ValueError)):
            store.write(name, io.BytesIO(b"overwritten"))
        with pytest.raises((ArtifactNotFound, ValueError)):
            store.open_reader(name)
    assert secret.read_text() == "PRIVATE KEY"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"HTTP_ORIGIN": "http://127.0.0.1:8080"}, 200),
        ({"HTTP_ORIGIN": "http://evil.example"}, 403),
        ({"HTTP_ORIGIN": "null"}, 403),
        ({"HTTP_ORIGIN": "http://127.0.0.1:9999"}, 403),
        ({"HTTP_HOST": "evil.example"}, 403),
        ({"HTTP_SEC_FETCH_SITE": "cross-site", "HTTP_SEC_FETCH_MODE": "no-cors"}, 403),
        ({"HTTP_SEC_FETCH_SITE": "cross-site", "HTTP_SEC_FETCH_MODE": "navigate"}, 200),
        ({"HTTP_SEC_FETCH_SITE": "same-origin", "HTTP_SEC_FETCH_MODE": "cors"}, 200),
    ],
)
def test_only_the_dashboards_own_pages_are_answered(
    app: Any, headers: dict[str, str], status: int
) -> None:
    assert ask(app, "/api/studies", **headers)[0] == status


def test_every_answer_has_a_policy(app: Any) -> None:
    for path in ("/dashboard", "/api/studies", "/static/none.js", "/nowhere"):
        _, headers, _ = ask(app, path)
        assert "default-src" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"


def test_a_token_is_asked_for_once(tmp_path: Path, folder: Path) -> None:
    app = make(tmp_path, folder, host="0.0.0.0", token="s3 cret&")
    assert ask(app, "/api/studies")[0] == 401
    assert ask(app, "/api/studies", query="token=wrong")[0] == 401
    assert ask(app, "/api/studies", HTTP_COOKIE="biotune_token=wrong; ]")[0] == 401
    status, headers, _ = ask(app, "/dashboard", query="token=s3+cret%26&x=1")
    assert (status, headers["location"]) == (302, "/dashboard?x=1")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert ask(app, "/api/studies", HTTP_COOKIE=cookie.partition(";")[0])[0] == 200
    assert ask(app, "/api/studies", HTTP_AUTHORIZATION="Bearer s3 cret&")[0] == 200
