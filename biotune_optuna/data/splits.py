"""Train, validation and test parts, and folds of the training part.

Which part an image falls into follows from the seed and the image's content, never from file
order or names: the same images give the same splits on every machine.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from biotune_optuna.data import left_out
from biotune_optuna.data.partition import GroupDealer, StratifiedDealer
from biotune_optuna.data.sources.image_source import SPLIT_NAMES, ImageSource
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    Indices = NDArray[np.int64]


_logger = logging.getLogger("biotune_optuna.data")


@dataclass(frozen=True, slots=True)
class Duplicate:
    """One picture that occurs in more than one part.

    Attributes:
        ids: The images with this content.
        parts: The part of each: ``"train"``, ``"val"`` or ``"test"``; with ``scheme="kfold"``
            ``"fold 0"`` and so on instead of ``"train"``.
        classes: The class of each.
    """

    ids: tuple[str, ...]
    parts: tuple[str, ...]
    classes: tuple[str, ...]

    def __str__(self) -> str:
        """Return the first image in each part, and how many more there are."""
        firsts = [self.parts.index(part) for part in dict.fromkeys(self.parts)]
        shown = " = ".join(f"{self.ids[i]!r} ({self.parts[i]})" for i in firsts)
        rest = len(self.ids) - len(firsts)
        return f"{shown} and {rest} more" if rest else shown


@dataclass(frozen=True, eq=False)
class Splits:
    """Who trains, who validates, who tests.

    Attributes:
        train: Indices of the training part, int64, in an order that depends on content only.
        val: Indices of the validation part.
        test: Indices of the test part.
        folds: Partition of ``train``.
        scheme: ``"holdout"`` or ``"kfold"``.
        fingerprint: Hexadecimal digest of the content of all parts and folds.
        duplicates: Pictures that occur in more than one part, or in more than one fold with
            ``scheme="kfold"``.
        shared_groups: Groups that given train, val and test parts have in common.
    """

    train: Indices
    val: Indices
    test: Indices
    folds: tuple[Indices, ...]
    scheme: str
    fingerprint: str
    duplicates: tuple[Duplicate, ...] = field(default=())
    shared_groups: tuple[str, ...] = field(default=())

    def run(self, fold: int | None) -> tuple[Indices, Indices]:
        """Training and validation indices of one run.

        Args:
            fold: None for the whole training part, judged on ``val``. Else the number of a fold,
                counted round and round. With ``scheme="holdout"`` the run trains on that fold alone
                and is judged on ``val`` (the paper's search); with ``"kfold"`` it trains on all
                other folds and is judged on that one.
        """
        if fold is None:
            return self.train, self.val
        chosen = fold % len(self.folds)
        if self.scheme == "holdout":
            return self.folds[chosen], self.val
        others = [part for number, part in enumerate(self.folds) if number != chosen]
        return np.concatenate(others), self.folds[chosen]

    def describe(self) -> str:
        """One line with the size of each part."""
        folds = f" in {len(self.folds)} folds" if len(self.folds) > 1 else ""
        return f"train {len(self.train)}{folds}, val {len(self.val)}, test {len(self.test)}"


def make_splits(
    source: ImageSource,
    *,
    seed: int,
    n_folds: int = 2,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    train_size: int | None = None,
    val_size: int | None = None,
    scheme: str = "holdout",
    strict: bool = False,
) -> Splits:
    """Divide images into train, val and test, and the training part into folds.

    Parts that the data come with are kept as they are; what is missing is held out, stratified by
    class, test from all images and then val from the training part. Every class gets its share of
    every part to within one image, but for what keeps equal pictures together: for that a part may
    take fewer, or at most twice as many. Where the source has groups, no group is ever cut and
    shares are met as well as the groups allow.

    Args:
        source: The images.
        seed: Seed of the division.
        n_folds: Number of folds of the training part; the paper's search takes 2.
        val_fraction: Share of the training part held out for validation, where there is no given
            one. 0 only with ``scheme="kfold"``.
        test_fraction: Share of the images outside given parts held out for the test, where there
            is no given one. 0 for no test part.
        train_size: Keep at most this many training images, stratified; None for all.
        val_size: Hold out this many validation images instead of ``val_fraction``; of a given
            validation part, keep at most this many.
        scheme: How a run uses its fold, see :meth:`Splits.run`.
        strict: Refuse pictures and groups that occur in more than one part, and data of which files
            were left out, instead of reporting them.

    Raises:
        DataError: A setting is out of range, a class is too small, or ``strict`` finds something.
    """
    plan = _Plan(
        source,
        seed=seed,
        n_folds=n_folds,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        train_size=train_size,
        val_size=val_size,
        scheme=scheme,
    )
    try:
        train, val, test, folds = plan.divide()
    except DataError:  # what keeps equal pictures together may leave too few for a part to come
        train, val, test, folds = plan.divide(firm=True)
    judged = scheme == "kfold"  # on each fold by what was trained on the others
    learnt = {f"fold {i}": fold for i, fold in enumerate(folds)} if judged else {"train": train}
    duplicates = _duplicates(source, {**learnt, "val": val, "test": test})
    shared = _shared_groups(source, (train, val, test))
    _report(source, duplicates, shared, scheme, strict=strict)
    _report_missing(source, {"val": val, "test": test}, strict=strict)
    _report_conflicts(source, strict=strict)
    return Splits(
        train=train,
        val=val,
        test=test,
        folds=folds,
        scheme=scheme,
        fingerprint=_fingerprint(source, scheme, (val, test, *folds)),
        duplicates=duplicates,
        shared_groups=shared,
    )


@dataclass(frozen=True, eq=False)
class _Plan:
    """One call of :func:`make_splits`, its settings checked."""

    source: ImageSource
    seed: int
    n_folds: int
    val_fraction: float
    test_fraction: float
    train_size: int | None
    val_size: int | None
    scheme: str

    def __post_init__(self) -> None:
        if self.scheme not in {"holdout", "kfold"}:
            raise DataError(f"scheme {self.scheme!r} is unknown; take 'holdout' or 'kfold'")
        least = 2 if self.scheme == "kfold" else 1
        if self.n_folds < least:
            raise DataError(
                f"n_folds {self.n_folds} is too few; {self.scheme} needs at least {least}"
            )
        for name in ("val_fraction", "test_fraction"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise DataError(f"{name} {getattr(self, name)!r} is not in [0, 1)")
        for name in ("train_size", "val_size"):
            size = getattr(self, name)
            if size is not None and size < len(self.source.classes):
                raise DataError(f"{name} {size} is less than one image for each class")
        if not len(self._given["val"]) and not self._holds_out_val and self.scheme == "holdout":
            raise DataError("val_fraction 0 leaves nothing to validate on; only kfold can do so")

    @functools.cached_property
    def _given(self) -> dict[str, Indices]:
        """The parts that the data come with."""
        splits, everything = self.source.splits, np.arange(len(self.source))
        return {
            part: everything[:0] if splits is None else everything[splits == part]
            for part in SPLIT_NAMES
        }

    @functools.cached_property
    def _dealer(self) -> StratifiedDealer | GroupDealer:
        dealer = StratifiedDealer if self.source.groups is None else GroupDealer
        return dealer(self.source, self.seed)

    def divide(
        self, *, firm: bool = False
    ) -> tuple[Indices, Indices, Indices, tuple[Indices, ...]]:
        """Train, val, test and folds; for ``firm`` see `StratifiedDealer.deal`."""
        val, test = self._given["val"], self._given["test"]
        train = np.setdiff1d(np.arange(len(self.source)), np.concatenate([val, test]))
        train = self._dealer.order(train)
        self._check_classes(train)
        if not len(test) and self.test_fraction:
            wanted = self.test_fraction * len(train)
            left = self.n_folds + (not len(val) and self._holds_out_val)
            test, train = self._hold_out(train, wanted, "test", left=left, firm=firm)
        if len(val):
            if self.val_size is not None:
                val = self._keep(val, self.val_size, "val")
        elif self._holds_out_val:
            wanted = self.val_size or self.val_fraction * len(train)
            val, train = self._hold_out(train, wanted, "val", left=self.n_folds, firm=firm)
        if self.train_size is not None:
            train = self._keep(train, self.train_size, "train", least=self.n_folds)
        shares = [1.0 / self.n_folds] * self.n_folds
        parts = self._dealer.deal(train, shares, least=[1] * self.n_folds, firm=firm)
        self._check_parts(parts, "each of the folds")
        order = self._dealer.order
        return order(train), order(val), order(test), tuple(order(part) for part in parts)

    @property
    def _holds_out_val(self) -> bool:
        return self.val_size is not None or self.val_fraction > 0.0

    def _hold_out(
        self, pool: Indices, wanted: float, part: str, *, left: int, firm: bool
    ) -> tuple[Indices, Indices]:
        """Return a part and the rest, which will be divided into ``left`` parts."""
        share = max(1, round(wanted)) / len(pool)
        if share >= 1.0:
            raise DataError(f"{part} cannot take {round(wanted)} of {len(pool)} images")
        held, rest = self._dealer.deal(pool, [share, 1.0 - share], least=[1, left], firm=firm)
        self._check_parts([held, rest], f"train and {part}")
        return held, rest

    def _keep(self, pool: Indices, size: int, part: str, *, least: int = 1) -> Indices:
        if size >= len(pool):
            return pool
        # The rest is not used, so equal pictures in it do no harm, but ``size`` is a limit.
        shares = [size / len(pool), 1.0 - size / len(pool)]
        kept = self._dealer.deal(pool, shares, least=[least, 0], firm=True)[0]
        self._check_parts([kept], part)
        return kept

    def _check_classes(self, pool: Indices) -> None:
        """Refuse a class with fewer images (or groups) than parts that need one of it."""
        held = [
            part
            for part, wanted in (
                ("val", self.val_fraction or self.val_size),
                ("test", self.test_fraction),
            )
            if wanted and not len(self._given[part])
        ]
        need = self.n_folds + len(held)
        what, counts = self._dealer.units(pool)
        smallest = int(np.argmin(counts))
        if counts[smallest] < need:
            parts = ", ".join([f"{self.n_folds} for the folds", *(f"1 for {p}" for p in held)])
            raise DataError(
                f"{self.source.name}: class {self.source.classes[smallest]!r} has "
                f"{counts[smallest]} {what} to divide, but needs at least {need} ({parts}); add "
                "some, take fewer folds or leave the class out"
            )

    def _check_parts(self, parts: list[Indices], where: str) -> None:
        """Refuse parts that lack a class; only groups or small sizes can lead there."""
        for part in parts:
            present = np.bincount(self.source.labels[part], minlength=len(self.source.classes))
            if not present.all():
                missing = self.source.classes[int(np.argmin(present))]
                what = self._dealer.units(part)[0]
                raise DataError(
                    f"{self.source.name}: class {missing!r} has too few {what} left to be in "
                    f"{where}; add some, take fewer folds or hold out less"
                )


def _duplicates(source: ImageSource, parts: dict[str, Indices]) -> tuple[Duplicate, ...]:
    places: dict[str, list[tuple[str, int]]] = {}
    for part, indices in parts.items():
        for index in indices.tolist():
            places.setdefault(source.content_hashes[index], []).append((part, index))
    return tuple(
        Duplicate(
            ids=tuple(source.ids[index] for _, index in found),
            parts=tuple(part for part, _ in found),
            classes=tuple(source.classes[source.labels[index]] for _, index in found),
        )
        for _, found in sorted(places.items())
        if len({part for part, _ in found}) > 1
    )


def _shared_groups(source: ImageSource, parts: tuple[Indices, ...]) -> tuple[str, ...]:
    if source.groups is None:
        return ()
    seen = [set(source.groups[part].tolist()) for part in parts]
    return tuple(sorted((seen[0] & seen[1]) | (seen[0] & seen[2]) | (seen[1] & seen[2])))


def _report(
    source: ImageSource,
    duplicates: tuple[Duplicate, ...],
    shared: tuple[str, ...],
    scheme: str,
    *,
    strict: bool,
) -> None:
    found = []
    if strict and (missing := left_out.sentence(left_out.summary(source.skipped))):
        raise DataError(f"{source.name}: {missing}; mend or remove what is left out")
    if duplicates:
        learnt = "the folds" if scheme == "kfold" else "train"
        found.append(
            f"{_count(len(duplicates), 'picture')} in more than one of {learnt}, val and test, "
            f"such as {duplicates[0]}"
        )
    if shared:
        found.append(
            f"{_count(len(shared), 'group')} in more than one of train, val and test, "
            f"such as {shared[0]!r}"
        )
    if found and strict:
        raise DataError(f"{source.name}: {'; '.join(found)}; remove them, or do not be strict")
    for line in found:
        _logger.warning("%s: %s; scores may be too good", source.name, line)


def _report_missing(source: ImageSource, parts: dict[str, Indices], *, strict: bool) -> None:
    """Say which classes a part lacks: no score of that part says anything of them."""
    for part, indices in parts.items():
        counts = np.bincount(source.labels[indices], minlength=len(source.classes))
        missing = [source.classes[label] for label in np.flatnonzero(counts == 0).tolist()]
        if not len(indices) or not missing:
            continue
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        names = ", ".join(map(repr, missing[:3])) + more
        line = f"{part} has no image of class {names}, so no score on {part} is about it"
        if strict:
            raise DataError(f"{source.name}: {line}; add some, or do not be strict")
        _logger.warning("%s: %s", source.name, line)


def _report_conflicts(source: ImageSource, *, strict: bool) -> None:
    """Say which pictures are in more than one class: one of the labels is wrong."""
    first: dict[str, int] = {}
    found = []
    for index, content in enumerate(source.content_hashes):
        other = first.setdefault(content, index)
        if source.labels[other] != source.labels[index]:
            found.append((other, index))
    if not found:
        return
    one, two = (f"{source.ids[i]!r} ({source.classes[source.labels[i]]})" for i in found[0])
    line = f"{_count(len(found), 'picture')} in two classes, such as {one} = {two}"
    if strict:
        raise DataError(f"{source.name}: {line}; remove the wrong ones, or do not be strict")
    _logger.warning("%s: %s", source.name, line)


def _count(number: int, what: str) -> str:
    return f"1 {what} is" if number == 1 else f"{number} {what}s are"


def _fingerprint(source: ImageSource, scheme: str, parts: tuple[Indices, ...]) -> str:
    digest = hashlib.sha256(scheme.encode())
    for part in parts:
        digest.update(b"\n\n")
        lines = sorted(
            f"{source.content_hashes[index]} {source.classes[source.labels[index]]}"
            for index in part.tolist()
        )
        digest.update("\n".join(lines).encode())
    return digest.hexdigest()[:32]
