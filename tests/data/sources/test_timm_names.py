from __future__ import annotations

import importlib.util
import io
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torchvision.datasets as tv
from timm.data import create_dataset

from biotune_optuna.data.sources import named
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.data.sources.timm_names import _hub_labels, _one_for_each_part, _Part
from biotune_optuna.data.splits import make_splits
from biotune_optuna.errors import DataError
from tests.kit.images import picture

Tree = Callable[..., Path]


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def test_torch_name_gives_what_timm_reads(tmp_path: Path) -> None:
    base = tmp_path / "FashionMNIST" / "raw"
    base.mkdir(parents=True)
    for part, count in (("train", 8), ("t10k", 4)):
        pixels = bytes((i * 7 + len(part)) % 256 for i in range(count * 784))
        (base / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, count, 28, 28) + pixels
        )
        labels = struct.pack(">II", 0x801, count) + bytes([0, 9] * (count // 2))
        (base / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    source = open_images(f"torch/fashion_mnist:{tmp_path}")
    theirs = create_dataset("torch/fashion_mnist", root=str(tmp_path), split="validation")
    assert source.splits is not None
    assert source.splits.tolist() == ["train"] * 8 + ["test"] * 4
    assert source.load(9).tobytes() == theirs[1][0].convert("RGB").tobytes()
    assert source.classes == tuple(tv.FashionMNIST.classes)


def test_torch_image_folder(tree: Tree) -> None:
    root = tree({"train/a": 2, "train/b": 2, "val/a": 1})
    assert open_images(f"torch/image_folder:{root}").splits is not None


def test_torch_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise named.urllib.error.URLError("unreachable")

    monkeypatch.setattr(named.urllib.request, "urlopen", refuse)
    with pytest.raises(DataError, match=r"torch/kmnist is not complete in .*unreachable"):
        open_images(f"torch/kmnist:{tmp_path}")


def test_names_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"'torch/unheard' is unknown; .* cifar10"):
        open_images("torch/unheard")
    for name in ("wds/mnist", "hfids/mnist", "tfds/mnist"):
        with pytest.raises(DataError, match=r"is a stream, .* give that folder"):
            open_images(name)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "datasets" else find_spec(name)
    )
    with pytest.raises(DataError, match=r"'hfds/mnist' needs the package datasets"):
        open_images("hfds/mnist")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes parts of a data set of the hub: hub({"train": (images, labels)}, "string").

    In place of a type, labels may have a list of class names.
    """
    datasets = pytest.importorskip("datasets")
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(
        parts: dict[str, tuple[list[object], list[object]]],
        kind: str | list[str],
        *,
        columns: tuple[str, ...] = ("image", "label"),
    ) -> str:
        """Further columns are copies of the label's."""
        values = datasets.Value(kind) if isinstance(kind, str) else datasets.ClassLabel(names=kind)
        image, *others = columns
        features = datasets.Features({image: datasets.Image(), **dict.fromkeys(others, values)})
        (tmp_path / "set").mkdir()
        for split, (images, labels) in parts.items():
            encoded = [i and datasets.Image().encode_example(i) for i in images]
            table = pa.table(
                {image: encoded, **dict.fromkeys(others, labels)}, features.arrow_schema
            )
            parquet.write_table(table, tmp_path / "set" / f"{split}-00000-of-00001.parquet")
        return f"hfds/{tmp_path}/set"

    return write


def test_hub_labels_may_be_text_or_missing(hub: Callable[..., str]) -> None:
    pictures = [picture(seed) for seed in range(6)]
    train, test = (pictures, ["dog", "cat"] * 3), (pictures[:2], [None, None])
    source = open_images(hub({"train": train, "test": test}, "string"))
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [1, 0] * 3


class _Reader:
    class_to_idx: dict[str, int] | None = None


def test_only_hub_labels_that_occur_are_classes() -> None:
    reader = _Reader()
    parts = [_Part("train", reader, [7, 3, 7]), _Part("test", reader, [20260101])]
    labels, classes = _hub_labels(parts)
    assert labels.tolist() == [1, 0, 1, 2]
    assert list(classes) == ["3", "7", "20260101"]
    reader.class_to_idx = {"cat": 3, "unused": 4, "dog": 7}
    assert list(_hub_labels(parts)[1]) == ["cat", "dog", "20260101"]


def test_of_two_hub_splits_for_one_part_the_first_is_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        chosen = _one_for_each_part("hfds/x", ["train", "validation", "eval", "extra"])
    assert chosen == {"train": "train", "val": "validation"}
    assert "hfds/x: 'validation' is the val part, 'eval' is not used" in caplog.text


def test_hub_class_without_images(hub: Callable[..., str]) -> None:
    pictures = [picture(seed) for seed in range(24)]
    source = open_images(hub({"train": (pictures, [0, 2] * 12)}, ["cat", "cow", "dog"]))
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 1] * 12
    make_splits(source, seed=0)


def test_hub_class_that_is_only_in_the_test_part(hub: Callable[..., str]) -> None:
    train = ([picture(seed) for seed in range(16)], [0, 1] * 8)
    test = ([picture(seed) for seed in range(50, 53)], [0, 1, 2])
    source = open_images(hub({"train": train, "test": test}, "int64"))
    with pytest.raises(DataError, match="class '2' has 0 images to divide"):  # as of a CSV file
        make_splits(source, seed=0)


def test_hub_images_that_are_missing_are_named_or_skipped(hub: Callable[..., str]) -> None:
    name = hub({"train": ([picture(0), None, picture(2), picture(3)], [0, 1, 1, 0])}, "int64")
    with pytest.raises(DataError, match="image 'train/1' cannot be read"):
        open_images(name)
    assert open_images(name, skip_bad_images=True).ids == ("train/0", "train/2", "train/3")


def test_damaged_hub_files_are_one_line(hub: Callable[..., str]) -> None:
    name = hub({"train": ([picture(0), picture(1)], [0, 1])}, "int64")
    next(Path(name.removeprefix("hfds/")).iterdir()).write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        open_images(name)
    assert "\n" not in str(caught.value)


def test_hub_labels_that_are_unknown_leave_their_part_out(hub: Callable[..., str]) -> None:
    pictures = [picture(seed) for seed in range(15)]
    parts = {
        "train": (pictures[:8], [0, 1] * 4),
        "test": (pictures[8:12], [0, 1] * 2),
        "validation": (pictures[12:], [-1] * 3),
    }
    source = open_images(hub(parts, ["cat", "dog"]))
    assert source.classes == ("cat", "dog")
    assert source.splits is not None
    assert sorted(source.splits.tolist()) == ["test"] * 4 + ["train"] * 8
    assert source.labels.tolist() == [0, 1] * 6
    at = source.ids.index("test/1")
    assert source.load(at).tobytes() == picture(9).tobytes()


@pytest.mark.parametrize(
    "columns", [("img", "label"), ("image", "labels"), ("photo", "fine_label"), ("image", "Target")]
)
def test_hub_columns_of_other_names_are_found(
    hub: Callable[..., str], columns: tuple[str, str]
) -> None:
    pictures = [picture(seed) for seed in range(4)]
    name = hub({"train": (pictures, [0, 1] * 2)}, ["cat", "dog"], columns=columns)
    source = open_images(name)
    assert source.classes == ("cat", "dog")
    assert source.load(3).tobytes() == pictures[3].tobytes()


@pytest.mark.parametrize(
    ("columns", "kind", "what"),
    [
        (("img", "fine_label", "coarse_label"), ["cat", "dog"], "columns img, fine_label, coarse"),
        (("img", "caption"), "string", r"columns img, caption may be the labels; rename"),
    ],
)
def test_hub_columns_that_are_not_clear_are_named(
    hub: Callable[..., str], columns: tuple[str, ...], kind: object, what: str
) -> None:
    labels = [0, 1] if isinstance(kind, list) else ["a", "b"]
    name = hub({"train": ([picture(0), picture(1)], labels)}, kind, columns=columns)
    with pytest.raises(DataError, match=what) as caught:
        open_images(name, skip_bad_images=True)
    assert "\n" not in str(caught.value)


def test_what_of_hub_data_is_not_used_is_said(
    hub: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    pictures = [picture(seed) for seed in range(12)]
    parts = {"train": (pictures, [0, 1] * 6), "test": (pictures[:3], [-1] * 3)}
    with caplog.at_level(logging.WARNING):
        source = open_images(hub(parts, ["cat", "dog"]))
    assert len(source.skipped) == 3
    assert "3 files were left out" in caplog.text
    with pytest.raises(DataError, match="3 files were left out"):
        make_splits(source, seed=0, strict=True)


def test_hub_data_that_change_while_they_are_read_are_refused(
    hub: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm.data.readers.reader_hfds import ReaderHfds

    source = open_images(hub({"train": ([picture(i) for i in range(4)], [0, 1] * 2)}, "int64"))
    read = ReaderHfds.__getitem__
    monkeypatch.setattr(ReaderHfds, "__getitem__", lambda self, index: read(self, (index + 1) % 4))
    with pytest.raises(DataError, match="image 'train/2' has changed since the data were opened"):
        source.load(2)
