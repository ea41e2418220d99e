from __future__ import annotations

import importlib.util
import io
import json
import logging
import struct
import tarfile
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


def shard(path: Path, samples: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    root = tmp_path / "shards"
    root.mkdir()
    for number, part in enumerate(("train-0000", "train-0001", "validation-0000")):
        samples: dict[str, bytes] = {}
        for i in range(4):
            samples[f"s{number}{i}.cls"] = str((1, 10)[i % 2]).encode()
            samples[f"s{number}{i}.png"] = png(10 * number + i)
        shard(root / f"set-{part}.tar", samples)
    return root


def test_shards(shards: Path) -> None:
    source = open_images(f"wds/{shards}")
    assert source.classes == ("1", "10")
    assert source.labels.tolist() == [0, 1] * 6
    assert source.splits is not None
    assert source.splits.tolist() == ["train"] * 8 + ["val"] * 4
    assert source.load(9).tobytes() == picture(21).tobytes()
    assert source.ids[9] == "set-validation-0000.tar/s21.png"


def test_info_file_names_the_parts(shards: Path) -> None:
    files = sorted(path.name for path in shards.glob("*.tar"))
    info = {"splits": {"test": {"filenames": files[:1]}, "train": {"filenames": files[1:]}}}
    (shards / "info.json").write_text(json.dumps(info))
    source = open_images(f"wds/{shards}")
    assert source.splits is not None
    assert source.splits.tolist() == ["test"] * 4 + ["train"] * 8
    (shards / "_info.json").write_text("[]")
    with pytest.raises(DataError, match="does not list splits"):
        open_images(f"wds/{shards}")


@pytest.mark.parametrize("word", ["val", "valid", "validation", "validate", "eval", "evaluation"])
def test_words_for_the_validation_part(shards: Path, word: str) -> None:
    (shards / "set-validation-0000.tar").rename(shards / f"set-{word}-0000.tar")
    source = open_images(f"wds/{shards}")
    assert source.splits is not None
    assert sorted(source.splits.tolist()) == ["train"] * 8 + ["val"] * 4


def test_a_shard_of_no_part_beside_others_is_named(shards: Path) -> None:
    (shards / "set-validation-0000.tar").rename(shards / "set-holdout-0000.tar")
    message = r"'set-holdout-0000\.tar' in .* is of no part, but 'set-train-0000\.tar' is of one"
    with pytest.raises(DataError, match=message):
        open_images(f"wds/{shards}")
    info = {"splits": {"train": {"filenames": ["set-train-0000.tar"]}}}
    (shards / "info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=message):
        open_images(f"wds/{shards}")
    info["splits"]["eval"] = {"filenames": ["set-holdout-0000.tar"]}
    (shards / "info.json").write_text(json.dumps(info))
    source = open_images(f"wds/{shards}")
    assert source.splits is not None
    assert source.splits.tolist() == ["val"] * 4 + ["train"] * 8


def test_shards_of_no_part_are_divided_later(shards: Path) -> None:
    for number, path in enumerate(sorted(shards.glob("*.tar"))):
        path.rename(shards / f"{number}.tar")
    assert open_images(f"wds/{shards}").splits is None


def test_classes_from_json(tmp_path: Path) -> None:
    samples = {f"{i}.jpg": png(i) for i in range(3)}
    samples |= {f"{i}.json": json.dumps({"label": i % 2}).encode() for i in range(3)}
    shard(tmp_path / "a.tar", samples)
    source = open_images(f"wds/{tmp_path}")
    assert source.labels.tolist() == [0, 1, 0]
    assert source.splits is None


@pytest.mark.parametrize(
    ("samples", "what"),
    [
        ({"a.png": png(0), "b.png": png(1), "b.cls": b"1"}, "sample 'a' has no class"),
        ({"a.png": png(0), "a.cls": b"cat"}, "cannot be read: invalid literal"),
        ({"a.png": png(0), "a.json": b'{"label": Infinity}'}, "cannot be read: .*infinity"),
        ({"a.png": png(0), "a.json": b'{"label": [1]}'}, "cannot be read: "),
        ({"a.png": png(0), "a.json": b'{"label": 1.5}'}, "read: label 1.5 is not a whole number"),
        ({"a.png": png(0), "a.cls": str(2**63).encode()}, "read: label 9.* is too large"),
        ({"a.png": png(0), "a.json": b"[" * 100_000}, "cannot be read: "),
        ({"a.png": b"no", "a.cls": b"1"}, r"'x\.tar/a\.png' is not an image"),
        ({}, "no images"),
    ],
)
def test_bad_shards_are_one_line(tmp_path: Path, samples: dict[str, bytes], what: str) -> None:
    shard(tmp_path / "x.tar", samples)
    with pytest.raises(DataError, match=what):
        open_images(f"wds/{tmp_path}")


def test_a_shard_that_is_gone_is_named(shards: Path) -> None:
    source = open_images(f"wds/{shards}")
    (shards / "set-train-0000.tar").unlink()
    with pytest.raises(DataError, match=r"set-train-0000\.tar' cannot be read: No such file"):
        source.load(0)


def test_two_images_of_one_sample_are_named(tmp_path: Path) -> None:
    mask, photo = {"0.png": png(1)}, {"0.jpg": png(0)}
    for first, second in ((mask, photo), (photo, mask)):
        shard(tmp_path / "a.tar", {"0.cls": b"0", **first, **second})
        names = " and ".join(repr(name) for name in (*first, *second))
        with pytest.raises(DataError, match=f"sample '0' has two images, {names}; keep one"):
            open_images(f"wds/{tmp_path}")


def test_two_classes_of_one_sample_are_named(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {"0.png": png(0), "0.cls": b"1", "0.json": b'{"label": 2}'})
    with pytest.raises(DataError, match="sample '0' has two classes, 1 and 2"):
        open_images(f"wds/{tmp_path}")


def test_no_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.tar shards"):
        open_images(f"wds/{tmp_path}")
    with pytest.raises(DataError, match="no such folder"):
        open_images(f"wds/{tmp_path}/nowhere")
    (tmp_path / "x.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(DataError, match=r"x\.tar' cannot be read"):
        open_images(f"wds/{tmp_path}")


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
    for name in ("hfids/mnist", "tfds/mnist"):
        with pytest.raises(DataError, match="can only be streamed"):
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

    def write(parts: dict[str, tuple[list[object], list[object]]], kind: str | list[str]) -> str:
        values = datasets.Value(kind) if isinstance(kind, str) else datasets.ClassLabel(names=kind)
        features = datasets.Features({"image": datasets.Image(), "label": values})
        (tmp_path / "set").mkdir()
        for split, (images, labels) in parts.items():
            encoded = [i and datasets.Image().encode_example(i) for i in images]
            table = pa.table({"image": encoded, "label": labels}, features.arrow_schema)
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
