"""Folders that look like parts of the data are never taken for classes in silence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from biotune_optuna.data.sources.open import open_images
from biotune_optuna.data.sources.parts import part_of
from biotune_optuna.errors import DataError

Tree = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, "train") for name in ("train", "Training", "seg_train", "train_flowers")),
        *((name, "train") for name in ("XTrain", "trainData", "train2017", "TRAIN-SET", "x.train")),
        *(
            (name, "train")
            for name in ("Trainingsdaten", "entraînement", "entrenamiento", "treino")
        ),
        *(
            (name, "train")
            for name in ("addestramento", "обучение", "训练集", "訓練データ", "학습")
        ),
        *((name, "train") for name in ("Eğitim", "trening", "train val", "trainval", "01_train")),
        *((name, "train") for name in ("träning", "प्रशिक्षण", "ฝึก", "xtrain", "Trainingsbilder")),
        *((name, "val") for name in ("val", "VALID", "flowers_val", "Val 2017", "dev", "my-eval")),
        *(
            (name, "val")
            for name in ("validación", "validação", "Validierung", "验证", "検証", "검증")
        ),
        *((name, "val") for name in ("doğrulama", "валидация", "validation_images", "holdout")),
        *((name, "test") for name in ("test", "Testing", "asl_alphabet_test", "test1", "testset")),
        *((name, "test") for name in ("prueba", "teste", "тест", "测试", "テスト", "TestImages")),
        *((name, "fold") for name in ("fold_0", "Fold1", "split 2", "cv-3", "kfold_4", "2_fold")),
        *((name, None) for name in ("cats", "contest", "trainer", "testament", "protest", "value")),
        *((name, None) for name in ("valley", "strain", "scaffold", "folder", "device", "latest")),
    ],
)
def test_names_of_parts(name: str, part: str | None) -> None:
    found = part_of(name)
    assert (None if found is None else found.part) == part


@pytest.mark.parametrize(
    "folders",
    [
        ("seg_train", "seg_test"),
        ("seg_train", "seg_test", "seg_pred"),
        ("X_train", "X_val"),
        ("flowers_train", "flowers_val", "flowers_test"),
        ("train_flowers", "val_flowers"),
        ("TrainImages", "TestImages"),
        ("entrainement", "essai"),
        ("训练", "测试"),
        ("fold_0", "fold_1", "fold_2"),
        ("Fold1", "Fold2"),
        ("cv 1", "cv 2"),
        ("0", "1", "2"),
        ("part1", "part2"),
        ("train_set", "other"),
        ("test_images", "cats"),
        ("dev", "test"),
        ("images", "masks"),
        ("learn", "check"),  # the folders in them say it
        ("đào tạo", "kiểm tra"),
        ("client_0", "client_1"),
        ("original", "augmented"),
    ],
)
def test_parts_that_hold_the_classes_are_asked_about(tree: Tree, folders: tuple[str, ...]) -> None:
    root = tree({f"{folder}/{c}": 2 for folder in folders for c in ("buildings", "sea")})
    with pytest.raises(DataError, match=r"look|neither|not clear") as caught:
        open_images(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "folders",
    [
        ("train_cats", "train_dogs", "test_cats", "test_dogs"),
        ("bullet_train", "steam_train"),  # nobody can tell
        ("cats", "dogs", "test"),
        ("cats", "val", "test"),
        ("fold_1", "fold_2"),
    ],
)
def test_parts_that_hold_only_images_are_asked_about(tree: Tree, folders: tuple[str, ...]) -> None:
    root = tree(dict.fromkeys(folders, 3))
    with pytest.raises(DataError, match="look"):
        open_images(root)


@pytest.mark.parametrize(
    "folders",
    [
        ("cats/train", "cats/test", "dogs/train", "dogs/test"),
        ("cats", "dogs/day 1/my_train", "dogs/day 1/my_val"),
        ("cats/fold1", "cats/fold2", "dogs/fold1"),
        ("train/seg_train/cats", "train/seg_train/dogs"),
        ("train/cats/train", "train/cats/test", "train/dogs"),
    ],
)
def test_parts_below_classes_are_asked_about(tree: Tree, folders: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"look"):
        open_images(tree(dict.fromkeys(folders, 2)))


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "plane"),
        ("bullet_train", "car"),
        ("test_tube", "beaker", "flask"),
        ("valid", "invalid"),
    ],
)
def test_classes_that_are_called_so_are_classes_and_it_is_said(
    tree: Tree, folders: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert open_images(tree(dict.fromkeys(folders, 2))).classes == tuple(sorted(folders))
    assert "taken for a class, not for a part" in caplog.text


@pytest.mark.parametrize(
    "folders",
    [("a/day1", "a/day2", "b/day1", "b/day2"), ("10", "2"), ("set 1", "set 2"), ("tester", "x")],
)
def test_other_classes_are_read_without_a_word(
    tree: Tree, folders: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(open_images(tree(dict.fromkeys(folders, 2))).classes) == 2
    assert not caplog.text


def test_what_was_understood_of_parts_is_told(tree: Tree) -> None:
    root = tree({f"{part}/{c}": 2 for part in ("Training", "valid") for c in ("a", "b")})
    assert open_images(root).notes == (
        "Training/ is read as the train part",
        "valid/ is read as the val part",
    )
    assert not open_images(tree({"a": 1, "b": 1}, name="plain")).notes


LITTER = ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", ".thumbnails", "lost+found", "@__thumb")


@pytest.mark.parametrize("litter", LITTER)
def test_what_photo_managers_and_storages_leave_is_no_image(tree: Tree, litter: str) -> None:
    parts = {f"{part}/{c}": 2 for part in ("train", "val") for c in ("a", "b")}
    root = tree({**parts, litter: 1, f"train/{litter}": 1, f"train/a/{litter}/1.png": 1})
    source = open_images(root)
    assert len(source) == 8
    assert not source.skipped
