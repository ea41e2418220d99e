"""Predictions: those of the model in memory, and bad images cost only themselves."""

import csv
import dataclasses
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

from biotune_optuna.confirmation.winner import preprocessing_of
from biotune_optuna.data.decode import DECODE_ERRORS
from biotune_optuna.errors import BioTuneError, DataError, ModelError
from biotune_optuna.export import (
    Predictor,
    Preprocessing,
    load_exported,
    write_csv,
)
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.study.setup import prepare
from tests.kit.export import CLASSES, NAME, picture, probabilities
from tests.kit.studies import tiny_spec


def test_predictions_equal_those_in_memory_to_the_bit(tuned, exported):
    found = load_exported(exported, device="cpu").predict(tuned["paths"])
    assert np.array_equal(probabilities(found), tuned["probabilities"])
    assert len(np.unique(probabilities(found)[:, 0])) > 3  # no constant model


def test_an_empty_path_is_no_folder(tuned, exported, monkeypatch):
    monkeypatch.chdir(tuned["paths"][0].parent)
    found = load_exported(exported, device="cpu").predict(["", tuned["paths"][0]])
    assert [one.error is None for one in found] == [False, True]
    assert len(load_exported(exported, device="cpu").predict(".")) > 1


def test_another_batch_size_gives_the_same_but_for_rounding(tuned, exported):
    found = load_exported(exported, device="cpu").predict(tuned["paths"], batch_size=1)
    np.testing.assert_allclose(probabilities(found), tuned["probabilities"], atol=1e-5)


def test_a_model_that_was_trained_in_fp16_predicts_on_a_cpu(tuned, exported):
    loaded = load_exported(exported, device="cpu")
    loaded.preprocessing = dataclasses.replace(loaded.preprocessing, amp="fp16")
    assert np.array_equal(probabilities(loaded.predict(tuned["paths"])), tuned["probabilities"])


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
    memory = Predictor(
        tuned["model"],
        name=NAME,
        classes=CLASSES,
        preprocessing=tuned["preprocessing"],
        device="cpu",
    )
    found = memory.predict(tuned["paths"])
    assert np.array_equal(probabilities(found), tuned["probabilities"])


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

    def test_the_table_holds_four_digits_of_each_probability(self, model, tuned, tmp_path):
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
        assert rows[0]["probability"] == f"{found[0].probability:.4f}"
        assert rows[0]["probability_2"] == f"{found[0].top[1][1]:.4f}"
        assert rows[1]["image"].endswith("gone, away.png")
        assert rows[1]["label"] == ""
        assert "cannot be read" in rows[1]["error"]
        assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]
        with pytest.raises(BioTuneError, match="cannot write"):
            write_csv(found, tmp_path / "no" / "out.csv")


class Still(torch.nn.Module):
    """Keeps the batches that it sees."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.seen = []

    def forward(self, batch):
        self.seen.append(batch)
        return self.layer(batch.mean((2, 3)))


def plain(**changes):
    settings = Preprocessing(size=32, mean=(0.0,) * 3, std=(1.0,) * 3, **changes)
    return Predictor(Still(), name="still", classes=CLASSES, preprocessing=settings, device="cpu")


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [0.6, 1.0])
def test_pictures_are_resized_and_cropped_as_the_preprocessing_says(interpolation, crop_pct):
    image = picture(1, 0)
    model = plain(interpolation=interpolation, crop_pct=crop_pct)
    model.predict(image)
    transform = timm.data.create_transform(
        32, crop_pct=crop_pct, interpolation=interpolation, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    torch.testing.assert_close(model.model.seen[0][0], transform(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("amp", "dtype"),
    [("bf16", torch.bfloat16), ("off", torch.float32), ("auto", torch.float32)],
)
def test_the_network_computes_in_the_precision_of_the_preprocessing(amp, dtype):
    model, given = plain(amp=amp), []
    model.model.register_forward_hook(lambda module, args, logits: given.append(logits.dtype))
    model.predict(picture(1, 0))
    assert given == [dtype]


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_study_predicts_new_images_as_its_own(amp, tmp_path):
    train = TrainSettings(batch_size=20, amp=amp)
    spec = tiny_spec(model="test_resnet", crop_pct=None, train=train)
    setup = prepare(spec, device="cpu", cache_dir=tmp_path)
    settings = preprocessing_of(setup)
    assert (settings.interpolation, settings.crop_pct) == ("bilinear", 0.95)
    names = {"name": setup.loaded.name, "classes": setup.classes}
    model = Predictor(setup.trainer.model, **names, preprocessing=settings, device="cpu")
    images = [setup.source.load(i) for i in range(50)]
    expected = setup.trainer.predict(np.arange(50))
    assert np.array_equal(probabilities(model.predict(images)), expected)


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
    model = Predictor(Still(), name=name, classes=CLASSES, preprocessing=settings, device="cpu")
    image = picture(1, 0)
    model.predict(image)
    transform = timm.data.create_transform(
        config.input_size,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
        mean=settings.mean,
        std=settings.std,
    )
    torch.testing.assert_close(model.model.seen[0][0], transform(image), atol=1e-6, rtol=0)


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


def test_norms_adapt_to_images_of_another_source(tuned, exported, tmp_path):
    """Darker images, whose statistics the network then has in place of the training's."""
    paths = []
    for number, path in enumerate(tuned["paths"]):
        dark = Image.fromarray((np.asarray(Image.open(path)) * 0.3).astype(np.uint8))
        paths.append(tmp_path / f"{number}.png")
        dark.save(paths[-1])
    model = load_exported(exported, device="cpu")
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    adapted = model.adapted(paths, batch_size=9)
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    first = next(m for m in adapted.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen = []
    handle = first.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    changed = adapted.predict(paths, batch_size=len(paths))
    handle.remove()
    torch.testing.assert_close(
        first.running_mean, seen[0].float().mean((0, 2, 3)), rtol=1e-3, atol=1e-4
    )
    assert not np.allclose(probabilities(changed), probabilities(model.predict(paths)), atol=1e-3)
    assert not any(m.training for m in adapted.model.modules())
    with pytest.raises(DataError, match="8 images are too few to adapt to; give at least 16"):
        model.adapted(paths[:8])


def test_a_network_without_batch_norm_cannot_adapt(tuned):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3))
    plain = Predictor(
        network, name="plain", classes=CLASSES, preprocessing=tuned["preprocessing"], device="cpu"
    )
    with pytest.raises(ModelError, match="plain has no BatchNorm layers"):
        plain.adapted(tuned["paths"])
