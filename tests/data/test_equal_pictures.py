"""Equal pictures: kept in one part, reported where given parts share them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest

from biotune_optuna.data.partition import StratifiedDealer
from biotune_optuna.data.splits import make_splits
from biotune_optuna.errors import DataError
from tests.kit.images import assert_partition, make_source

if TYPE_CHECKING:
    pass


def test_duplicates_across_given_parts_are_reported_and_refused_when_strict(
    caplog: pytest.LogCaptureFixture,
) -> None:
    contents = [f"c{i}" for i in range(40)]
    contents[3] = contents[30]  # train and test
    contents[5] = contents[7]  # both train: no harm
    source = make_source([0, 1] * 20, contents=contents, splits=["train"] * 30 + ["test"] * 10)
    with caplog.at_level(logging.WARNING):
        splits = make_splits(source, seed=0)
    (found,) = splits.duplicates
    assert set(found.parts) == {found.parts[0], "test"}
    assert found.classes in {("class1", "class0"), ("class0", "class1")}
    assert "'c30#30' (test)" in str(found)
    assert "1 picture is in more than one" in caplog.text
    with pytest.raises(DataError, match=r"1 picture is.*'c30#30' \(test\)"):
        make_splits(source, seed=0, strict=True)


def test_own_splits_keep_equal_pictures_of_a_class_together() -> None:
    # 60 pictures per class, each there twice or three times.
    contents = [f"class {c} picture {i}" for c in range(2) for i in range(60) for _ in range(2 + c)]
    labels = [c for c in range(2) for _ in range(60 * (2 + c))]
    source = make_source(labels, contents=contents)
    for seed in range(20):
        splits = make_splits(source, seed=seed, strict=True)
        assert_partition(splits, source)
        assert splits.duplicates == ()


def test_two_equal_pictures_stay_together_wherever_they_come_in_the_order() -> None:
    contents = [f"class {c} picture {max(i, 1)}" for c in range(2) for i in range(10)]
    source = make_source([0] * 10 + [1] * 10, contents=contents)
    for seed in range(40):
        assert_partition(make_splits(source, seed=seed, strict=True), source)


@pytest.mark.parametrize(
    ("held", "cuts", "wanted"),
    [
        ("abbbcd", [4], [4]),  # clean already
        ("abbbcd", [3], [1]),  # to the left, as far as it takes
        ("aabcde", [1], [2]),  # nothing there: to the right
        ("aaabcdefghijk", [2], [3]),
        ("aaabcdefghijk", [1], [1]),  # more than twice the share
        ("aabc", [1], [1]),  # more than a quarter of the rest
        ("aaaaaa", [2], [2]),  # no clean cut at all
        ("aabcdefghijk", [1, 2], [1, 2]),  # a clean cut stays
        ("aaab", [0, 2], [0, 2]),  # a part that is due nothing
    ],
)
def test_cuts_move_to_where_no_equal_pictures_are_parted(
    held: str, cuts: list[int], wanted: list[int]
) -> None:
    dealer = StratifiedDealer.__new__(StratifiedDealer)
    dealer._hashes = tuple(held)
    found = dealer._cuts(np.arange(len(held)), np.array(cuts), firm=False)
    assert found == wanted
    limited = dealer._cuts(np.arange(len(held)), np.array(cuts), firm=True)
    assert all(place <= cut for place, cut in zip(limited, cuts, strict=True))


@pytest.mark.parametrize(("size", "same"), [(12, 6), (20, 14), (12, 10)])
def test_many_equal_pictures_do_not_leave_too_few_for_the_folds(size: int, same: int) -> None:
    contents = [f"class {c} picture {max(i, same)}" for c in range(2) for i in range(size)]
    source = make_source([0] * size + [1] * size, contents=contents)
    for seed in range(30):
        assert_partition(make_splits(source, seed=seed, n_folds=5), source)


def test_size_is_a_limit_whatever_is_equal() -> None:
    contents = ["same"] * 25 + [f"c{i}" for i in range(25)] + [f"d{i}" for i in range(50)]
    source = make_source([0] * 50 + [1] * 50, contents=contents)
    for seed in range(10):
        assert len(make_splits(source, seed=seed, train_size=10, test_fraction=0).train) <= 10


def test_equal_pictures_in_several_folds_are_reported() -> None:
    source = make_source([0, 1] * 20, contents=["same", "same", *map(str, range(38))])
    (found,) = make_splits(source, seed=6, n_folds=5, scheme="kfold").duplicates
    assert all(part.startswith("fold ") for part in found.parts)
    with pytest.raises(DataError, match=r"more than one of the folds, val and test"):
        make_splits(source, seed=6, n_folds=5, scheme="kfold", strict=True)
    assert make_splits(source, seed=6, n_folds=5).duplicates == ()


def test_a_class_of_one_picture_many_times_is_split_and_reported() -> None:
    source = make_source([0] * 20 + [1] * 20, contents=["same"] * 20 + list("abcdefghijklmnopqrst"))
    splits = make_splits(source, seed=0)
    assert_partition(splits, source)
    (found,) = splits.duplicates
    assert len(found.ids) == 20
    assert str(found).count("(") == len(set(found.parts)) == 3
    assert str(found).endswith(" and 17 more")
