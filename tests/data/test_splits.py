"""Splits: disjoint, exhaustive, stratified, and the same whatever the order of the files."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biotune_optuna.data.partition import apportion
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.data.splits import make_splits
from biotune_optuna.errors import DataError
from tests.kit.images import assert_partition, labels_of, make_source, names

if TYPE_CHECKING:
    pass

counts = st.lists(st.integers(5, 40), min_size=2, max_size=6)


@given(
    sizes=counts,
    seed=st.integers(0, 2**32),
    n_folds=st.integers(1, 3),
    val=st.floats(0.05, 0.5),
    test=st.floats(0.0, 0.5),
)
@settings(max_examples=150)
def test_disjoint_exhaustive_and_stratified_within_one_image(
    sizes: list[int], seed: int, n_folds: int, val: float, test: float
) -> None:
    source = make_source(labels_of(sizes))
    try:
        splits = make_splits(
            source, seed=seed, n_folds=n_folds, val_fraction=val, test_fraction=test
        )
    except DataError as error:
        # Large held out parts of a class of five can leave fewer images than folds.
        assert "too few images" in str(error)  # noqa: PT017
        assert min(sizes) < 2 * n_folds + 5
        return
    assert_partition(splits, source)
    rest = np.concatenate([splits.train, splits.val])
    shares = [(splits.val, max(1, round(val * len(rest))) / len(rest), rest)]
    shares += [(fold, 1 / n_folds, splits.train) for fold in splits.folds]
    if test:
        wanted_test = max(1, round(test * len(source))) / len(source)
        shares.append((splits.test, wanted_test, np.arange(len(source))))
    for part, share, whole in shares:
        held = np.bincount(source.labels[part], minlength=len(sizes))
        exact = share * np.bincount(source.labels[whole], minlength=len(sizes))
        assert (np.abs(held - exact) <= 1).all()
        assert held.all()


@given(counts=counts, share=st.floats(0.02, 0.98))
def test_apportion_rounds_each_share_up_or_down(counts: list[int], share: float) -> None:
    table = apportion(np.array(counts), np.array([share, 1 - share]))
    exact = np.outer(counts, [share, 1 - share])
    assert (table.sum(axis=1) == counts).all()
    assert (np.abs(table - exact) < 1 + 1e-6).all()
    assert table.all()
    if (exact >= 1).all():
        assert abs(table[:, 0].sum() - share * sum(counts)) < 1


@given(sizes=counts, folds=st.integers(2, 5))
def test_apportion_keeps_folds_even_in_total_too(sizes: list[int], folds: int) -> None:
    table = apportion(np.array(sizes), np.full(folds, 1 / folds))
    assert table.max(axis=1).tolist() == [-(-size // folds) for size in sizes]
    assert table.min(axis=1).tolist() == [size // folds for size in sizes]
    assert np.ptp(table.sum(axis=0)) <= 1


@given(sizes=counts, seed=st.integers(0, 1000), shuffle=st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_file_order_does_not_matter(sizes: list[int], seed: int, shuffle: object) -> None:
    labels = labels_of(sizes)
    order = list(range(len(labels)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    one, other = make_source(labels), make_source(labels, order=order)
    first = make_splits(one, seed=seed, test_fraction=0.1)
    second = make_splits(other, seed=seed, test_fraction=0.1)
    assert one.fingerprint == other.fingerprint
    assert names(one, first) == names(other, second)
    assert first.fingerprint == second.fingerprint


def test_seed_changes_the_splits_and_their_fingerprint() -> None:
    source = make_source([0, 1] * 50)
    one, same, other = (make_splits(source, seed=seed) for seed in (0, 0, 1))
    assert names(source, one) == names(source, same)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert set(one.test) != set(other.test)


def test_another_name_of_a_class_is_another_fingerprint() -> None:
    one, other = (make_source([0, 1] * 20, classes=["cat", name]) for name in ("dog", "fox"))
    assert one.fingerprint != other.fingerprint
    first, second = (make_splits(source, seed=0) for source in (one, other))
    assert first.test.tolist() == second.test.tolist()
    assert first.fingerprint != second.fingerprint


def test_the_name_of_a_class_without_images_counts_too() -> None:
    named = (["cat", "dog", name] for name in ("fox", "owl"))
    one, other = (make_source([0, 1], classes=classes) for classes in named)
    assert one.fingerprint != other.fingerprint


def test_images_that_change_their_classes_change_the_fingerprint() -> None:
    one, other = make_source([0, 1, 0, 1]), make_source([1, 0, 0, 1])
    assert one.fingerprint != other.fingerprint


def test_sizes_of_the_digits() -> None:
    source = open_images("digits")
    splits = make_splits(source, seed=0)
    assert splits.describe() == "train 1150 in 2 folds, val 288, test 359"
    assert [len(fold) for fold in splits.folds] == [575, 575]
    small = make_splits(source, seed=0, train_size=200, val_size=400)
    assert (len(small.train), len(small.val), len(small.test)) == (200, 400, 359)
    assert set(small.test.tolist()) == set(splits.test.tolist())
    assert len(make_splits(source, seed=0, train_size=5000).train) == 1150


def test_runs_of_both_schemes() -> None:
    source = make_source([0, 1] * 60)
    held = make_splits(source, seed=0, n_folds=3)
    assert held.run(None) == (held.train, held.val)
    assert held.run(1) == (held.folds[1], held.val)
    assert held.run(4)[0] is held.folds[1]
    crossed = make_splits(source, seed=0, n_folds=3, scheme="kfold")
    train, val = crossed.run(1)
    assert val is crossed.folds[1]
    assert sorted(train.tolist()) == sorted({*crossed.train.tolist()} - {*val.tolist()})
    assert crossed.run(None) == (crossed.train, crossed.val)
    assert held.fingerprint != crossed.fingerprint
    all_in = make_splits(source, seed=0, n_folds=5, scheme="kfold", val_fraction=0)
    assert len(all_in.val) == 0


def test_given_parts_are_kept_and_missing_ones_held_out() -> None:
    labels = [0, 1] * 50
    splits = ["test"] * 20 + ["val"] * 10 + ["train"] * 60 + [""] * 10
    found = make_splits(make_source(labels, splits=splits), seed=0)
    assert sorted(found.test.tolist()) == list(range(20))
    assert sorted(found.val.tolist()) == list(range(20, 30))
    assert sorted(found.train.tolist()) == list(range(30, 100))
    no_val = ["test"] * 20 + ["train"] * 80
    found = make_splits(make_source(labels, splits=no_val), seed=0)
    assert sorted(found.test.tolist()) == list(range(20))
    assert len(found.val) == 16
    no_test = ["val"] * 20 + ["train"] * 80
    found = make_splits(make_source(labels, splits=no_test), seed=0)
    assert sorted(found.val.tolist()) == list(range(20))
    assert len(found.test) == 16
    assert len(make_splits(make_source(labels, splits=no_test), seed=0, val_size=8).val) == 8


@pytest.mark.parametrize(
    ("sizes", "options", "what"),
    [
        ([9, 3], {}, "class 'class1' has 3 images to divide, but needs at least 4"),
        ([9, 5], {"n_folds": 4}, r"needs at least 6 \(4 for the folds, 1 for val, 1 for test\)"),
        ([9, 1], {"n_folds": 1, "test_fraction": 0}, "needs at least 2"),
        ([9, 9], {"scheme": "loo"}, "scheme 'loo' is unknown"),
        ([9, 9], {"n_folds": 0}, "n_folds 0 is too few"),
        ([9, 9], {"n_folds": 1, "scheme": "kfold"}, "n_folds 1 is too few; kfold needs"),
        ([9, 9], {"val_fraction": 1.0}, r"val_fraction 1.0 is not in \[0, 1\)"),
        ([9, 9], {"test_fraction": -0.1}, "test_fraction"),
        ([9, 9], {"val_fraction": 0}, "leaves nothing to validate on"),
        ([9, 9], {"train_size": 1}, "train_size 1 is less than one image for each class"),
        ([9, 9], {"val_size": 99}, "val cannot take 99"),
        ([9, 9], {"val_fraction": 0.9}, "has too few images left to be in each of the folds"),
    ],
)
def test_what_cannot_be_is_one_line(
    sizes: list[int], options: dict[str, object], what: str
) -> None:
    with pytest.raises(DataError, match=what) as caught:
        make_splits(make_source(labels_of(sizes)), seed=0, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_class_that_a_given_part_lacks_is_said(caplog: pytest.LogCaptureFixture) -> None:
    source = make_source([0] * 6 + [1] * 8, splits=["train"] * 6 + ["train"] * 5 + ["val"] * 3)
    with caplog.at_level(logging.WARNING):
        make_splits(source, seed=0, n_folds=1, test_fraction=0.0)
    assert "val has no image of class 'class0'" in caplog.text
    with pytest.raises(DataError, match="val has no image of class 'class0'"):
        make_splits(source, seed=0, n_folds=1, test_fraction=0.0, strict=True)


def test_a_picture_in_two_classes_is_said(caplog: pytest.LogCaptureFixture) -> None:
    contents = [f"content {i}" for i in range(19)] + ["content 0"]
    source = make_source([0] * 10 + [1] * 10, contents=contents)
    with caplog.at_level(logging.WARNING):
        make_splits(source, seed=3, n_folds=1)
    assert "1 picture is in two classes, such as" in caplog.text
