"""The dashboard behind a real port."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import optuna
import pytest
from click.testing import CliRunner

from biotune_optuna.cli import cli
from biotune_optuna.errors import BioTuneError, StudyError
from biotune_optuna.report.dashboard import serve as dashboard
from biotune_optuna.report.dashboard.serve import run_dashboard
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.board import board_of
from tests.kit.dashboard import N_TRIALS


@pytest.fixture
def served(url: str, tmp_path: Path) -> Iterator[Any]:
    """Start ``run_dashboard`` on a free port; gives a function that returns its address."""
    stops: list[Any] = []

    def start(**options: Any) -> str:
        address: list[str] = []
        ready, server = threading.Event(), []
        make = dashboard.make_server

        def remember(*args: Any, **kwargs: Any) -> Any:
            server.append(make(*args, **kwargs))
            return server[0]

        def announce(where: str) -> None:
            address.append(where)
            ready.set()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dashboard, "make_server", remember)
            thread = threading.Thread(
                target=run_dashboard,
                args=(url, "digits-tiny"),
                kwargs={"port": 0, "ready": announce, **options},
            )
            thread.start()
            assert ready.wait(30)
        stops.append((server[0], thread))
        return address[0]

    yield start
    for server, thread in stops:
        server.shutdown()
        thread.join(10)


def test_served_dashboard_opens_the_study(served: Any) -> None:
    address = served()
    assert address.endswith("/dashboard/studies/1/note")  # the outcome in words
    base = address.partition("/dashboard")[0]
    with urllib.request.urlopen(f"{base}/api/studies/1", timeout=30) as answer:
        page = json.load(answer)
    assert page["name"] == "digits-tiny"
    assert page["plotly_graph_objects"]


def test_served_read_only_writes_nothing(served: Any, url: str, tmp_path: Path) -> None:
    before = (tmp_path / "study.db").read_bytes()
    base = served(read_only=True).partition("/dashboard")[0]
    request = urllib.request.Request(f"{base}/api/studies/1", method="DELETE", data=b"{}")
    with pytest.raises(HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 403
    with urllib.request.urlopen(f"{base}/api/studies/1", timeout=30) as answer:
        assert len(json.load(answer)["trials"]) == N_TRIALS
    assert (tmp_path / "study.db").read_bytes() == before


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_the_local_machine_is_served_by_ipv6_as_well(served: Any) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 address here")
    address = served(host="::1")
    assert address.startswith("http://[::1]:")
    base = address.partition("/dashboard")[0]
    with urllib.request.urlopen(f"{base}/api/studies/1", timeout=30) as answer:
        assert json.load(answer)["name"] == "digits-tiny"


def test_unknown_study_taken_port_and_foreign_host_are_one_clear_line(
    url: str,
) -> None:
    board_of(optuna.load_study(study_name="digits-tiny", storage=open_storage(url)))
    only = "there is no study 'nope'; the storage holds 'digits-tiny'$"  # the board is none
    with pytest.raises(StudyError, match=only):
        run_dashboard(url, "nope", port=0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BioTuneError, match="give another --port"):
            run_dashboard(url, port=taken.getsockname()[1])
    with pytest.raises(
        BioTuneError, match=r"cannot listen on 192\.0\.2\.1:0 .*give another --host"
    ):
        run_dashboard(url, host="192.0.2.1", port=0)


def test_open_addresses_draw_a_warning(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stub:
        server_port = 9

        def __enter__(self) -> Stub:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def serve_forever(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(dashboard, "make_server", lambda *_, **__: Stub())
    run_dashboard(url, host="0.0.0.0", port=9)
    assert "no login" in capsys.readouterr().err
    run_dashboard(url, host="127.0.0.1", port=9)
    assert "no login" not in capsys.readouterr().err


def test_the_command_serves_the_storage_that_it_is_given(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = ("--storage", url, "--port", port, "--read-only")
        result = CliRunner().invoke(cli, ["dashboard", *options, "--study", "digits-tiny"])
        assert result.exit_code == 2
        assert result.stderr.startswith(f"Error: cannot listen on 127.0.0.1:{port}")
    result = CliRunner().invoke(cli, ["dashboard", *options, "--study", "nobody"])
    assert "there is no study 'nobody'; the storage holds 'digits-tiny'\n" in result.stderr
