"""Public data sets, read from tiny files in the layouts that their publishers use.

Where torchvision pins a checksum of the real file, it is lifted for the stand-in.
"""

from __future__ import annotations

import bz2
import csv
import functools
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torchvision.datasets as tv
from scipy.io import savemat

from biotune_optuna.data.sources import named
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.data.splits import make_splits
from biotune_optuna.errors import DataError
from tests.kit.images import picture

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def flowers102(root: Path, patch: pytest.MonkeyPatch) -> None:
    base = root / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    for number in range(1, 13):
        picture(number).save(base / "jpg" / f"image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.array([1, 102] * 6)})
    savemat(
        base / "setid.mat",
        {"trnid": np.arange(1, 7), "valid": np.arange(7, 9), "tstid": np.arange(9, 13)},
    )
    files = {key: (name, None) for key, (name, _) in tv.Flowers102._file_dict.items()}
    patch.setattr(tv.Flowers102, "_file_dict", files)


def aircraft(root: Path, _patch: pytest.MonkeyPatch) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    (base / "images").mkdir(parents=True)
    (base / "variants.txt").write_text("707-320\nA340 200\n")
    for first, split, count in ((0, "train", 6), (6, "val", 2), (8, "test", 4)):
        lines = []
        for number in range(first, first + count):
            picture(number).save(base / "images" / f"{number:07d}.jpg")
            lines.append(f"{number:07d} {('707-320', 'A340 200')[number % 2]}\n")
        (base / f"images_variant_{split}.txt").write_text("".join(lines))


def dtd(root: Path, _patch: pytest.MonkeyPatch) -> None:
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for first, split, count in ((0, "train", 6), (6, "val", 2), (8, "test", 4)):
        lines = []
        for number in range(first, first + count):
            kind = ("banded", "zigzagged")[number % 2]
            (base / "images" / kind).mkdir(parents=True, exist_ok=True)
            picture(number).save(base / "images" / kind / f"{kind}_{number:04d}.jpg")
            lines.append(f"{kind}/{kind}_{number:04d}.jpg\n")
        (base / "labels" / f"{split}1.txt").write_text("".join(lines))


def cifar10(root: Path, patch: pytest.MonkeyPatch) -> None:
    base = root / "cifar-10-batches-py"
    base.mkdir()
    for name, count in (("data_batch_1", 8), ("test_batch", 4)):
        batch = {"data": noise(count, 3072), "labels": [0, 9] * (count // 2)}
        (base / name).write_bytes(pickle.dumps(batch))
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    patch.setattr(tv.CIFAR10, "train_list", [["data_batch_1", None]])
    patch.setattr(tv.CIFAR10, "test_list", [["test_batch", None]])
    patch.setattr(tv.CIFAR10, "meta", {**tv.CIFAR10.meta, "md5": None})


def stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    base = root / "stl10_binary"
    base.mkdir()
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (base / "class_names.txt").write_text("\n".join(names))
    for part, count in (("train", 8), ("test", 4)):
        noise(count, 3, 96, 96).tofile(base / f"{part}_X.bin")
        np.array([1, 10] * (count // 2), np.uint8).tofile(base / f"{part}_y.bin")
    patch.setattr(tv.STL10, "train_list", [[n, None] for n in ("train_X.bin", "train_y.bin")])
    patch.setattr(tv.STL10, "test_list", [[n, None] for n in ("test_X.bin", "test_y.bin")])


def mnist(root: Path, _patch: pytest.MonkeyPatch) -> None:
    base = root / "MNIST" / "raw"
    base.mkdir(parents=True)
    for part, count in (("train", 8), ("t10k", 4)):
        images = struct.pack(">IIII", 0x803, count, 28, 28) + noise(count, 28, 28).tobytes()
        (base / f"{part}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">II", 0x801, count) + bytes([0, 9] * (count // 2))
        (base / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def usps(root: Path, _patch: pytest.MonkeyPatch) -> None:
    for name, count in (("usps.bz2", 8), ("usps.t.bz2", 4)):
        lines = []
        for number in range(count):
            values = RNG.uniform(-1, 1, 256)
            pixels = " ".join(f"{i}:{v:.6f}" for i, v in enumerate(values, start=1))
            lines.append(f"{(1, 10)[number % 2]} {pixels} \n")
        (root / name).write_bytes(bz2.compress("".join(lines).encode()))


def svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    for part, count in (("train", 8), ("test", 4)):
        labels = np.array([10, 9] * (count // 2), np.uint8)[:, None]
        savemat(root / f"{part}_32x32.mat", {"X": noise(32, 32, 3, count), "y": labels})
    lists = {key: [url, name, None] for key, (url, name, _) in tv.SVHN.split_list.items()}
    patch.setattr(tv.SVHN, "split_list", lists)


SIZES = {
    "flowers102": (flowers102, 102, {"train": 6, "val": 2, "test": 4}),
    "aircraft": (aircraft, 2, {"train": 6, "val": 2, "test": 4}),
    "dtd": (dtd, 2, {"train": 6, "val": 2, "test": 4}),
    "cifar10": (cifar10, 10, {"train": 8, "test": 4}),
    "stl10": (stl10, 10, {"train": 8, "test": 4}),
    "mnist": (mnist, 10, {"train": 8, "test": 4}),
    "usps": (usps, 10, {"train": 8, "test": 4}),
    "svhn": (svhn, 10, {"train": 8, "test": 4}),
}
Writer = Callable[[Path, pytest.MonkeyPatch], None]


def opened(name: str, root: Path, patch: pytest.MonkeyPatch) -> ImageSource:
    SIZES[name][0](root, patch)
    return open_images(f"{name}:{root}")


@pytest.mark.parametrize("name", SIZES)
def test_official_splits_and_classes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(name, tmp_path, monkeypatch)
    _, n_classes, parts = SIZES[name]
    assert source.name == name
    assert len(source.classes) == n_classes
    assert source.labels.tolist() == [0, n_classes - 1] * 6
    assert source.splits is not None
    assert {part: source.splits.tolist().count(part) for part in parts} == parts
    assert len(set(source.content_hashes)) == 12
    for index in (0, 11):
        assert source.load(index).mode == "RGB"


def test_pixels_and_labels_of_array_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened("svhn", tmp_path, monkeypatch)
    theirs = tv.SVHN(tmp_path, split="test")
    assert source.load(8).tobytes() == theirs[0][0].tobytes()
    assert source.labels[8] == theirs[0][1]


def test_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtd(tmp_path, monkeypatch)
    (tmp_path / "dtd/dtd/images/banded/banded_0004.jpg").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"banded_0004\.jpg' is not an image"):
        open_images(f"dtd:{tmp_path}")
    assert len(open_images(f"dtd:{tmp_path}", skip_bad_images=True)) == 11


@pytest.mark.parametrize("name", SIZES)
def test_without_network_one_line_within_seconds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise named.urllib.error.URLError("[Errno -2] Name or service not known")

    monkeypatch.setattr(named.urllib.request, "urlopen", refuse)
    began = time.monotonic()
    with pytest.raises(DataError, match=f"^{name} is not complete in .*Name or service") as caught:
        open_images(f"{name}:{tmp_path}")
    assert time.monotonic() - began < 10
    assert f"give {name}:FOLDER" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_files_are_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mnist(tmp_path, monkeypatch)
    for path in (tmp_path / "MNIST" / "raw").iterdir():
        path.write_bytes(b"")
    monkeypatch.setattr(named, "_reach", lambda _url: None)
    with pytest.raises(DataError, match="mnist is not complete in ") as caught:
        open_images(f"mnist:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_answer_is_given_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = named.socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(named, "_REACH_SECONDS", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    try:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(DataError, match="timed out"):
            named.obtain("x", tmp_path, url, functools.partial(tv.USPS, tmp_path))
        assert not named.reachable(url)
    finally:
        silent.close()


def isic(root: Path, columns: tuple[str, ...] = ("image_name", "patient_id")) -> None:
    (root / "train").mkdir(parents=True, exist_ok=True)
    with (root / "ISIC_2020_Training_GroundTruth.csv").open("w", newline="") as text:
        table = csv.writer(text)
        table.writerow([*columns, "benign_malignant", "target"])
        for number in range(40):
            name = f"ISIC_{number:07d}"
            picture(number).save(root / "train" / f"{name}.jpg")
            kind = "malignant" if number % 4 == 0 else "benign"
            table.writerow([name, f"IP_{number // 2}", kind, int(kind == "malignant")])


def test_isic2020_is_grouped_by_patient(tmp_path: Path) -> None:
    isic(tmp_path)
    source = open_images(f"isic2020:{tmp_path}")
    assert source.classes == ("benign", "malignant")
    assert np.bincount(source.labels).tolist() == [30, 10]
    splits = make_splits(source, seed=0)
    assert source.groups is not None
    parts = [set(source.groups[part]) for part in (splits.train, splits.val, splits.test)]
    assert not (parts[0] & parts[1])
    assert not (parts[0] & parts[2])
    assert not (parts[1] & parts[2])


def test_isic2020_incomplete(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no ISIC_2020_Training_GroundTruth"):
        open_images(f"isic2020:{tmp_path}")
    (tmp_path / "train.csv").write_text("image_name,patient_id,benign_malignant\n")
    with pytest.raises(DataError, match=r"no ISIC_\*\.jpg in"):
        open_images(f"isic2020:{tmp_path}")
    isic(tmp_path, ("image_name", "person"))
    with pytest.raises(DataError, match="lacks the columns benign_malignant, image_name"):
        open_images(f"isic2020:{tmp_path}")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"no such folder.*'flowers103'.*digits, flowers102, air"):
        open_images("flowers103")


def test_isic2020_does_not_follow_links_out_of_its_folder(tmp_path: Path) -> None:
    isic(tmp_path / "isic")
    image = next((tmp_path / "isic").rglob("ISIC_*.jpg"))
    image.rename(tmp_path / "secret.jpg")
    image.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DataError, match="leads out of the data folder"):
        open_images(f"isic2020:{tmp_path / 'isic'}")
