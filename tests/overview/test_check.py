"""A look at images finds what was put there to be found, and nothing in sound images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from biotune_optuna.cli import cli
from biotune_optuna.errors import DataError
from biotune_optuna.overview import check_images
from tests.kit.cli import fails


def scene(seed: int, size: int = 96) -> Image.Image:
    """A picture of coarse patches that no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def tree(root: Path, parts: tuple[str, ...] = ("",), n: int = 12) -> Path:
    for number, (part, label) in enumerate((p, c) for p in parts for c in ("ants", "bees")):
        folder = root / part / label
        folder.mkdir(parents=True)
        for i in range(n):
            scene(1000 * number + i).save(folder / f"{i}.png")
    return root


@pytest.fixture
def troubled(tmp_path: Path) -> Path:
    """One case of each trouble."""
    root = tree(tmp_path / "photos", ("train", "test"))
    ants, bees = root / "train" / "ants", root / "train" / "bees"
    shutil.copy(ants / "0.png", ants / "copy.png")
    shutil.copy(ants / "1.png", bees / "conflict.png")
    shutil.copy(ants / "2.png", root / "test" / "ants" / "leak.png")
    scene(3).resize((90, 90)).save(ants / "again.jpg", quality=70)  # of ants/3.png
    Image.new("RGB", (64, 64), (120, 120, 120)).save(ants / "blank.png")
    dark = np.asarray(scene(500)) // 8
    Image.fromarray(dark).save(bees / "dark.png")
    (bees / "broken.jpg").write_bytes(b"\xff\xd8\xff none")
    (bees / "empty.png").write_bytes(b"")
    (bees / "notes.txt").write_text("to do")
    return root


def test_sound_images_raise_no_alarm(tmp_path: Path) -> None:
    found = check_images(tree(tmp_path))
    assert found.n == 24
    assert found.classes == {"ants": 12, "bees": 12}
    assert (found.skipped, found.pairs, found.odd) == ((), (), ())
    assert found.sides == (96, 96, 96)
    assert "No bad files" in str(found)


def test_every_trouble_is_found_at_once(troubled: Path) -> None:
    found = check_images(troubled)
    assert found.parts["test"] == {"ants": 13, "bees": 12}
    assert sum(found.classes.values()) == found.n == 54
    left_out = " ".join(found.skipped)
    assert len(found.skipped) == 3
    assert all(name in left_out for name in ("broken.jpg", "empty.png", "notes.txt"))
    exact = {(p.first, p.second): p for p in found.duplicates}
    assert set(exact) == {
        ("train/ants/0.png", "train/ants/copy.png"),
        ("train/ants/1.png", "train/bees/conflict.png"),
        ("test/ants/leak.png", "train/ants/2.png"),
    }
    assert [p.conflicts for p in exact.values()].count(True) == 1
    assert [p.leaks for p in exact.values()].count(True) == 1
    assert [(p.first, p.second) for p in found.near_duplicates] == [
        ("train/ants/3.png", "train/ants/again.jpg")
    ]
    assert {(one.id, one.what) for one in found.odd} == {
        ("train/ants/blank.png", "blank"),
        ("train/bees/dark.png", "very dark"),
    }
    said = str(found)
    for words in (
        "3 files cannot be used",
        "1 pair of equal images with different labels",
        "1 pair of equal images in different parts",
        "1 pair of similar images",
    ):
        assert words in said


def test_skew_and_small_classes_are_told(tmp_path: Path) -> None:
    root = tree(tmp_path, n=5)
    for i in range(40):
        scene(9000 + i).save(root / "bees" / f"more-{i}.png")
    found = check_images(root)
    assert found.skew == 9
    assert "all of 96 x 96 pixels" in str(found)
    Image.new("RGB", (99, 96)).save(root / "bees" / "wide.png")
    assert "96 to 99 pixels wide (median 96), 96 high" in str(check_images(root))
    assert "ants: 5 images" in str(found)
    assert "class_weights=balanced" in str(found)


def test_tiny_pictures_are_not_compared(tmp_path: Path) -> None:
    """Of 16 x 16 pixels, different digits have equal hashes."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(12):
            scene(i + 50 * (label == "b")).resize((16, 16)).save(tmp_path / label / f"{i}.png")
            scene(7).resize((16, 16)).point(lambda v, i=i: max(0, v - i)).save(
                tmp_path / label / f"same-{label}-{i}.png"
            )
    found = check_images(tmp_path)
    assert not found.near_duplicates
    assert "below 32 pixels" in str(found)


def test_arrays_with_labels_are_looked_at() -> None:
    pixels = np.stack([np.asarray(scene(i)) for i in range(6)])
    found = check_images(pixels, labels=[0, 1, 0, 1, 0, 1])
    assert found.classes == {"0": 3, "1": 3}


def test_the_page_shows_the_pictures_and_escapes_names(troubled: Path, tmp_path: Path) -> None:
    evil = troubled / "train" / "ants" / "<script>alert(1)<.png"
    shutil.copy(troubled / "train" / "ants" / "5.png", evil)
    html = check_images(troubled).write_html(tmp_path / "check.html").read_text()
    assert "<script>alert" not in html
    assert html.count("<img") > 8
    assert "Contact sheet" in html


def test_the_command_tells_all(troubled: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(cli, ["check", str(troubled), "--html", str(page)])
    assert done.exit_code == 0, done.output
    assert "54 images of 2 classes" in done.stdout
    assert page.exists()
    told = CliRunner().invoke(cli, ["check", str(troubled), "--json"])
    assert json.loads(told.stdout)["n"] == 54
    assert "no such folder" in fails("check", str(tmp_path / "nowhere"))


def test_nothing_to_look_at_is_refused(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    scene(1).save(tmp_path / "only" / "1.png")
    with pytest.raises(DataError, match="at least two classes"):
        check_images(tmp_path)
