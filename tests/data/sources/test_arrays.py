from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from biotune_optuna.data.decode import DECODE_ERRORS
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.errors import DataError
from tests.kit.images import picture

if TYPE_CHECKING:
    from pathlib import Path


def test_digits_are_built_in() -> None:
    source = open_images("digits")
    assert len(source) == 1797
    assert source.classes == tuple("0123456789")
    assert (source.labels == load_digits().target).all()
    shown = np.asarray(source.load(5))
    assert shown.shape == (8, 8, 3)
    assert np.abs(shown[..., 0] - load_digits().images[5] * 255 / 16).max() <= 0.5


COLOUR = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "first"),
    [
        (COLOUR, COLOUR[0]),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR[0]),
        (torch.from_numpy(COLOUR.transpose(0, 3, 1, 2).copy()), COLOUR[0]),
        (COLOUR / 255.0, COLOUR[0]),
        (COLOUR.astype(np.float32), COLOUR[0]),
        (COLOUR.astype(np.uint16) * 257, COLOUR[0]),
        (COLOUR[..., 0], COLOUR[0][..., :1].repeat(3, axis=2)),
        (COLOUR[..., :1], COLOUR[0][..., :1].repeat(3, axis=2)),
        (COLOUR[..., 0] > 127, (COLOUR[0][..., :1] > 127).repeat(3, axis=2) * 255),
    ],
)
def test_layouts_and_types(images: object, first: np.ndarray) -> None:
    source = open_images(images, labels=["x", "y", "x", "y"])
    assert (np.asarray(source.load(0)) == first).all()
    assert source.classes == ("x", "y")
    assert source.labels.tolist() == [0, 1, 0, 1]


def test_labels_in_numeric_order() -> None:
    source = open_images(COLOUR, labels=[10, 9, 10, 2])
    assert source.classes == ("2", "9", "10")
    assert source.labels.tolist() == [2, 1, 2, 0]
    assert open_images(COLOUR, labels=[10.0, 9.0, 10.0, 2.0]).classes == ("2", "9", "10")


def test_whole_numbers_that_numpy_keeps_as_objects_are_in_numeric_order() -> None:
    labels = np.array([10, 5, 0, 10], dtype=object)
    source = open_images(np.zeros((4, 8, 8), dtype=np.uint8), labels=labels)
    assert source.classes == ("0", "5", "10")
    assert source.labels.tolist() == [2, 1, 0, 2]


def test_an_array_of_paths_is_a_list_of_paths(tmp_path: Path) -> None:
    names = []
    for seed in range(4):
        names.append(str(tmp_path / f"{seed}.png"))
        picture(seed).save(names[-1])
    for kind in (np.array(names), np.array(names, dtype=object)):
        assert open_images(kind, labels=[0, 1, 0, 1]).fingerprint == (
            open_images(names, labels=[0, 1, 0, 1]).fingerprint
        )


def test_an_empty_name_is_not_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="the name of the data is empty; give a folder"):
        open_images("")


def test_labels_too_large_for_whole_numbers_stay_apart() -> None:
    source = open_images(COLOUR, labels=[1e20, 9e19, 1e20, 3.0])
    assert source.classes == ("3.0", "9e+19", "1e+20")
    assert source.labels.tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize(
    ("images", "labels", "what"),
    [
        (COLOUR, None, "need labels"),
        (COLOUR, [0, 1], r"shape \(2,\) do not fit 4 images"),
        (COLOUR, [0.5, 1, 1, 1], "not whole numbers"),
        (COLOUR, [np.inf, 1, 1, 1], "not whole numbers"),
        (COLOUR, ["a", None, "b", "b"], "labels: no label at position 1"),
        (COLOUR, [1, 1, 1, 1], "one class, '1'"),
        (COLOUR.reshape(4, -1), [0, 1, 0, 1], r"shape \(4, 90\) are none of"),
        (COLOUR.astype(float) * 9, [0, 1, 0, 1], r"values of type float64 from .* expected uint8"),
        (np.full((4, 2, 2), np.nan), [0, 1, 0, 1], "expected uint8"),
        (COLOUR[:0], [], "no images"),
        (object(), [0], "type object are not understood"),
    ],
)
def test_bad_arrays_are_one_line(images: object, labels: object, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        open_images(images, labels=labels)
    assert "\n" not in str(caught.value)


def test_pictures_and_paths(tmp_path: Path) -> None:
    pictures = [picture(seed) for seed in range(4)]
    source = open_images(pictures, labels=[0, 1, 0, 1])
    paths = []
    for number, one in enumerate(pictures):
        paths.append(tmp_path / f"{number}.png")
        one.save(paths[-1])
    stored = open_images(paths, labels=["0", "1", "0", "1"])
    for index in range(4):
        assert source.load(index).tobytes() == stored.load(index).tobytes()
    assert stored.ids[1] == str(paths[1])
    with pytest.raises(DataError, match="all images as paths or all as PIL"):
        open_images([pictures[0], paths[0]], labels=[0, 1])
    with pytest.raises(DataError, match="stack the arrays"):
        open_images([np.zeros((2, 2)), np.ones((2, 2))], labels=[0, 1])


def test_transparent_picture_in_memory_is_read_as_from_a_file() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert open_images([clear, clear], labels=[0, 1]).load(0).getpixel((0, 0)) == (255, 255, 255)


def test_a_source_passes_through_and_labels_beside_it_are_refused(tmp_path: Path) -> None:
    source = open_images(COLOUR, labels=[0, 1, 0, 1])
    assert open_images(source) is source
    for data in (source, "digits"):
        with pytest.raises(DataError, match="which has its own"):
            open_images(data, labels=[0])


def test_equal_content_has_equal_hashes() -> None:
    source = open_images(COLOUR[[0, 1, 0, 2]], labels=[0, 1, 0, 1])
    assert source.content_hashes[0] == source.content_hashes[2]
    assert len(set(source.content_hashes)) == 3


def test_a_lazy_picture_that_is_cut_off_is_named(tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        Image.fromarray(COLOUR.reshape(12, 10, 3)).resize((99, 99)).save(tmp_path / f"{name}.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    pictures = [Image.open(tmp_path / f"{name}.png") for name in ("whole", "cut")]
    with pytest.raises(DataError, match="picture 1 cannot be read"):
        open_images(pictures, labels=[0, 1])


def test_a_file_given_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.fromarray(COLOUR[0]).save(path)
    with pytest.raises(DataError, match="is named twice"):
        open_images([path, path], labels=[0, 1])


@pytest.mark.parametrize("kind", DECODE_ERRORS)
def test_whatever_a_lazy_picture_raises_is_one_line(kind: type[Exception]) -> None:
    class Broken(Image.Image):
        def load(self) -> None:
            raise kind("broken\nhere")

    sound = Image.fromarray(COLOUR[0])
    broken = Broken()
    broken.__dict__.update(sound.__dict__)
    with pytest.raises(DataError, match=r"picture 1 cannot be read: broken$"):
        open_images([sound, broken], labels=[0, 1])


def test_arrays_and_pictures_that_change_after_opening_are_refused() -> None:
    images = np.stack([np.asarray(picture(i)) for i in range(4)])
    for given in (images, [Image.fromarray(image) for image in images]):
        source = open_images(given, labels=[0, 1, 0, 1])
        source.load(2)
        if isinstance(given, list):
            given[2].putpixel((0, 0), (1, 2, 3))
        else:
            given[2, 0, 0] = (1, 2, 3)
        with pytest.raises(DataError, match="image '2' has changed since the data were opened"):
            source.load(2)
        source.load(1)
