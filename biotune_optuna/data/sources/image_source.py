"""The one type that every way in leads to: images with labels, names and content hashes."""

from __future__ import annotations

import copy
import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.data import identity
from biotune_optuna.errors import DataError
from biotune_optuna.names import control_characters

if TYPE_CHECKING:
    from PIL import Image


SPLIT_NAMES = ("train", "val", "test")
"""The parts that data may come divided into."""


class ImageSource:
    """Labelled images, read one at a time.

    Build one with :func:`biotune_optuna.data.open_images`; the constructor is for other ways in.

    Args:
        read: Gives image ``i`` as an RGB picture.
        name: Short name for people and for file names.
        classes: Class names; ``labels`` index them.
        labels: Class index per image, shape (N,).
        ids: Name per image, unique: path within the folder, or position. One with control
            characters is kept as Python writes it.
        content_hashes: Hexadecimal digest per image, of its content alone.
        splits: ``"train"``, ``"val"``, ``"test"`` or ``""`` (not said) per image; None if the data
            come undivided.
        groups: Images of the same group must not be separated; None if all stand alone.
        skipped: One line per file that was left out.
        notes: What was understood of how the data lie, a line each, where that was not plain.

    Attributes:
        name: As given.
        classes: As given, a tuple of str.
        labels: int64 array of shape (N,).
        ids: Tuple of N str.
        content_hashes: Tuple of N str.
        splits: str array of shape (N,), or None.
        groups: str array of shape (N,), or None.
        skipped: Tuple of str.
        notes: Tuple of str.

    Raises:
        DataError: There are no images, or fewer than two classes.
    """

    def __init__(
        self,
        read: Callable[[int], Image.Image],
        *,
        name: str,
        classes: Sequence[str],
        labels: Sequence[int] | NDArray[np.int64],
        ids: Sequence[str],
        content_hashes: Sequence[str],
        splits: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        skipped: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self._read = read
        self.name = name
        self.classes = tuple(classes)
        self.labels: NDArray[np.int64] = np.asarray(labels, dtype=np.int64)
        self.ids = tuple(ascii(one)[1:-1] if control_characters(one) else one for one in ids)
        self.content_hashes = tuple(content_hashes)
        self.splits = None if splits is None or not any(splits) else np.asarray(splits, dtype=str)
        self.groups = None if groups is None else np.asarray(groups, dtype=str)
        self.skipped = tuple(skipped)
        self.notes = tuple(notes)
        self._check()

    def _check(self) -> None:
        columns = [self.ids, self.content_hashes, self.splits, self.groups]
        if any(column is not None and len(column) != len(self.labels) for column in columns):
            raise ValueError("labels, ids, content_hashes, splits and groups differ in length")
        if not len(self):
            raise DataError(f"{self.name}: no images")
        for what, names in (("image", self.ids), ("class", self.classes)):
            for name, times in Counter(names).most_common(1):
                if times > 1:
                    raise DataError(f"{self.name}: {what} {name!r} is named twice")
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise DataError(
                f"{self.name}: labels run from {self.labels.min()} to {self.labels.max()}, but "
                f"there are {len(self.classes)} classes, counted from 0"
            )
        for name in self.classes:
            if control_characters(name):
                raise DataError(
                    f"{self.name}: class {name!r} has control characters in its name; rename it"
                )
        present = np.unique(self.labels)
        if len(present) < 2:
            only = self.classes[int(present[0])]
            raise DataError(
                f"{self.name}: all {len(self)} images are of one class, {only!r}; "
                "at least two classes are needed"
            )
        if self.splits is not None:
            odd = sorted(set(self.splits.tolist()) - {*SPLIT_NAMES, ""})
            if odd:
                raise DataError(f"{self.name}: split {odd[0]!r} is not train, val or test")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ImageSource({self.name!r}, {len(self)} images, {len(self.classes)} classes)"

    def load(self, index: int) -> Image.Image:
        """Image ``index`` as an upright 8-bit RGB picture.

        Raises:
            DataError: The image cannot be read (any more).
        """
        return self._read(int(index))

    @functools.cached_property
    def fingerprint(self) -> str:
        """What makes the data set what it is, see `biotune_optuna.data.identity.fingerprint`."""
        return identity.fingerprint(*self._identity())

    @functools.cached_property
    def early_fingerprint(self) -> str:
        """The same as the first studies stored it, see `biotune_optuna.data.identity`."""
        return identity.early_fingerprint(*self._identity())

    def _identity(
        self,
    ) -> tuple[Sequence[str], list[int], Sequence[str], list[str] | None, list[str] | None]:
        splits = None if self.splits is None else self.splits.tolist()
        groups = None if self.groups is None else self.groups.tolist()
        return self.content_hashes, self.labels.tolist(), self.classes, splits, groups

    def with_groups(self, pattern: str) -> ImageSource:
        r"""Return the same images, grouped by a regular expression over their ids.

        Args:
            pattern: Searched in each id; the first capturing group names the group, or the whole
                match where the pattern captures nothing. ``r"(patient\d+)_"`` keeps together what
                is of one patient.

        Raises:
            DataError: The pattern is no regular expression, some id does not match, or groups were
                given already.
        """
        if self.groups is not None:
            raise DataError(f"{self.name}: give either a group column or group_regex, not both")
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise DataError(f"group_regex {pattern!r} is no regular expression: {error}") from None
        groups = []
        for name in self.ids:
            found = expression.search(name)
            if found is None or (group := found[1 if expression.groups else 0]) is None:
                raise DataError(f"group_regex {pattern!r} finds no group in {name!r}")
            groups.append(group)
        grouped = copy.copy(self)
        grouped.groups = np.asarray(groups, dtype=str)
        for name in ("fingerprint", "early_fingerprint"):  # they depend on the groups
            grouped.__dict__.pop(name, None)
        return grouped
