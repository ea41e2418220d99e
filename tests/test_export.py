"""The exported folder: whole or absent, loadable by timm alone, same probabilities as in memory."""

import csv
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from biotune_optuna.data.decode import DECODE_ERRORS
from biotune_optuna.data.loaders import DeviceImages, PixelStore
from biotune_optuna.data.sources import open_source
from biotune_optuna.errors import BioTuneError, DataError, ModelError
from biotune_optuna.export import (
    Exported,
    Preprocessing,
    export_model,
    load_exported,
    write_csv,
)
from biotune_optuna.export.folder import FILES, check_target
from biotune_optuna.finetune import Trainer, TrainSettings
from biotune_optuna.models import create_model, model_blocks
from biotune_optuna.recipe import Recipe

NAME = "test_efficientnet"
SIZE = 48
CLASSES = ("circle", "stripes", "ünï|code*")


def picture(kind, seed):
    """A noisy picture of another size and shape each time."""
    rng = np.random.default_rng([kind, seed])
    height, width = rng.integers(40, 90, size=2)
    y, x = np.mgrid[:height, :width]
    shapes = ((y - height / 2) ** 2 + (x - width / 2) ** 2 < 200, x % 8 < 4, y % 8 < 4)
    noise = rng.integers(0, 60, size=(height, width, 3))
    return Image.fromarray((shapes[kind][..., None] * 180 + noise).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for kind, name in enumerate(("a", "b", "c")):
        (root / name).mkdir()
        for seed in range(9):
            picture(kind, seed).save(root / name / f"{seed}.png")
    return root


@pytest.fixture(scope="module")
def tuned(folder, tmp_path_factory):
    """A real training, and the probabilities that the trainer gives at its end."""
    loaded = create_model(NAME, num_classes=3, weights="none", seed=0)
    source = open_source(folder)
    store = PixelStore.build(
        source, size=SIZE, crop_pct=0.9, cache_dir=tmp_path_factory.mktemp("cache")
    )
    normalisation = {key: loaded.data_config[key] for key in ("mean", "std")}
    images = DeviceImages(store, source.labels, **normalisation)
    blocks = model_blocks(loaded.model)
    settings = TrainSettings(epochs=2, batch_size=4)
    trainer = Trainer(loaded.model, blocks, images, settings, device="cpu")
    recipe = Recipe.layer_decay(blocks, lr=1e-2, decay=0.7)
    everything = np.arange(len(source))
    trainer.fit(recipe, everything, None, seed=0)
    return {
        "model": trainer.model,
        "recipe": recipe,
        "preprocessing": Preprocessing(
            size=SIZE, crop_pct=0.9, batch_size=2 * settings.batch_size, **normalisation
        ),
        "paths": [folder / name for name in source.ids],
        "probabilities": trainer.predict(everything),
    }


def export(tuned, directory, **changes):
    arguments = {
        "model": tuned["model"],
        "model_name": NAME,
        "classes": CLASSES,
        "preprocessing": tuned["preprocessing"],
        "recipe": tuned["recipe"],
    }
    return export_model(directory, **{**arguments, **changes})


@pytest.fixture(scope="module")
def exported(tuned, tmp_path_factory):
    return export(tuned, tmp_path_factory.mktemp("out") / "deep" / "model")


def probabilities(predictions):
    return np.stack([prediction.probabilities for prediction in predictions])


def test_predictions_equal_those_in_memory_to_the_bit(tuned, exported):
    found = load_exported(exported, device="cpu").predict(tuned["paths"])
    assert np.array_equal(probabilities(found), tuned["probabilities"])
    assert len(np.unique(probabilities(found)[:, 0])) > 3  # no constant model


def test_another_batch_size_gives_the_same_but_for_rounding(tuned, exported):
    found = load_exported(exported, device="cpu").predict(tuned["paths"], batch_size=1)
    np.testing.assert_allclose(probabilities(found), tuned["probabilities"], atol=1e-5)


def test_a_batch_that_does_not_fit_is_halved(tuned, exported, monkeypatch):
    loaded = load_exported(exported, device="cpu")
    sizes, forward = [], loaded.model.forward

    def narrow(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    monkeypatch.setattr(loaded.model, "forward", narrow)
    found = probabilities(loaded.predict(tuned["paths"]))
    assert max(sizes) > 2
    np.testing.assert_allclose(found, tuned["probabilities"], rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(loaded.model, "forward", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loaded.predict(tuned["paths"])


def test_a_pickle_opens_where_its_device_is_not(tuned, exported, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    loaded = load_exported(exported, device="cpu")
    state = loaded.__getstate__()
    assert state["device"] == "cpu"
    again = type(loaded).__new__(type(loaded))
    again.__setstate__(state | {"device": "cuda:7"})  # as pickled on a machine with eight of them
    assert again.device == torch.device("cpu")
    np.testing.assert_allclose(
        probabilities(pickle.loads(pickle.dumps(again)).predict(tuned["paths"])),
        tuned["probabilities"],
        rtol=1e-4,
        atol=1e-6,
    )


def test_the_same_class_serves_a_model_in_memory(tuned, exported):
    memory = Exported(
        tuned["model"],
        name=NAME,
        classes=CLASSES,
        preprocessing=tuned["preprocessing"],
        device="cpu",
    )
    found = memory.predict(tuned["paths"])
    assert np.array_equal(probabilities(found), tuned["probabilities"])


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
    assert {path.name for path in exported.iterdir()} == FILES
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
    assert "| metric | value | 95 % interval |\n| --- | --- | --- |\n| accuracy | 0.9123 |" in text
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


class TestTarget:
    def test_an_earlier_export_is_replaced(self, tuned, tmp_path):
        target = tmp_path / "m"
        export(tuned, target)
        before = (target / "model.safetensors").stat().st_ino
        export(tuned, target)
        assert (target / "model.safetensors").stat().st_ino != before
        assert [path.name for path in tmp_path.iterdir()] == ["m"]

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


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


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
    (copy / "labels.json").write_text('["a", "b", "c"]')
    rewrite(copy / "preprocessing.json", schema_version=99)
    refused("schema version 99")
    rewrite(copy / "preprocessing.json", schema_version=1)
    state = load_file(copy / "model.safetensors")
    removed = next(iter(state))
    save_file({k: v for k, v in state.items() if k != removed}, copy / "model.safetensors")
    refused(f"{removed} is missing")
    (copy / "model.safetensors").unlink()
    refused(r"no exported model: model\.safetensors missing")
    shutil.rmtree(copy)
    refused("no such folder")


class TestPredict:
    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, exported):
        return load_exported(exported, device="cpu")

    def test_bad_images_are_reported_and_the_rest_goes_on(self, model, tuned, tmp_path):
        broken = tmp_path / "broken.jpg"
        broken.write_bytes(b"\xff\xd8\xff\xe0 no more")
        paths = [*tuned["paths"][:3], broken, tmp_path / "gone.png", *tuned["paths"][3:8], 7]
        found = model.predict(paths, top_k=2)
        assert [bool(item.error) for item in found] == [False] * 3 + [True] * 2 + [False] * 5 + [
            True
        ]
        assert "broken.jpg" in found[3].error
        assert found[3].label is None
        assert found[3].top == ()
        assert "gone.png" in found[4].error
        assert "image 10 is a int" in found[10].error
        good = [item for item in found if not item.error]
        # the readable ones fill the batches as if the others were not there
        assert np.array_equal(probabilities(good), tuned["probabilities"][:8])

    def test_top_k_is_sorted_and_named(self, model, tuned):
        prediction = model.predict(tuned["paths"][0], top_k=99)[0]
        labels, values = zip(*prediction.top, strict=True)
        assert set(labels) == set(CLASSES)
        assert list(values) == sorted(values, reverse=True)
        assert (prediction.label, prediction.probability) == prediction.top[0]
        assert sum(values) == pytest.approx(1.0, abs=1e-5)
        assert prediction.image == str(tuned["paths"][0])

    def test_folders_pictures_and_arrays_are_the_same_images(self, model, folder):
        paths = sorted((folder / "a").iterdir())
        expected = probabilities(model.predict(paths))
        pictures = [Image.open(path) for path in paths]
        arrays = [np.asarray(image) for image in pictures]
        for images in (folder / "a", str(folder / "a"), pictures, arrays):
            assert np.array_equal(probabilities(model.predict(images)), expected)
        assert model.predict(arrays)[4].image == "image 4"

    def test_links_in_a_folder_are_not_followed(self, model, folder, tmp_path):
        (tmp_path / "real.png").write_bytes((folder / "a" / "0.png").read_bytes())
        (tmp_path / "link.png").symlink_to(folder / "a" / "1.png")
        assert len(model.predict(tmp_path)) == 1

    def test_hidden_files_are_passed_over(self, model, folder, tmp_path):
        content = (folder / "a" / "0.png").read_bytes()
        for name in ("seen.png", "._seen.png", ".cache/0.png", "a/.b/0.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        hidden = tmp_path / "a" / ".b"
        named = model.predict([tmp_path, hidden, hidden / "0.png"])
        assert [Path(one.image).parent.name for one in named] == [tmp_path.name, ".b", ".b"]

    def test_a_name_too_long_costs_only_itself(self, model, tuned):
        long, sound = model.predict(["x" * 300 + ".png", tuned["paths"][0]])
        assert "too long" in long.error
        assert sound.error is None

    def test_nothing_to_predict_and_senseless_numbers_are_refused(self, model, tuned, tmp_path):
        with pytest.raises(DataError, match="no images to predict"):
            model.predict(tmp_path)
        for settings in ({"batch_size": 0}, {"top_k": 0}):
            with pytest.raises(DataError, match="must be at least 1"):
                model.predict(tuned["paths"], **settings)

    def test_one_bad_image_costs_only_itself(self, model, tuned, tmp_path):
        empty = np.zeros((0, 0, 3), dtype=np.uint8)
        good = np.asarray(Image.open(tuned["paths"][0]))
        first, second = model.predict([empty, good])
        assert first.error  # in Pillow's words or ours
        assert second.error is None
        with pytest.raises(DataError, match="images 5 are no path"):
            model.predict(5)

    @pytest.mark.parametrize("kind", DECODE_ERRORS)
    def test_a_lazy_picture_that_is_broken_costs_only_itself(self, model, tuned, kind):
        class Broken(Image.Image):
            def load(self):
                raise kind("broken\nhere")

        good = Image.open(tuned["paths"][0])
        good.load()
        broken = Broken()
        broken.__dict__.update(good.__dict__)
        before, found, after = model.predict([good, broken, good])
        assert found.error == "broken here"
        assert before.error is None
        assert after.error is None

    def test_a_name_that_is_no_text_can_be_listed(self, model, tuned, tmp_path):
        odd = os.fsdecode(bytes(tmp_path / "caf") + b"\xe9.png")
        shutil.copy(tuned["paths"][0], odd)
        text = write_csv(model.predict(tmp_path), tmp_path / "out.csv").read_text()
        assert "caf\\udce9.png" in text

    def test_predictions_are_given_batch_by_batch(self, model, tuned):
        drawn = []

        def paths():
            for path in tuned["paths"]:
                drawn.append(path)
                yield path

        stream = model.iter_predict(paths())
        next(stream)
        assert len(drawn) <= model.preprocessing.batch_size
        assert 1 + len(list(stream)) == len(tuned["paths"])

    def test_the_table_holds_every_number_in_full(self, model, tuned, tmp_path):
        found = model.predict([tuned["paths"][0], tmp_path / "gone, away.png"], top_k=2)
        path = write_csv(found, tmp_path / "out.csv")
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == [
            "image",
            "label",
            "probability",
            "label_2",
            "probability_2",
            "error",
        ]
        assert rows[0]["label"] == found[0].label
        assert float(rows[0]["probability"]) == found[0].probability
        assert float(rows[0]["probability_2"]) == found[0].top[1][1]
        assert rows[1]["image"].endswith("gone, away.png")
        assert rows[1]["label"] == ""
        assert "cannot be read" in rows[1]["error"]
        assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]
        with pytest.raises(BioTuneError, match="cannot write"):
            write_csv(found, tmp_path / "no" / "out.csv")


@pytest.mark.parametrize("name", ["volo_d4_448", "volo_d5_512"])
def test_a_square_larger_than_the_picture_is_that_of_timm(name):
    config = timm.get_pretrained_cfg(name)
    assert config.crop_pct > 1
    settings = Preprocessing(
        size=config.input_size[-1],
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    assert Preprocessing.from_dict(settings.to_dict()) == settings
    seen = []

    class Model(torch.nn.Module):
        def forward(self, batch):
            seen.append(batch)
            return batch.mean((2, 3))

    model = Exported(Model(), name=name, classes=CLASSES, preprocessing=settings, device="cpu")
    image = picture(1, 0)
    model.predict(image)
    transform = timm.data.create_transform(
        config.input_size,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
        mean=settings.mean,
        std=settings.std,
    )
    torch.testing.assert_close(seen[0][0], transform(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": 0}, DataError, "image size 0"),
        ({"mean": (0.5,)}, DataError, "need 3 values"),
        ({"std": (0.5, 0.5, 0.0)}, DataError, "std > 0"),
        ({"batch_size": 0}, DataError, "batch size 0"),
        ({"amp": "fp8"}, DataError, "amp 'fp8' is unknown"),
        ({"interpolation": "cubic"}, DataError, "interpolation 'cubic'"),
        ({"crop_pct": 2.1}, DataError, r"crop_pct 2\.1 is not in \(0, 2\]"),
    ],
)
def test_senseless_preprocessing_is_refused(change, error, message):
    good = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert Preprocessing.from_dict(json.loads(json.dumps(good.to_dict()))) == good
    with pytest.raises(error, match=message):
        Preprocessing.from_dict(good.to_dict() | change)
    with pytest.raises(ModelError, match="lacks or garbles a field: 'std'"):
        Preprocessing.from_dict({k: v for k, v in good.to_dict().items() if k != "std"})
