"""The dashboard's guard, figures, note and artifacts, against the real optuna-dashboard."""

from __future__ import annotations

import csv
import io
import json
import shutil
import socket
import sqlite3
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from optuna.artifacts import download_artifact, get_all_artifact_meta
from PIL import Image

from biotune_optuna.cli import cli
from biotune_optuna.errors import BioTuneError, StudyError
from biotune_optuna.report import artifacts, dashboard
from biotune_optuna.report.artifacts import artifact_store, attach_model, attach_trial_artifacts
from biotune_optuna.report.attach import Attachments
from biotune_optuna.report.dashboard import (
    dashboard_app,
    default_artifact_dir,
    refresh_study,
    run_dashboard,
)
from biotune_optuna.report.tidy import TidyStorage
from biotune_optuna.study.ledger import add_training
from biotune_optuna.study.storage import open_storage

N_TRIALS = 40
BLOCKS = ("stem", "layer1", "layer2", "head")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, make_study: Any) -> Path:
    """A study in SQLite, made once."""
    path: Path = tmp_path_factory.mktemp("study") / "study.db"
    study = make_study(N_TRIALS)
    optuna.copy_study(
        from_study_name=study.study_name,
        from_storage=study._storage,
        to_storage=open_storage(f"sqlite:///{path}"),
    )
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture
def url(database: Path, tmp_path: Path) -> str:
    shutil.copy(database, tmp_path / "study.db")
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def study(url: str) -> optuna.Study:
    return optuna.load_study(study_name="digits-tiny", storage=open_storage(url))


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


def routes(app: Any) -> list[tuple[str, str]]:
    """Every route of optuna-dashboard, with example values in it."""
    import re

    return [(r.method, re.sub(r"<[^>]*>", "1", r.rule)) for r in app.routes]


def test_read_only_refuses_every_route_that_is_not_a_read(
    study: optuna.Study, tmp_path: Path
) -> None:
    from optuna_dashboard import wsgi

    before = [(t.number, t.state, t.user_attrs, t.system_attrs) for t in study.trials]
    app = dashboard_app(study._storage, artifact_store(tmp_path), read_only=True)
    writing = [(m, p) for m, p in routes(wsgi(study._storage)) if m not in ("GET", "HEAD")]
    assert len(writing) > 10
    for method, path in writing:
        status, body = call(app, method, path)
        assert status == 403, (method, path)
        assert b"read-only" in body
    assert [(t.number, t.state, t.user_attrs, t.system_attrs) for t in study.trials] == before
    assert call(app, "GET", "/api/studies")[0] == 200


def test_without_read_only_a_note_can_be_written(study: optuna.Study, tmp_path: Path) -> None:
    app = dashboard_app(study._storage, artifact_store(tmp_path))
    assert call(app, "PUT", f"/api/studies/{study._study_id}/note")[0] == 400  # reaches the route


@pytest.mark.parametrize("host", ["evil.example:8080", "evil.example", "127.0.0.1.evil.example"])
def test_foreign_names_are_refused_on_localhost(
    study: optuna.Study, tmp_path: Path, host: str
) -> None:
    app = dashboard_app(study._storage, artifact_store(tmp_path))
    assert call(app, "GET", "/api/studies", host=host)[0] == 403
    for own in ("localhost:8080", "127.0.0.1", "[::1]:8080"):
        assert call(app, "GET", "/api/studies", host=own)[0] == 200


def test_other_addresses_answer_any_name(study: optuna.Study, tmp_path: Path) -> None:
    app = dashboard_app(study._storage, artifact_store(tmp_path), host="0.0.0.0")
    assert call(app, "GET", "/api/studies", host="server.lab:8080")[0] == 200


def detail(study: optuna.Study, tmp_path: Path) -> dict[str, Any]:
    """What the dashboard's page gets for a study."""
    app = dashboard_app(study._storage, artifact_store(tmp_path))
    status, body = call(app, "GET", f"/api/studies/{study._study_id}")
    assert status == 200
    found: dict[str, Any] = json.loads(body)
    return found


def test_refresh_shows_figures_note_and_metric(study: optuna.Study, tmp_path: Path) -> None:
    assert refresh_study(study)
    page = detail(study, tmp_path)
    shown = {g["id"]: json.loads(g["graph_object"]) for g in page["plotly_graph_objects"]}
    assert sorted(shown) == [
        "1-search-history", "2-freezing", "3-genomes", "4-importance", "5-cost", "6-lineage",
        "7-learning-curves",
    ]  # fmt: skip
    assert all(figure["data"] for figure in shown.values())
    assert "Best macro accuracy so far" in page["note"]["body"]
    assert page["objective_names"] == ["macro_accuracy"]
    columns = {c["key"] for c in page["union_user_attrs"]}
    assert columns >= {
        "generation", "role", "parents", "frozen", "trainable_pct", "seconds", "stderr",
    }  # fmt: skip


def test_refresh_replaces_and_waits_for_growth_and_time(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refresh_study(study)
    size = len(study._storage.get_study_system_attrs(study._study_id))
    assert not refresh_study(study)
    assert refresh_study(study, force=True)
    assert len(study._storage.get_study_system_attrs(study._study_id)) == size
    study.add_trial(optuna.trial.create_trial(value=0.1, params={}))
    assert not refresh_study(study)
    now = dashboard.time.time() + 3600
    monkeypatch.setattr(dashboard.time, "time", lambda: now)
    assert refresh_study(study)


def test_note_of_a_person_stays(study: optuna.Study) -> None:
    from optuna_dashboard import get_note, save_note

    refresh_study(study)
    save_note(study, "my own words")
    study.add_trial(optuna.trial.create_trial(value=0.999, params={}))
    assert refresh_study(study, force=True)
    assert get_note(study) == "my own words"


def test_note_of_ours_follows_the_study(study: optuna.Study) -> None:
    from optuna_dashboard import get_note

    refresh_study(study)
    study.add_trial(optuna.trial.create_trial(value=0.999, params={}))
    refresh_study(study, force=True)
    assert "99.9" in get_note(study)


def test_live_figures_stay_small_in_a_long_study() -> None:
    study = optuna.create_study(direction="maximize")
    rng = np.random.default_rng(0)
    blocks = [f"layer{i}.conv" for i in range(16)]
    trials = []
    for number in range(1000):
        rates = 10 ** rng.uniform(-1, 1, 16) * (rng.random(16) < 0.6)
        attrs = {
            "generation": number // 10,
            "role": "offspring",
            "parents": f"{max(0, number - 12)}, {max(0, number - 15)}" if number > 20 else "",
            "recipe": {"lr": 0.1, "multipliers": dict(zip(blocks, rates.tolist(), strict=True))},
            "trainable_pct": float(rng.uniform(1, 100)),
            "seconds": float(rng.uniform(1, 9)),
        }
        steps = {s: float(rng.random()) for s in range(1, 11)}
        trials.append(
            optuna.trial.create_trial(
                value=float(rng.random()), params={}, user_attrs=attrs, intermediate_values=steps
            )
        )
    study.add_trials(trials)
    assert refresh_study(study)
    attrs = study._storage.get_study_system_attrs(study._study_id)
    sizes = {k: len(v) for k, v in attrs.items() if k.startswith("dashboard:plot_data")}
    assert sum(sizes.values()) < 250_000


def test_plain_study_is_refreshed_with_what_it_has(
    plain_study: optuna.Study, tmp_path: Path
) -> None:
    assert refresh_study(plain_study)
    page = detail(plain_study, tmp_path)
    assert {g["id"] for g in page["plotly_graph_objects"]} == {"1-search-history", "5-cost"}


def test_without_the_dashboard_nothing_happens(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda _: None)
    assert not refresh_study(study)


def test_the_command_serves_the_storage_that_it_is_given(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = ("--storage", url, "--port", port, "--read-only")
        result = CliRunner().invoke(cli, ["dashboard", *options, "--study", "digits-tiny"])
        assert result.exit_code == 2
        assert result.stderr.startswith(f"Error: cannot listen on 127.0.0.1:{port}")
    result = CliRunner().invoke(cli, ["dashboard", *options, "--study", "nobody"])
    assert "there is no study 'nobody'; the storage holds 'digits-tiny'" in result.stderr


def running_trial(study: optuna.Study) -> optuna.Trial:
    trial = study.ask()
    for step, value in ((1, 0.25), (2, 0.5), (7, 0.75)):
        trial.report(value, step)
    multipliers = dict(zip(BLOCKS, (0.0, 1.0, 2.0, 5.0), strict=True))
    trial.set_user_attr("recipe", {"lr": 0.1, "weight_decay": 0.0, "multipliers": multipliers})
    return trial


NOTHING, HALF, EVERYTHING = (255, 255, 255), (132, 152, 181), (8, 48, 107)


def shade(picture: Image.Image, n: int, cell: int, row: int, column: int) -> object:
    """Colour of a cell's upper left corner within its frame; right and below are 30 pixels free."""
    free = 30 - 1
    x, y = picture.width - free - (n - column) * cell, picture.height - free - (n - row) * cell
    return picture.getpixel((x, y))


def test_trial_artifacts_hold_curves_recipe_and_confusion(
    study: optuna.Study, tmp_path: Path
) -> None:
    store, trial = artifact_store(tmp_path / "files"), running_trial(study)
    names = attach_trial_artifacts(
        study, trial, store, confusion=[[5, 1], [0, 6]], classes=["a", "b"]
    )
    assert names == ["curves.csv", "recipe.json", "confusion.png"]
    study.tell(trial, 0.75)
    metas = {m.filename: m for m in get_all_artifact_meta(study.trials[-1], storage=study._storage)}
    assert {n: m.mimetype for n, m in metas.items()} == {
        "curves.csv": "text/csv", "recipe.json": "application/json", "confusion.png": "image/png",
    }  # fmt: skip

    def content(name: str) -> bytes:
        target = tmp_path / name
        download_artifact(
            artifact_store=store, artifact_id=metas[name].artifact_id, file_path=str(target)
        )
        return target.read_bytes()

    rows = list(csv.reader(io.StringIO(content("curves.csv").decode())))
    assert rows == [
        ["run", "epoch", "score"],
        ["1", "1", "0.25"],
        ["1", "2", "0.5"],
        ["2", "1", "0.75"],
    ]
    recipe = json.loads(content("recipe.json"))
    assert recipe["multipliers"] == {"stem": 0.0, "layer1": 1.0, "layer2": 2.0, "head": 5.0}
    picture = Image.open(io.BytesIO(content("confusion.png"))).convert("RGB")
    assert [shade(picture, 2, 34, *at) for at in ((1, 0), (1, 1))] == [NOTHING, EVERYTHING]
    app = dashboard_app(study._storage, store)
    listed = detail(study, tmp_path / "files")["trials"][-1]["artifacts"]
    assert {a["filename"] for a in listed} == set(names)
    picture_id = metas["confusion.png"].artifact_id
    path = f"/artifacts/{study._study_id}/{trial._trial_id}/{picture_id}"
    assert call(app, "GET", path)[1][:8] == b"\x89PNG\r\n\x1a\n"


def test_crash_between_bytes_and_link_leaves_no_dangling_link(
    study: optuna.Study, tmp_path: Path
) -> None:
    class FullDisk:
        def write(self, *_: object) -> None:
            raise OSError(28, "No space left on device")

    trial = running_trial(study)
    with pytest.raises(OSError, match="No space left"):
        attach_trial_artifacts(study, trial, FullDisk())  # type: ignore[arg-type]
    assert get_all_artifact_meta(trial) == []


def test_attachments_that_fail_cost_the_study_nothing(
    study: optuna.Study, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attachments = Attachments(url, ["a", "b"])
    shutil.rmtree(tmp_path / "study-artifacts")
    trial = running_trial(study)
    attachments.evaluated(trial, [[1, 0], [0, 1]])
    attachments.finished(study, tmp_path / "nowhere", 10_000)
    assert "carries no artifacts" in caplog.text
    assert "the model was not attached" in caplog.text
    assert get_all_artifact_meta(trial) == []


def test_without_a_folder_for_artifacts_a_study_goes_on(
    study: optuna.Study, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(tmp_path / "study-artifacts", ignore_errors=True)
    (tmp_path / "study-artifacts").write_text("a file is in the way")
    attachments = Attachments(url, ["a", "b"])
    assert "trials carry no artifacts" in caplog.text
    trial = running_trial(study)
    attachments.evaluated(trial, [[1, 0], [0, 1]])
    attachments.finished(study, tmp_path, None)
    assert get_all_artifact_meta(trial) == []


def test_attachments_renew_when_a_generation_ends(study: optuna.Study, url: str) -> None:
    shown = "dashboard:plot_data:1-search-history:0"
    attachments = Attachments(url, ["a", "b"])
    attachments.trial_finished(study, study.trials[-1])
    assert shown in study._storage.get_study_system_attrs(study._study_id)
    study._storage.set_study_system_attr(study._study_id, shown, "gone")
    attachments.trial_finished(study, study.trials[-2])  # the same generation
    assert study._storage.get_study_system_attrs(study._study_id)[shown] == "gone"


@pytest.mark.parametrize(("n", "cell"), [(2, 34), (10, 34), (30, 14), (60, 14), (200, 4)])
def test_confusion_picture_shades_by_share_of_the_row(n: int, cell: int) -> None:
    counts = np.eye(n, dtype=int) * 9
    counts[0, 1] = 9
    names = [f"a class with a long name {i}" for i in range(n)]
    picture = Image.open(io.BytesIO(artifacts.confusion_png(counts.tolist(), names))).convert("RGB")
    assert [shade(picture, n, cell, 0, column) for column in (0, 1)] == [HALF, HALF]
    assert [shade(picture, n, cell, 1, column) for column in (0, 1)] == [NOTHING, EVERYTHING]
    assert max(picture.size) < 1500


def test_model_is_carried_by_study_and_winner(study: optuna.Study, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    store = artifact_store(tmp_path / "files")
    first = attach_model(study, store, folder, trial=3)
    assert attach_model(study, store, folder, trial=3) == first
    assert len(list((tmp_path / "files").iterdir())) == 1
    page = detail(study, tmp_path / "files")
    assert [a["filename"] for a in page["artifacts"]] == ["model.zip"]
    assert [a["filename"] for a in page["trials"][3]["artifacts"]] == ["model.zip"]
    app = dashboard_app(study._storage, store)
    status, content = call(app, "GET", f"/artifacts/{study._study_id}/{first}")
    assert status == 200
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("sqlite:///runs/study.db", "runs/study-artifacts"),
        ("journal:///runs/study.log", "runs/study-artifacts"),
        ("postgresql://me@host/db", "biotune-artifacts"),
    ],
)
def test_artifacts_lie_beside_the_storage(url: str, folder: str) -> None:
    assert default_artifact_dir(url) == Path(folder)


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
    assert address.endswith("/dashboard/studies/1")
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


def test_unknown_study_taken_port_and_foreign_host_are_one_clear_line(url: str) -> None:
    with pytest.raises(
        StudyError, match="there is no study 'nope'; the storage holds 'digits-tiny'"
    ):
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


def test_tables_are_spared_our_long_records(study: optuna.Study, tmp_path: Path) -> None:
    study.set_user_attr("confirm_trainings", {"a": 1})
    add_training(study, "b", {"seconds": 1.0})
    page = detail(study, tmp_path)
    first = {a["key"]: a["value"] for a in page["trials"][0]["user_attrs"]}
    assert "runs" not in first
    rates = study.trials[0].user_attrs["recipe"]["multipliers"].values()
    assert first["recipe"] == " ".join(f"{m:.2g}×" if m > 0 else "·" for m in rates)
    assert {a["key"] for a in page["user_attrs"]} == {"model", "data", "weights"}
    assert study.trials[0].user_attrs["runs"]  # only the view is short


def test_finished_trials_are_shortened_once_and_running_ones_anew(study: optuna.Study) -> None:
    tidy = TidyStorage(study._storage)
    before = tidy.get_all_trials(study._study_id)
    trial = study.ask()
    assert "role" not in tidy.get_all_trials(study._study_id)[-1].user_attrs
    trial.set_user_attr("role", "offspring")
    after = tidy.get_all_trials(study._study_id)
    assert after[-1].user_attrs["role"] == "offspring"
    assert all(a is b for a, b in zip(before, after, strict=False))
