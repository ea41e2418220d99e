"""A folder on the hub: a fake of its API on this machine hears what is sent."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from biotune_optuna.errors import BioTuneError
from biotune_optuna.export.hub import push


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as an upload of small files needs."""

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        self.server.heard.append((self.path, body, self.headers.get("Authorization")))
        if self.server.refuses:
            return self._answer(401, {"error": "Invalid username or password."})
        if self.path.endswith("/repos/create"):
            return self._answer(200, {"url": f"{self.server.url}/me/flowers"})
        if "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        return self._answer(
            200, {"commitUrl": f"{self.server.url}/me/flowers/commit/1", "commitOid": "1" * 40}
        )

    def do_GET(self):
        if "/tree/" in self.path:
            files = [
                {"type": "file", "path": name, "size": 1, "oid": "0" * 40}
                for name in self.server.holds
            ]
            return self._answer(200, files)
        return self._answer(200, {"id": "me/flowers", "sha": "0" * 40, "siblings": []})

    def _answer(self, code, content):
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.heard, server.refuses, server.holds = [], False, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("private", [True, False])
def test_the_folder_and_its_card_go_to_the_hub(hub, exported, private):
    options = {} if private else {"private": False}
    assert push(exported, "me/flowers", endpoint=hub.url, **options) == f"{hub.url}/me/flowers"
    (created,) = [body for path, body, _ in hub.heard if path.endswith("/repos/create")]
    asked = json.loads(created)
    assert asked["name"] == "flowers"
    assert asked.get("private", asked.get("visibility") == "private") == private
    (commit,) = [body for path, body, _ in hub.heard if "/commit/" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    sent = {one["value"]["path"]: one["value"] for one in lines if one["key"] == "file"}
    assert sent.keys() == {path.name for path in exported.iterdir()}
    assert base64.b64decode(sent["README.md"]["content"]) == (exported / "README.md").read_bytes()
    assert {token for *_, token in hub.heard} == {"Bearer hf_secret"}


def test_what_an_earlier_model_left_and_this_one_lacks_goes(hub, exported):
    hub.holds = ["members.json", "members.safetensors", "calibration.json", "model.onnx"]
    hub.holds += ["model.safetensors", "README.md", "notes.txt", "images/members.json"]
    push(exported, "me/flowers", endpoint=hub.url)
    (commit,) = [body for path, body, _ in hub.heard if "/commit/" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    gone = {one["value"]["path"] for one in lines if one["key"] == "deletedFile"}
    assert gone == {"members.json", "members.safetensors", "calibration.json", "model.onnx"}


def test_a_refusal_is_one_line_without_the_token(hub, exported):
    hub.refuses = True
    with pytest.raises(BioTuneError, match="cannot put the model on the hub") as caught:
        push(exported, "me/flowers", endpoint=hub.url)
    assert "\n" not in str(caught.value)
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "flowers", "a/b/c", "me/fl owers", "../x y"])
def test_a_name_that_is_none_is_refused_before_anything_is_sent(hub, exported, name):
    with pytest.raises(BioTuneError, match="write USER/NAME"):
        push(exported, name, endpoint=hub.url)
    assert not hub.heard
