"""What is checked before images are decoded and a study exists."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from biotune_optuna.errors import DataError, ModelError
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.models.weights import create_model
from biotune_optuna.study.setup import _check_image_size, prepare
from tests.kit.images import digit_folder
from tests.kit.studies import tiny_spec


@pytest.mark.parametrize(("model", "size"), [("test_vit3", 8), ("test_maxvit", 100)])
def test_an_image_size_that_the_network_cannot_take_is_named(
    model: str, size: int, tmp_path: Path
) -> None:
    spec = tiny_spec(model=model, image_size=size)
    with pytest.raises(ModelError, match=f"image size {size} does not fit {model}: .*160") as why:
        prepare(spec, device="cpu", cache_dir=tmp_path)
    assert "\n" not in str(why.value)
    assert not list(tmp_path.iterdir())


def test_checking_the_size_changes_nothing() -> None:
    loaded = create_model("test_resnet", num_classes=3, weights="none")
    loaded.model.train()
    before = copy.deepcopy(loaded.model.state_dict())
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    _check_image_size(loaded, 64)
    assert torch.equal(torch.rand(3), drawn)
    assert loaded.model.training
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(("bits", "warned"), [(12, True), (16, False)])
def test_images_that_are_all_dark_are_told(
    bits: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digits = load_digits()
    for label in range(2):
        folder = tmp_path / "images" / str(label)
        folder.mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == label][:20]):
            values = (image / 16 * (2**bits - 1)).astype(np.uint16)
            Image.fromarray(values).save(folder / f"{number}.png")
    spec = tiny_spec(data=str(tmp_path / "images"), train_size=None, val_size=None)
    prepare(spec, device="cpu", cache_dir=tmp_path / "cache")
    assert ("the images are dark: no value of the first" in caplog.text) is warned


def test_a_crop_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"crop_pct 0\.0 is not in"):
        prepare(tiny_spec(crop_pct=0.0), device="cpu", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("roc_auc", r"the test images: .*'roc_auc' needs images of both classes"),
        ("average_precision", r"the test images: .*needs images of the second class"),
    ],
)
def test_a_metric_that_the_test_does_not_define_is_refused_at_once(
    metric: str, message: str, tmp_path: Path
) -> None:
    for part, classes in (("train", 2), ("test", 1)):
        digit_folder(tmp_path / "images" / part, per_class=20, classes=classes)
    (tmp_path / "images" / "test" / "digit-1").mkdir()
    settings = TrainSettings(epochs=1, batch_size=10, metric=metric)
    spec = tiny_spec(data=str(tmp_path / "images"), train_size=20, val_size=10, train=settings)
    with pytest.raises(DataError, match=message):
        prepare(spec, device="cpu", cache_dir=tmp_path / "cache")


def test_a_metric_of_two_classes_is_refused_for_ten(tmp_path: Path) -> None:
    spec = tiny_spec(train=TrainSettings(epochs=1, metric="roc_auc"))
    with pytest.raises(DataError, match=r"the validation images: .* there are 10"):
        prepare(spec, device="cpu", cache_dir=tmp_path)


def digits_of(path: Path, counts: list[int]) -> str:
    digits = load_digits()
    for label, count in enumerate(counts):
        folder = path / str(label)
        folder.mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == label][:count]):
            Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"{number}.png")
    return str(path)


@pytest.mark.parametrize(("counts", "kept"), [([60, 20], True), ([40, 30], False)])
def test_balance_is_searched_where_classes_are_skewed(
    counts: list[int], kept: bool, tmp_path: Path
) -> None:
    data = digits_of(tmp_path / "images", counts)
    spec = tiny_spec(data=data, train_size=None, val_size=None, genes=("balance", "ema"))
    setup = prepare(spec, device="cpu", cache_dir=tmp_path / "cache")
    assert setup.spec.genes == (("balance", "ema") if kept else ("ema",))
    assert ("balance" in setup.space.training) is kept


def test_modes_are_refused_where_a_block_has_no_norms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_vectors(name: str, **options: object) -> object:
        loaded = create_model(name, **options)  # type: ignore[arg-type]
        for path, module in list(loaded.model.named_modules()):
            if isinstance(module, torch.nn.BatchNorm2d) and path.startswith(("conv1", "bn1")):
                plain = torch.nn.BatchNorm2d(module.num_features, affine=False)
                loaded.model.set_submodule(path, plain)
        return loaded

    monkeypatch.setattr("biotune_optuna.study.setup.create_model", without_vectors)
    spec = tiny_spec(model="test_resnet", genes=("mode",))
    with pytest.raises(ModelError, match="has no norms or biases"):
        prepare(spec, device="cpu", cache_dir=tmp_path)
