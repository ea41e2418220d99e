"""What trials and studies carry for the dashboard: curves, recipes, pictures, models."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.artifacts import download_artifact, get_all_artifact_meta
from PIL import Image

from biotune_optuna.report.dashboard import artifacts
from biotune_optuna.report.dashboard.artifacts import (
    artifact_store,
    attach_model,
    attach_trial_artifacts,
)
from biotune_optuna.report.dashboard.attach import Attachments
from biotune_optuna.report.dashboard.serve import dashboard_app
from tests.kit.dashboard import call, detail
from tests.kit.lab import BLOCKS


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
