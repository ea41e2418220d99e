"""Class-per-folder trees, with or without train, val and test folders."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from biotune_optuna.data.decode import IMAGE_SUFFIXES
from biotune_optuna.data.sources.arrays import open_files
from biotune_optuna.data.sources.parts import Child, check_class, check_part, read_parts
from biotune_optuna.data.sources.scan import SKIP_HINT, check_inside
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource


_logger = logging.getLogger("biotune_optuna.data")

# What systems, photo managers and network storages leave in folders, besides hidden files.
_LITTER = frozenset(
    {"thumbs.db", "ehthumbs.db", "photothumb.db", "zbthumbnail.info", "desktop.ini", "icon\r"}
    | {"picasa.ini", "originals.picasa", "@eadir", "@__thumb", "thumbnails", "_vti_cnf"}
    | {"#recycle", "@recycle", "@recently-snapshot", "#snapshot", "$recycle.bin", "recycler"}
    | {"system volume information", "lost+found", "__macosx", "network trash folder"}
    | {"temporary items"}
)


class _Entry(NamedTuple):
    id: str
    path: Path
    label: str
    split: str


def open_folder(root: str | Path, *, skip_bad_images: bool = False) -> ImageSource:
    """Open a folder with one folder of images per class.

    ``root/cats/1.jpg`` or, divided already, ``root/train/cats/1.jpg``. Deeper folders belong to the
    class above them. Where ``val`` or ``test`` are missing, they are held out later.

    Args:
        root: The folder.
        skip_bad_images: Leave out files that are no readable image instead of refusing them.

    Raises:
        DataError: No such folder, no images in it, one class only, images beside class folders, a
            link that leads out, or a bad image.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"no such folder: {str(root)!r}; give a folder with one folder per class")
    inside = root.resolve()
    given = _split_folders(root)
    parts = [(split, folder) for split, folder in given if _is_divided(root, split, folder)]
    entries: list[_Entry] = []
    foreign: list[str] = []
    for split, folder in parts or [("", root)]:
        class_folders = listing(folder)[0]
        if split:
            check_part(folder.name, [one.name for one in class_folders], repr(str(root)))
        for class_folder in class_folders:
            _check_folder(class_folder, inside)
            label = _class_name(class_folder)
            for path in _files(class_folder, inside):
                shown = _printable(path.relative_to(root).as_posix())
                if _is_image(path):
                    entries.append(_Entry(shown, path, label, split))
                else:
                    foreign.append(shown)
    _check_entries(root, entries, foreign, skip_bad_images=skip_bad_images)
    classes = sorted({entry.label for entry in entries})
    index_of = {label: index for index, label in enumerate(classes)}
    return open_files(
        [entry.path for entry in entries],
        [entry.id for entry in entries],
        name=inside.name or "images",
        classes=classes,
        labels=np.array([index_of[entry.label] for entry in entries], dtype=np.int64),
        splits=[entry.split for entry in entries] if parts else None,
        skip_bad_images=skip_bad_images,
        skipped=[
            *(f"{name!r} is not an image" for name in foreign),
            *_beside(root, given, parts),
        ],
        notes=[
            f"{_printable(folder.name)}/ is read as the {split} part"
            for split, folder in parts
            if folder.name != split
        ],
    )


def _beside(
    root: Path, given: list[tuple[str, Path]], used: list[tuple[str, Path]]
) -> Iterator[str]:
    """Say of each image outside of the class folders that it is not used."""
    for folder in [root, *(folder for part, folder in given if (part, folder) not in used)]:
        for path in filter(_is_image, listing(folder)[1]):
            yield f"{_printable(path.relative_to(root).as_posix())!r} lies in no class folder"


def _check_entries(
    root: Path, entries: list[_Entry], foreign: list[str], *, skip_bad_images: bool
) -> None:
    if not entries:
        raise DataError(
            f"no images in {str(root)!r}: expected one folder per class, as in "
            f"{str(root / 'cats' / '1.jpg')!r}"
        )
    if foreign and not skip_bad_images:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise DataError(
            f"{foreign[0]!r} in {str(root)!r} is not an image{more}; remove it, or {SKIP_HINT}"
        )
    trained = {entry.label for entry in entries if entry.split in {"train", ""}}
    for entry in entries:
        if entry.label not in trained:
            raise DataError(
                f"class {entry.label!r} of {entry.id!r} has no images under train in {str(root)!r}"
            )


def _split_folders(root: Path) -> list[tuple[str, Path]]:
    """Return the train, val and test folders of ``root``, or none if its folders are classes."""
    folders = {folder.name: folder for folder in listing(root)[0]}
    shown = {_printable(name): name for name in folders}
    children = {name: _child(folders[real]) for name, real in shown.items()}
    parts = read_parts(children, repr(str(root)))
    return [(split, folders[shown[name]]) for name, split in parts.items()]


def _child(folder: Path) -> Child:
    folders, files = listing(folder)
    return Child(tuple(_printable(one.name) for one in folders), any(map(_is_image, files)))


def _is_divided(root: Path, split: str, folder: Path) -> bool:
    """Whether a part has class folders, or none but images, so that it is left aside."""
    folders, files = listing(folder)
    stray = [_printable(f.relative_to(root).as_posix()) for f in files if _is_image(f)]
    if not stray:
        return True
    if folders:
        raise DataError(
            f"image {stray[0]!r} in {str(root)!r} lies beside the class folders of "
            f"{_printable(folder.name)}/; move it into one of them, or away"
        )
    if split == "train":
        raise DataError(
            f"image {stray[0]!r} in {str(root)!r} lies in no class folder; put the images into one "
            "folder per class, or list them in a CSV file"
        )
    _logger.warning("%s holds images without class folders and is not used", folder)
    return False


def _class_name(folder: Path) -> str:
    """Return a folder's name as text; macOS takes accents apart, so they are put together again."""
    try:
        folder.name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"class folder {_printable(folder.as_posix())!r} is not named in UTF-8; rename it"
        ) from None
    return unicodedata.normalize("NFC", folder.name)


def _printable(name: str) -> str:
    """Return a file name in which bytes that are no UTF-8 are written out."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _files(folder: Path, root: Path) -> list[Path]:
    """All files below a class folder, each checked to lie inside ``root``."""
    folders, files = listing(folder)
    check_class(folder.name, [one.name for one in folders], repr(str(root)))
    for path in files:
        check_inside(path, root, path.as_posix())
    for path in folders:
        _check_folder(path, root)
        files.extend(_files(path, root))
    return files


def _check_folder(path: Path, root: Path) -> None:
    check_inside(path, root, path.as_posix())
    if path.is_symlink():
        # Inside the data, so its images would be counted twice, or the walk would never end.
        raise DataError(f"{path.as_posix()!r} is a link to another folder of the data; remove it")


def listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return folders and files of a folder, sorted by name, without what systems leave behind.

    Args:
        folder: The folder.

    Raises:
        DataError: It cannot be read.
    """
    folders: list[Path] = []
    files: list[Path] = []
    try:
        with os.scandir(folder) as found:
            for entry in sorted(found, key=lambda one: one.name):
                if entry.name.startswith(".") or entry.name.lower() in _LITTER:
                    continue
                (folders if entry.is_dir() else files).append(Path(entry.path))
    except OSError as error:
        raise DataError(f"folder {str(folder)!r} cannot be read: {error.strerror}") from None
    return folders, files


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES
