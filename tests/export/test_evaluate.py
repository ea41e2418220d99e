"""An evaluation says what the predictions say, with intervals, and shows what is wrong."""

import csv
import json
import math
import re

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from biotune_optuna.cli import cli
from biotune_optuna.errors import BioTuneError, DataError
from biotune_optuna.export import load_exported
from biotune_optuna.finetune.metrics import calibration_error
from tests.kit.cli import fails
from tests.kit.export import CLASSES, export, picture

EVIL = CLASSES[2]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Pictures that the model was not trained on, two of them under a wrong name."""
    root = tmp_path_factory.mktemp("labelled")
    for kind, name in enumerate(CLASSES):
        (root / name).mkdir()
        for seed in range(20, 26):
            picture(kind, seed).save(root / name / f"{seed}.png")
    for seed in (30, 31):
        picture(1, seed).save(root / CLASSES[0] / f"mislabelled-{seed}.png")
    (root / CLASSES[1] / "broken.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def found(exported, labelled):
    return load_exported(exported, device="cpu").evaluate(labelled)


def test_its_values_are_those_of_scikit_learn(found, exported, labelled):
    predictor = load_exported(exported, device="cpu")
    said = predictor.predict([labelled / name for name in found.ids])
    assert [CLASSES[k] for k in found.predicted] == [one.label for one in said]
    labels, probs = found.labels, found.probabilities
    assert [CLASSES[k] for k in labels] == [name.split("/")[0] for name in found.ids]
    expected = {
        "accuracy": accuracy_score(labels, found.predicted),
        "macro_accuracy": balanced_accuracy_score(labels, found.predicted),
        "macro_f1": f1_score(labels, found.predicted, average="macro", zero_division=0),
        "roc_auc": roc_auc_score(labels, probs, multi_class="ovr"),
    }
    for name, value in expected.items():
        assert found.values[name].value == pytest.approx(value, abs=1e-6)
    for value in found.values.values():
        assert 0 <= value.low <= value.high <= 1
    assert np.sum(found.confusion) == len(labels) == 20
    assert [one.n for one in found.by_class] == [8, 6, 6]
    for k, one in enumerate(found.by_class):
        assert one.recall.value == pytest.approx(np.mean(found.predicted[labels == k] == k))


def test_what_cannot_be_read_is_listed_and_what_is_wrong_is_shown(found):
    assert len(found.skipped) == 1
    assert "broken.png" in found.skipped[0]
    wrong = int((found.predicted != found.labels).sum())
    assert len(found.worst) == wrong > 0
    sure = [one.probability for one in found.worst]
    assert sure == sorted(sure, reverse=True)
    assert all(one.thumbnail.startswith("data:image/jpeg") for one in found.worst)
    assert all(one.label != one.predicted for one in found.worst)


def test_calibration_error_of_known_cases():
    labels = np.array([0, 0, 1, 1])
    sure = np.eye(2)[labels]
    assert calibration_error(labels, sure) == 0
    assert calibration_error(labels, sure[::-1]) == 1
    half = np.tile([0.75, 0.25], (4, 1))  # right in half of the cases, said with 75 %
    assert calibration_error(labels, half) == pytest.approx(0.25)


def test_it_is_written_as_json_csv_and_html(found, tmp_path):
    data = json.loads(found.write_json(tmp_path / "e.json").read_text())
    assert data["n"] == 20
    assert data["accuracy"]["value"] == found.values["accuracy"].value
    rows = list(csv.DictReader(found.write_csv(tmp_path / "e.csv").open(encoding="utf-8")))
    assert [row["image"] for row in rows] == list(found.ids)
    assert sum(row["right"] == "no" for row in rows) == len(found.worst)
    assert all(re.fullmatch(r"[01]\.\d{4}", row["probability"]) for row in rows)
    html = found.write_html(tmp_path / "deep" / "e.html").read_text()
    assert html.count("<img") == len(found.worst)
    assert "Confusion" in html
    with pytest.raises(BioTuneError, match="cannot be written"):
        found.write_json(tmp_path)


def test_html_escapes_names(exported, tuned, labelled, tmp_path):
    evil = ("<script>alert(1)</script>", "b", "c")
    folder = export(tuned, tmp_path / "model", classes=evil)
    data = tmp_path / "data.csv"
    names = dict(zip(CLASSES, evil, strict=True))
    files = [p for p in sorted(labelled.rglob("*.png")) if p.name != "broken.png"]
    for path in files:
        (tmp_path / f"{CLASSES.index(path.parent.name)}-{path.name}").write_bytes(path.read_bytes())
    labels = [
        f"{CLASSES.index(path.parent.name)}-{path.name},{names[path.parent.name]}" for path in files
    ]
    data.write_text("\n".join(["path,label", *labels, ""]))
    html = load_exported(folder, device="cpu").evaluate(data).write_html(tmp_path / "e.html")
    assert "<script>alert" not in html.read_text()


def test_a_test_part_is_taken_where_there_is_one(exported, labelled, tmp_path):
    predictor = load_exported(exported, device="cpu")
    for part, kinds in (("train", (0, 1, 2)), ("test", (0, 1))):
        for kind in kinds:
            (tmp_path / part / CLASSES[kind]).mkdir(parents=True)
            picture(kind, 40).save(tmp_path / part / CLASSES[kind] / "40.png")
    assert predictor.evaluate(tmp_path).part == "test"
    assert len(predictor.evaluate(tmp_path).ids) == 2
    assert len(predictor.evaluate(tmp_path, part="all").ids) == 5
    with pytest.raises(DataError, match="no val part"):
        predictor.evaluate(tmp_path, part="val")
    with pytest.raises(DataError, match="not divided"):
        predictor.evaluate(labelled, part="test")
    with pytest.raises(DataError, match="unknown"):
        predictor.evaluate(labelled, part="dev")


def test_images_of_the_training_are_known_again(tuned, folder, tmp_path):
    from biotune_optuna.data.sources.open import open_images

    source = open_images(folder)
    model = export(tuned, tmp_path / "model", classes=source.classes, trained_on=source.fingerprint)
    again = load_exported(model, device="cpu").evaluate(folder)
    assert again.seen
    assert "never seen" in str(again)
    assert np.allclose(again.probabilities, tuned["probabilities"], atol=1e-5)


def test_labels_that_the_model_does_not_know_are_refused(exported, folder):
    predictor = load_exported(exported, device="cpu")
    with pytest.raises(DataError, match=r"class 'a' .*none of the model's; they are circle"):
        predictor.evaluate(folder)


def test_arrays_with_labels_are_evaluated(exported):
    pixels = np.stack([np.asarray(picture(k, 50).resize((50, 50))) for k in (0, 1, 2)])
    found = load_exported(exported, device="cpu").evaluate(pixels, labels=list(CLASSES))
    assert found.ids == ("0", "1", "2")
    assert math.isfinite(found.values["roc_auc"].value)


def test_the_command_prints_and_writes(exported, labelled, tmp_path):
    call = ["evaluate", str(exported), str(labelled), "--device", "cpu"]
    done = CliRunner().invoke(cli, [*call, "--csv", f"{tmp_path}/t.csv", "--html", f"{tmp_path}/p"])
    assert done.exit_code == 0, done.output
    assert "of 20 images right" in done.stdout
    assert "1 left out" in done.stdout
    table = done.stdout.partition("1 left out")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert (tmp_path / "t.csv").exists()
    assert (tmp_path / "p").exists()
    told = CliRunner().invoke(cli, [*call, "--json"])
    assert json.loads(told.stdout)["n"] == 20
    assert "no such folder" in fails("evaluate", "nowhere", str(labelled))


def test_predict_offers_it_for_labelled_folders(exported, labelled, tmp_path):
    table = str(tmp_path / "p.csv")
    done = CliRunner().invoke(
        cli, ["predict", str(exported), str(labelled), "--csv", table, "--device", "cpu"]
    )
    assert "biotune evaluate" in done.stderr
    counts = [int(n) for n in re.findall(r": (\d+) images?$", done.stdout, re.MULTILINE)]
    assert sum(counts) == 20
    one = CliRunner().invoke(
        cli, ["predict", str(exported), str(labelled / CLASSES[0]), "--device", "cpu"]
    )
    assert "biotune evaluate" not in one.stderr
