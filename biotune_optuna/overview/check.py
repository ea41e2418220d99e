"""What labelled images are like: classes, sizes, duplicates, odd ones, and what was left out."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.data.sources.image_source import SPLIT_NAMES
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.data.sources.scan import worker_count
from biotune_optuna.data.thumbnail import thumbnail
from biotune_optuna.errors import BioTuneError
from biotune_optuna.files import replace_file
from biotune_optuna.overview.page import page
from biotune_optuna.overview.words import SMALLEST, lines

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource

_NEAR = 4  # of 64 bits: beyond, hashes of different pictures are as close
_FLAT = 4.0  # standard deviation of grey values, of 255
_DARK, _BRIGHT = 40.0, 215.0  # what 95 % of the pixels are below, or above
_FEATURELESS = 12.0  # below this deviation a hash of the picture says little
_ROWS = 1024  # of the table of distances, at once
_SAMPLES = 4  # thumbnails a class


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images that are, or look, the same.

    Attributes:
        first: Name of the one.
        second: Name of the other.
        labels: Class of each.
        parts: Part of each, "" where the data come undivided.
        distance: Bits of 64 in which their perceptual hashes differ; 0 with `exact`.
        exact: Whether the files hold the same bytes.
    """

    first: str
    second: str
    labels: tuple[str, str]
    parts: tuple[str, str]
    distance: int
    exact: bool

    @property
    def conflicts(self) -> bool:
        """Whether the labels differ: one of them must be wrong."""
        return self.labels[0] != self.labels[1]

    @property
    def leaks(self) -> bool:
        """Whether the images lie in different parts, such as training and test."""
        return self.parts[0] != self.parts[1]


@dataclass(frozen=True, slots=True)
class Odd:
    """One image that something is wrong with: ``"blank"``, ``"very dark"`` or ``"very bright"``."""

    id: str
    label: str
    what: str


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """What `check_images` found.

    Attributes:
        name: Name of the data.
        n: Images that can be read.
        classes: Images of each class, by name.
        parts: The same for each part of data that come divided: part -> class -> images.
        widths: Smallest, middle and largest width in pixels.
        heights: The same of the heights.
        sides: The same of the shorter sides.
        skipped: One line for each file that was left out, with the reason.
        pairs: Equal and nearly equal images, those that matter most first.
        odd: Blank, dark and bright images.
        thumbnails: Small pictures by name, of some images of each class and of those above.
        samples: Names of some images of each class.
    """

    name: str
    n: int
    classes: dict[str, int]
    parts: dict[str, dict[str, int]]
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    sides: tuple[int, int, int]
    skipped: tuple[str, ...]
    pairs: tuple[Pair, ...]
    odd: tuple[Odd, ...]
    thumbnails: dict[str, str] = field(repr=False)
    samples: dict[str, tuple[str, ...]] = field(repr=False)

    @property
    def duplicates(self) -> list[Pair]:
        """The pairs of equal images."""
        return [pair for pair in self.pairs if pair.exact]

    @property
    def near_duplicates(self) -> list[Pair]:
        """The pairs that only look the same."""
        return [pair for pair in self.pairs if not pair.exact]

    @property
    def skew(self) -> float:
        """Images of the largest class for one of the smallest."""
        return max(self.classes.values()) / max(1, min(self.classes.values()))

    def __str__(self) -> str:
        return "\n".join(lines(self))

    def to_dict(self) -> dict[str, Any]:
        """All of it but the pictures, JSON-ready."""
        left_out = {"thumbnails", "samples"}
        return {key: value for key, value in asdict(self).items() if key not in left_out}

    def write_json(self, path: str | Path) -> Path:
        """Write `to_dict` as a JSON file; an existing one is replaced.

        Raises:
            StudyError: If the file cannot be written.
        """
        return replace_file(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    def write_html(self, path: str | Path) -> Path:
        """Write a page with a contact sheet that works offline; an existing one is replaced.

        Raises:
            StudyError: If the file cannot be written.
        """
        return replace_file(Path(path), page(self))


@dataclass(slots=True)
class _Seen:
    """What one image looked like."""

    size: tuple[int, int]
    bits: NDArray[np.bool_]
    low: float
    high: float
    spread: float
    small: str


def check_images(data: Any, labels: Any = None) -> ImageCheck:
    """Look at labelled images: nothing is trained, and one bad file never hides the others.

    Near-duplicates are pairs whose perceptual hashes (pHash of the package imagehash, 64 bits)
    differ in 4 bits at most. It is a hint, not a proof. Images below 32 pixels are left out of it.

    Args:
        data: What `biotune_optuna.open_images` takes.
        labels: One per image, for images in memory or a list of files.

    Raises:
        DataError: If there is nothing to look at, such as no images, or all of one class.
    """
    source = open_images(data, labels=labels, skip_bad_images=True)
    with ThreadPoolExecutor(worker_count()) as pool:
        seen = list(pool.map(lambda i: _look(source, i), range(len(source))))
    skipped = [*source.skipped, *(one for one in seen if isinstance(one, str))]
    looks = {i: one for i, one in enumerate(seen) if isinstance(one, _Seen)}
    pairs = _pairs(source, looks)
    odd = [
        Odd(source.ids[i], source.classes[source.labels[i]], what)
        for i, one in looks.items()
        if (what := _oddness(one))
    ]
    samples = _samples(source, looks)
    shown = {one.id for one in odd} | {name for names in samples.values() for name in names}
    shown |= {name for pair in pairs for name in (pair.first, pair.second)}
    sizes = np.array([one.size for one in looks.values()] or [(0, 0)])
    return ImageCheck(
        name=source.name,
        n=len(looks),
        classes=_counts(source, list(looks)),
        parts={
            part: _counts(source, [i for i in looks if _part(source, i) == part])
            for part in SPLIT_NAMES
            if any(_part(source, i) == part for i in looks)
        },
        widths=_span(sizes[:, 0]),
        heights=_span(sizes[:, 1]),
        sides=_span(sizes.min(axis=1)),
        skipped=tuple(skipped),
        pairs=tuple(pairs),
        odd=tuple(odd),
        thumbnails={source.ids[i]: one.small for i, one in looks.items() if source.ids[i] in shown},
        samples=samples,
    )


def _look(source: ImageSource, index: int) -> _Seen | str:
    """Decode one image and note what it is like; a line where it cannot be read any more."""
    import imagehash

    try:
        picture = source.load(index)
    except BioTuneError as error:
        return str(error)
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    low, high = np.quantile(grey, [0.05, 0.95])
    return _Seen(
        size=picture.size,
        bits=np.asarray(imagehash.phash(picture).hash).reshape(-1),
        low=float(low),
        high=float(high),
        spread=float(grey.std()),
        small=thumbnail(picture, side=96),
    )


def _oddness(one: _Seen) -> str:
    """Say what is odd about an image, "" for nothing."""
    if one.spread < _FLAT:
        return "blank"
    if one.high < _DARK:
        return "very dark"
    return "very bright" if one.low > _BRIGHT else ""


def _part(source: ImageSource, index: int) -> str:
    return "" if source.splits is None else str(source.splits[index])


def _counts(source: ImageSource, index: list[int]) -> dict[str, int]:
    times = Counter(source.labels[index].tolist())
    return {name: times[label] for label, name in enumerate(source.classes)}


def _span(values: NDArray[np.int64]) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())


def _samples(source: ImageSource, looks: dict[int, _Seen]) -> dict[str, tuple[str, ...]]:
    """Return some images of each class, evenly chosen in their order."""
    members: dict[str, list[str]] = defaultdict(list)
    for i in looks:
        members[source.classes[source.labels[i]]].append(source.ids[i])
    return {
        name: tuple(ids[:: max(1, len(ids) // _SAMPLES)][:_SAMPLES])
        for name, ids in members.items()
    }


def _pairs(source: ImageSource, looks: dict[int, _Seen]) -> list[Pair]:
    """Return pairs of equal or similar images, conflicts first, then leaks."""

    def pair(i: int, j: int, distance: int, *, exact: bool) -> Pair:
        return Pair(
            first=source.ids[i],
            second=source.ids[j],
            labels=(source.classes[source.labels[i]], source.classes[source.labels[j]]),
            parts=(_part(source, i), _part(source, j)),
            distance=distance,
            exact=exact,
        )

    found = [pair(i, j, 0, exact=True) for i, j in _equal(source, looks)]
    found += [pair(i, j, distance, exact=False) for i, j, distance in _similar(source, looks)]
    return sorted(found, key=lambda p: (not p.conflicts, not p.leaks, not p.exact, p.distance))


def _equal(source: ImageSource, looks: dict[int, _Seen]) -> Iterator[tuple[int, int]]:
    """Yield each further copy of an image with the first one."""
    first: dict[str, int] = {}
    for i in looks:
        kept = first.setdefault(source.content_hashes[i], i)
        if kept != i:
            yield kept, i


def _similar(source: ImageSource, looks: dict[int, _Seen]) -> Iterator[tuple[int, int, int]]:
    """Yield pairs of different files with nearly equal hashes, and the number of unequal bits."""
    clear = (
        i for i, one in looks.items() if one.spread >= _FEATURELESS and min(one.size) >= SMALLEST
    )
    once = {source.content_hashes[i]: i for i in clear}
    index = sorted(once.values())
    if len(index) < 2:
        return
    signs = np.stack([looks[i].bits for i in index]).astype(np.float32) * 2 - 1
    n_bits = signs.shape[1]
    for start in range(0, len(index), _ROWS):
        distances = (n_bits - signs[start : start + _ROWS] @ signs.T) / 2
        for row, column in np.argwhere(distances <= _NEAR):
            if start + row < column:
                yield index[start + row], index[column], int(distances[row, column])
