"""What makes two data sets the same: each alone changes the fingerprint, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest

from biotune_optuna.data import identity
from biotune_optuna.data.identity import early_fingerprint, fingerprint, is_early
from tests.kit.images import make_source

ONE: dict[str, Any] = {
    "content_hashes": ["a1", "b2", "c3", "d4"],
    "labels": [0, 0, 1, 1],
    "classes": ["cat", "dog"],
    "splits": ["train", "train", "train", "test"],
    "groups": ["g", "h", "g", "i"],
}


@pytest.mark.parametrize(
    "change",
    [
        {"content_hashes": ["a1", "b2", "c3", "e5"]},
        {"content_hashes": ["b2", "a1", "c3", "d4"], "groups": ["g", "h", "g", "i"]},
        {"labels": [0, 1, 1, 1]},
        {"labels": [1, 1, 0, 0]},
        {"classes": ["cat", "hound"]},
        {"classes": ["dog", "cat"], "labels": [1, 1, 0, 0]},  # their order alone
        {"classes": ["cat", "dog", "emu"]},
        {"splits": ["train", "train", "test", "test"]},
        {"splits": None},
        {"groups": ["g", "h", "h", "i"]},
        {"groups": None},
        {"decoding": identity.DECODING_VERSION + 1},
    ],
    ids="+".join,
)
def test_each_thing_that_a_value_depends_on_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(**(ONE | change)) != fingerprint(**ONE)


@pytest.mark.parametrize(
    "change",
    [
        {key: ONE[key][::-1] for key in ("content_hashes", "labels", "splits", "groups")},
        {"groups": ["patient 7", "x", "patient 7", "y"]},  # another name of the same group
    ],
)
def test_what_no_value_depends_on_leaves_it(change: dict[str, Any]) -> None:
    assert fingerprint(**(ONE | change)) == fingerprint(**ONE)


def test_names_of_images_and_of_the_data_set_leave_it() -> None:
    labels = [0, 1, 0, 1]
    one = make_source(labels)
    other = make_source(labels, order=[3, 1, 2, 0])
    other.name = "elsewhere"
    assert one.fingerprint == other.fingerprint
    assert one.ids != other.ids


def test_no_name_can_be_taken_for_two() -> None:
    joined = ONE | {"classes": ["a\nb", "c"]}
    assert fingerprint(**joined) != fingerprint(**(ONE | {"classes": ["a", "b\nc"]}))
    tabbed = {"labels": [0, 0], "splits": ["train", ""], "groups": None}
    tabbed["content_hashes"] = ["1", "2"]
    found = {fingerprint(**tabbed, classes=[name]) for name in ("a", "a\ttrain", '"a"', "a,")}
    assert len(found) == 4


def test_members_of_a_group_are_told_apart_by_their_class() -> None:
    same_picture = ONE | {"content_hashes": ["x", "y", "x", "z"], "groups": ["g", "g", "h", "h"]}
    swapped = same_picture | {"groups": ["h", "g", "g", "h"]}  # the other x goes with y
    assert fingerprint(**same_picture) != fingerprint(**swapped)


def test_grouping_gives_another_fingerprint_than_before() -> None:
    source = make_source([0, 1, 0, 1], contents=["p1_a", "p1_b", "p2_a", "p2_b"])
    before = source.fingerprint, source.early_fingerprint
    grouped = source.with_groups(r"(p\d)_")
    assert grouped.fingerprint != before[0]
    assert grouped.early_fingerprint != before[1]


def test_studies_of_early_versions_keep_their_fingerprint() -> None:
    """The digests of the first studies, written down when those were made: they must open."""
    assert early_fingerprint(**ONE) == "c127cc0c16f157b900e816f96de2e9a4"
    assert is_early(early_fingerprint(**ONE))
    assert not is_early(fingerprint(**ONE))
