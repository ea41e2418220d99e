from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from biotune_optuna.data.sources.open import open_images
from biotune_optuna.data.splits import make_splits
from biotune_optuna.errors import DataError
from tests.kit.images import picture

Tree = Callable[..., Path]


def test_class_folders(tree: Tree) -> None:
    source = open_images(tree({"dogs": 2, "cats": 3}))
    assert source.classes == ("cats", "dogs")
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.ids[0] == "cats/000.png"
    assert source.splits is None
    assert source.groups is None
    assert source.load(4).size == (12, 10)
    assert source.name == "images"


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "TEST")])
def test_given_parts_are_kept(tree: Tree, names: tuple[str, str, str]) -> None:
    root = tree({f"{part}/{c}": 2 for part in names for c in ("a", "b")})
    source = open_images(str(root))
    assert source.splits is not None
    parts = {
        name.split("/")[0]: split for name, split in zip(source.ids, source.splits, strict=True)
    }
    assert parts == dict(zip(names, ("train", "val", "test"), strict=True))


def test_a_class_called_train_is_a_class(tree: Tree) -> None:
    source = open_images(tree({"train": 2, "plane": 2}))
    assert source.classes == ("plane", "train")
    assert source.splits is None
    assert open_images(tree({"tester": 2, "validator": 2}, name="x")).classes[0] == "tester"


def test_deeper_folders_belong_to_the_class_above(tree: Tree) -> None:
    source = open_images(tree({"a/day1": 1, "a/day2": 2, "b": 1}))
    assert source.labels.tolist() == [0, 0, 0, 1]
    assert source.ids[0] == "a/day1/000.png"


def test_upper_case_endings_and_litter(tree: Tree) -> None:
    root = tree({"a": 1, "b": 1})
    (root / "a" / "000.png").rename(root / "a" / "SCAN.PNG")
    (root / "a" / ".DS_Store").write_bytes(b"x")
    (root / "b" / "Thumbs.db").write_bytes(b"x")
    (root / "README.txt").write_text("about")
    assert open_images(root).ids == ("a/SCAN.PNG", "b/000.png")


def test_test_images_without_classes_are_left_aside(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        source = open_images(tree({"train/a": 2, "train/b": 2, "test": 3}))
    assert len(source) == 4
    assert "without class folders" in caplog.text


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_image_beside_class_folders_is_named(tree: Tree, part: str) -> None:
    parts = {f"{name}/{c}": 2 for name in ("train", "val", "test") for c in ("a", "b")}
    root = tree({**parts, part: 1})
    with pytest.raises(DataError, match=rf"'{part}/000\.png' in .* beside the class folders of"):
        open_images(root)
    with pytest.raises(DataError, match="beside the class folders"):
        open_images(root, skip_bad_images=True)  # it is no bad image


@pytest.mark.parametrize(
    ("counts", "what"),
    [
        ({"a": 3}, "all 3 images are of one class, 'a'"),
        ({"a": 0, "b": 0}, "no images in"),
        ({"val/a": 1, "test/a": 1}, "but no train/"),
        ({"train/a": 1, "train/b": 1, "others/a": 1}, "'others', which is neither"),
        ({"train/a": 1, "train/b": 1, "val/c": 1}, "class 'c' of 'val/c/000.png' has no images"),
        ({"train/a": 1, "val/a": 1, "valid/a": 1}, "two folders for the val part"),
        ({"train": 3, "test": 2}, "'train/000.png' in {root!r} lies in no class folder"),
        ({"train": 3}, "'train/000.png' in {root!r} lies in no class folder"),
        ({"train": 3, "test/a": 1}, "'train/000.png' in {root!r} lies in no class folder"),
        ({"val": 3, "test": 2}, "but no train/"),
        ({"train": 3, "test1": 2}, "'test1' and 'train' in {root!r} look like parts"),
        ({"test_set/a": 1, "training_set/a": 1, "training_set/b": 1}, "look like parts"),
        ({"Val 2017": 1, "train2017": 2}, "look like parts"),
    ],
)
def test_bad_trees_are_one_line(tree: Tree, counts: dict[str, int], what: str) -> None:
    root = tree(counts)
    with pytest.raises(DataError) as caught:
        open_images(root)
    assert what.replace("{root!r}", repr(str(root))) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_without_class_folders(tree: Tree) -> None:
    with pytest.raises(DataError, match="expected one folder per class"):
        open_images(tree({".": 3}))


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder.*nowhere"):
        open_images(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    [
        *("x" * 300, "a\0b", "a\0b.csv", "~no-such-user/x", "mnist:~no-such-user/x"),
        "torch/image_folder:" + "x" * 300,
    ],
)
def test_what_cannot_be_a_path_is_one_line(name: str) -> None:
    with pytest.raises(DataError, match="cannot be looked up: ") as caught:
        open_images(name)
    assert "\n" not in str(caught.value)


def test_bad_images_are_named_and_skipped_only_on_request(tree: Tree) -> None:
    root = tree({"a": 3, "b": 3})
    damaged = root / "a" / "001.png"
    damaged.write_bytes(damaged.read_bytes()[:150])
    (root / "b" / "fake.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"'a/001\.png' cannot be decoded.*1 more bad image"):
        open_images(root)
    source = open_images(root, skip_bad_images=True)
    assert len(source) == 5
    assert source.labels.tolist() == [0, 0, 1, 1, 1]
    assert len(source.skipped) == 2
    assert "'b/fake.jpg' is not an image" in source.skipped[1]
    assert source.load(1).size == (12, 10)


def test_other_files_among_images_are_refused_by_name(tree: Tree) -> None:
    root = tree({"a": 1, "b": 1})
    (root / "a" / "notes.docx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"'a/notes\.docx'.* is not an image"):
        open_images(root)
    assert open_images(root, skip_bad_images=True).skipped == ("'a/notes.docx' is not an image",)


def test_links_that_lead_out_are_refused(tree: Tree, tmp_path: Path) -> None:
    root = tree({"a": 1, "b": 1})
    outside = tmp_path / "secret.png"
    shutil.copy(root / "a" / "000.png", outside)
    link = root / "a" / "link.png"
    link.symlink_to(outside)
    for skip in (False, True):
        with pytest.raises(DataError, match=r"link\.png' leads out of the data folder"):
            open_images(root, skip_bad_images=skip)
    link.unlink()
    (root / "c").symlink_to(tmp_path)
    with pytest.raises(DataError, match="/c' leads out of the data folder"):
        open_images(root)


def test_links_inside(tree: Tree) -> None:
    root = tree({"a": 1, "b": 1})
    (root / "b" / "again.png").symlink_to(root / "a" / "000.png")
    source = open_images(root)
    assert source.content_hashes[0] == source.content_hashes[2]
    (root / "a" / "loop").symlink_to(root / "a")
    with pytest.raises(DataError, match="is a link to another folder of the data"):
        open_images(root)


def test_a_link_as_root_is_the_users_own_choice(tree: Tree, tmp_path: Path) -> None:
    link = tmp_path / "shortcut"
    link.symlink_to(tree({"a": 1, "b": 1}))
    assert len(open_images(link)) == 2


def test_fingerprint_is_of_content_not_of_place_or_names(tree: Tree, tmp_path: Path) -> None:
    root = tree({"a": 3, "b": 2})
    before = open_images(root).fingerprint
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    (moved / "a" / "000.png").rename(moved / "a" / "zzz.png")
    assert open_images(moved).fingerprint == before
    (moved / "a" / "zzz.png").rename(moved / "b" / "zzz.png")
    assert open_images(moved).fingerprint != before
    shutil.copy(root / "b" / "000.png", root / "b" / "new.png")
    assert open_images(root).fingerprint != before


def test_groups_by_regular_expression(tree: Tree) -> None:
    root = tree({"a/p1": 2, "a/p2": 1, "b/p1": 1})
    source = open_images(root, group_regex=r"/(p\d)/")
    assert source.groups is not None
    assert source.groups.tolist() == ["p1", "p1", "p2", "p1"]
    assert open_images(root, group_regex=r"p\d").groups.tolist() == ["p1", "p1", "p2", "p1"]  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"finds no group in 'a/p2/000\.png'"):
        open_images(root, group_regex="(p1)")
    with pytest.raises(DataError, match="is no regular expression"):
        open_images(root, group_regex="(")
    with pytest.raises(DataError, match="not both"):
        source.with_groups("p1")


def test_accents_and_other_bytes_in_names(tree: Tree) -> None:
    root = tree({"train/e\u0301te\u0301": 2, "train/b": 2, "val/\u00e9t\u00e9": 1})
    assert open_images(root).classes == ("b", "\u00e9t\u00e9")
    os.rename(  # noqa: PTH104
        os.fsencode(root / "train" / "b" / "000.png"),
        os.fsencode(root / "train" / "b") + b"/\xff.png",
    )
    source = open_images(root)
    assert r"train/b/\xff.png" in source.ids
    assert source.load(source.ids.index(r"train/b/\xff.png")).size == (12, 10)
    source.fingerprint.encode()
    os.rename(os.fsencode(root / "train" / "b"), os.fsencode(root / "train") + b"/\xfe")  # noqa: PTH104
    with pytest.raises(DataError, match="is not named in UTF-8") as caught:
        open_images(root)
    str(caught.value).encode()


def test_what_is_left_out_is_said_and_refused_by_strict(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree({"a": 10, "b": 10})
    for number in range(6):
        (root / "a" / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    (root / "b" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt' in .* is not an image"):
        open_images(root)
    (root / "b" / "notes.txt").unlink()
    with pytest.raises(DataError, match=r"IMG_0\.HEIC' is a HEIC photo.* \(and 5 more bad images"):
        open_images(root)
    (root / "b" / "notes.txt").write_text("x")
    picture(99).save(root / "stray.png")
    with caplog.at_level(logging.WARNING):
        source = open_images(root, skip_bad_images=True)
    assert len(source) == 20
    assert "8 files were left out (6 .heic, 1 .txt, 1 .png)" in caplog.text
    with pytest.raises(DataError, match=r"8 files were left out .*; mend or remove"):
        make_splits(source, seed=0, strict=True)
    make_splits(source, seed=0)


def test_names_bring_no_lines_and_escapes(tree: Tree) -> None:
    with pytest.raises(DataError, match=r"class 'c\\nat' has control characters in its name"):
        open_images(tree({"c\nat": 1, "dog": 1}))
    root = tree({"cat": 1, "dog": 1}, name="others")
    (root / "cat" / "000.png").rename(root / "cat" / "a\nb\x1b.png")
    assert open_images(root).ids == (r"cat/a\nb\x1b.png", "dog/000.png")
