"""The exported folder: whole or absent, and loadable by timm alone."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from biotune_optuna.errors import BioTuneError, ModelError
from biotune_optuna.export import (
    Preprocessing,
    export_model,
    load_exported,
)
from biotune_optuna.export.folder import FILES, check_target
from biotune_optuna.models.blocks import model_blocks
from biotune_optuna.models.weights import create_model
from biotune_optuna.recipe import Recipe
from tests.kit.export import CLASSES, NAME, SIZE, export


def assert_same_weights(model, tuned):
    state = tuned["model"].state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_timm_loads_the_folder_by_itself(tuned, exported):
    model = timm.create_model(f"local-dir:{exported}", pretrained=True)
    assert_same_weights(model, tuned)
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config["input_size"]) == (3, SIZE, SIZE)
    assert config["crop_pct"] == 0.9
    assert tuple(config["mean"]) == tuned["preprocessing"].mean


def test_timm_loads_the_weights_as_a_checkpoint(tuned, exported):
    file = exported / "model.safetensors"
    model = timm.create_model(NAME, num_classes=3, checkpoint_path=str(file))
    assert_same_weights(model, tuned)


def test_timms_own_transform_gives_nearly_the_same_answer(tuned, exported):
    model = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    batch = torch.stack([transform(Image.open(p).convert("RGB")) for p in tuned["paths"]])
    with torch.inference_mode():
        found = model(batch).softmax(-1).numpy()
    np.testing.assert_allclose(found, tuned["probabilities"], atol=1e-3)


def test_a_transformer_made_for_another_size_comes_back(tmp_path):
    loaded = create_model("test_vit", num_classes=3, weights="none", img_size=96)
    data = loaded.data_config
    out = export_model(
        tmp_path / "vit",
        model=loaded.model,
        model_name="test_vit",
        classes=CLASSES,
        preprocessing=Preprocessing(size=96, mean=data["mean"], std=data["std"]),
        recipe=Recipe.linear_probe(model_blocks(loaded.model), lr=0.1),
        model_args=loaded.model_args,
    )
    image = torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        expected = loaded.model.eval()(image)
        assert torch.equal(load_exported(out, device="cpu").model(image), expected)
        again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        assert torch.equal(again(image), expected)


def test_tensors_shared_between_modules_are_exported(tmp_path):
    loaded = create_model("coat_tiny", num_classes=3, weights="none", img_size=64)
    out = export_model(
        tmp_path / "coat",
        model=loaded.model,
        model_name="coat_tiny",
        classes=CLASSES,
        preprocessing=Preprocessing(size=64, mean=(0.5,) * 3, std=(0.5,) * 3),
        recipe=Recipe.full(model_blocks(loaded.model), lr=0.1),
        model_args=loaded.model_args,
    )
    state = load_exported(out, device="cpu").model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in loaded.model.state_dict().items())


def test_the_folder_holds_what_its_readers_need(tuned, exported):
    assert {path.name for path in exported.iterdir()} == FILES - {
        "members.safetensors",
        "members.json",
        "calibration.json",
        "model.onnx",
    }
    assert json.loads((exported / "labels.json").read_text(encoding="utf-8")) == list(CLASSES)
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert config["label_names"] == list(CLASSES)
    assert not {"url", "hf_hub_id", "file"} & config["pretrained_cfg"].keys()
    assert Recipe.load(exported / "recipe.json").key() == tuned["recipe"].key()
    loaded = load_exported(exported, device="cpu")
    assert loaded.preprocessing == tuned["preprocessing"]
    assert loaded.recipe.key() == tuned["recipe"].key()
    assert loaded.classes == CLASSES
    assert not list(exported.parent.glob(".*"))


def test_the_card_says_what_it_was_told_and_how_to_use_it(tuned, tmp_path):
    facts = {
        "Metrics": [{"metric": "accuracy", "value": 0.91234, "95 % interval": (0.88, 0.94)}],
        "Cost": {"trials": 60, "minutes": 12.5},
        "Notes": ["one", "two"],
        "Limits": "Only drawn shapes.",
        "Recipe": "Stem frozen.",
    }
    text = (export(tuned, tmp_path / "m", card=facts) / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: timm\n")
    assert "| metric | value | 95 % interval |\n|---|---|---|\n| accuracy | 0.9123 |" in text
    assert "0.88, 0.94" in text
    assert "| trials | 60 |\n| minutes | 12.5 |" in text
    assert "- one\n- two" in text
    assert "Only drawn shapes." in text
    assert "Every image is put into one" not in text
    assert "## Intended use" in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[:3] == ["## Metrics", "## Cost", "## Notes"]
    assert headings[-3:] == ["## Preprocessing", "## Classes", "## Use"]
    assert len(set(headings)) == len(headings)
    assert "## Recipe\n\nStem frozen." in text
    assert "2. ünï\\|code\\*" in text
    assert 'timm.create_model("local-dir:.", pretrained=True)' in text


def test_the_umask_says_who_may_read_the_weights(tuned, tmp_path):
    before = os.umask(0o022)
    try:
        target = export(tuned, tmp_path / "m")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o644}


class TestTarget:
    def test_an_earlier_export_is_replaced(self, tuned, tmp_path):
        target = tmp_path / "m"
        export(tuned, target)
        before = (target / "model.safetensors").stat().st_ino
        export(tuned, target)
        assert (target / "model.safetensors").stat().st_ino != before
        assert [path.name for path in tmp_path.iterdir()] == ["m"]

    def test_an_export_of_another_origin_is_left_alone(self, tuned, tmp_path):
        target = export(tuned, tmp_path / "m", origin="pets")
        assert load_exported(target, device="cpu").classes == CLASSES
        with pytest.raises(BioTuneError, match=r"'.*m' holds a model of other images or of anoth"):
            export(tuned, target, origin="cars")
        assert json.loads((target / "config.json").read_text())["origin"] == "pets"
        for origin in ("pets", None, "cars"):  # None replaces any, and is replaced by any
            export(tuned, target, origin=origin)
        assert json.loads((target / "config.json").read_text())["origin"] == "cars"

    def test_an_empty_folder_is_filled(self, tuned, tmp_path):
        assert (export(tuned, tmp_path) / "config.json").is_file()

    def test_the_current_folder_is_refused(self, tuned, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in (".", str(tmp_path)):
            with pytest.raises(BioTuneError, match=r"current folder, .*a new folder in it"):
                export(tuned, name)
        assert not list(tmp_path.iterdir())

    def test_a_foreign_folder_is_left_alone(self, tuned, tmp_path):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(BioTuneError, match=r"holds thesis\.tex; give a new or empty folder"):
            export(tuned, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_an_export_with_something_added_is_left_alone(self, tuned, tmp_path):
        export(tuned, tmp_path / "m")
        (tmp_path / "m" / "notes.txt").write_text("mine")
        with pytest.raises(BioTuneError, match=r"holds notes\.txt"):
            export(tuned, tmp_path / "m")

    def test_a_folder_with_files_of_our_names_alone_is_left_alone(self, tuned, tmp_path):
        (tmp_path / "README.md").write_text("mine")
        with pytest.raises(BioTuneError, match="is no earlier export"):
            export(tuned, tmp_path)

    def test_files_and_links_are_left_alone(self, tuned, tmp_path):
        (tmp_path / "file").write_text("mine")
        (tmp_path / "link").symlink_to(tmp_path)
        for name in ("file", "link"):
            with pytest.raises(BioTuneError, match="is not a folder"):
                export(tuned, tmp_path / name)

    def test_a_place_that_cannot_be_written_is_named(self, tuned, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(BioTuneError, match=r"cannot write the model to .*give another folder"):
            export(tuned, tmp_path / "file" / "m")

    def test_a_failure_on_the_way_leaves_the_earlier_export(self, tuned, tmp_path, monkeypatch):
        target = export(tuned, tmp_path / "m")
        before = (target / "model.safetensors").read_bytes()

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("biotune_optuna.export.folder.save_file", full)
        with pytest.raises(BioTuneError, match="No space left"):
            export(tuned, target)
        assert (target / "model.safetensors").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("a", "b")}, "2 class names do not fit a model with 3 outputs"),
        ({"model_name": "my_own_net"}, "'my_own_net' is not a model of timm"),
        ({"model_args": {"x": object()}}, "cannot be written as JSON"),
    ],
)
def test_what_timm_could_not_load_is_refused(tuned, tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        export(tuned, tmp_path / "m", **changes)
    assert not (tmp_path / "m").exists()


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def closed(tmp_path, monkeypatch):
    """A folder that others may not enter, which holds for root too."""
    real = Path.stat

    def stat(self, **options):
        if self.is_relative_to(tmp_path / "closed") and self != tmp_path / "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, **options)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(Path, "stat", stat)
    return tmp_path / "closed"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "x" * 300 + "/y"])
def test_names_that_cannot_be_are_refused_in_one_line(tuned, tmp_path, name):
    with pytest.raises(ModelError, match=r"cannot be looked up: .*; give another path$") as caught:
        load_exported(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(BioTuneError, match="cannot be looked up: "):
        check_target(tmp_path / name)
    with pytest.raises(BioTuneError, match="cannot be looked up: "):
        export(tuned, tmp_path / name)


def test_folders_that_are_closed_are_refused_in_one_line(closed):
    for folder in (closed, closed / "x"):
        with pytest.raises(ModelError, match="cannot be looked up: Permission denied"):
            load_exported(folder)
    with pytest.raises(BioTuneError, match="cannot be looked up: Permission denied"):
        check_target(closed / "x")


def test_json_without_end_is_refused_in_one_line(copy):
    for name in ("config.json", "labels.json"):
        before = (copy / name).read_text()
        for content in ("[" * 100_000 + "]" * 100_000, "[" + "9" * 5000 + "]"):
            (copy / name).write_text(content)
            with pytest.raises(ModelError, match=rf"{name}' cannot be read: ") as caught:
                load_exported(copy, device="cpu")
            assert "\n" not in str(caught.value)
        (copy / name).write_text(before)


@pytest.mark.parametrize("name", ["members.json", "calibration.json"])
def test_pipes_and_devices_are_not_read(copy, name):
    os.mkfifo(copy / name)
    with pytest.raises(ModelError, match=rf"{name}' cannot be read: .*it is not a file"):
        load_exported(copy, device="cpu")
    (copy / name).unlink()
    (copy / name).symlink_to("/dev/zero")
    with pytest.raises(ModelError, match=rf"{name}' cannot be read: .*it is not a file"):
        load_exported(copy, device="cpu")


def test_damaged_folders_are_refused_in_one_line(copy, tmp_path):
    def refused(message):
        with pytest.raises(ModelError, match=message) as caught:
            load_exported(copy, device="cpu")
        assert "\n" not in str(caught.value)

    rewrite(copy / "config.json", model_args={"checkpoint_path": "/etc/passwd"})
    refused("model_args that are not allowed")
    rewrite(copy / "config.json", model_args={}, architecture="hf-hub:x/y")
    refused("unknown model 'hf-hub:x/y'")
    rewrite(copy / "config.json", architecture=NAME)
    (copy / "labels.json").write_text('["a", "b"]')
    refused("names 2 classes")
    (copy / "labels.json").write_text("{}")
    refused("holds no JSON list")
    for odd in (r'"a\n"', r'"\u001b[2J"', "1", "null"):
        (copy / "labels.json").write_text(f'["a", "b", {odd}]')
        refused("which is no class name")
    (copy / "labels.json").write_text('["a", "b", "c"]')
    rewrite(copy / "preprocessing.json", schema_version=99)
    refused("schema version 99")
    rewrite(copy / "preprocessing.json", schema_version=1)
    state = load_file(copy / "model.safetensors")
    removed = next(key for key in state if key.endswith(".weight"))
    save_file({k: v for k, v in state.items() if k != removed}, copy / "model.safetensors")
    refused(f"{removed} is missing")
    (copy / "model.safetensors").unlink()
    refused(r"no exported model: model\.safetensors missing")
    shutil.rmtree(copy)
    refused("no such folder")
