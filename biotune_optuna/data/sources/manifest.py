"""CSV manifests: one row per image, with its label and, if wanted, its split and group."""

from __future__ import annotations

import csv
import posixpath
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from biotune_optuna.data.sources.arrays import class_names, open_files
from biotune_optuna.data.sources.parts import SPLIT_ALIASES
from biotune_optuna.data.sources.scan import check_inside
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader

    from biotune_optuna.data.sources.image_source import ImageSource


_COLUMNS = {
    "path": ("path", "file", "filename", "image"),
    "label": ("label", "class", "target"),
    "split": ("split",),
    "group": ("group",),
}


class _Row(NamedTuple):
    line: int
    path: str
    label: str
    split: str
    group: str


def open_manifest(file: str | Path, *, skip_bad_images: bool = False) -> ImageSource:
    """Open the images that a CSV file lists.

    The first line names the columns: ``path`` and ``label``, and optionally ``split`` (train, val,
    test or empty) and ``group`` (empty: stands alone). Paths are relative to the folder of the file
    and must stay inside it. Columns are divided by commas, semicolons or tabs.

    Args:
        file: The CSV file, UTF-8.
        skip_bad_images: Leave out rows whose image cannot be read instead of refusing the file.

    Raises:
        DataError: The file cannot be read, a column or value is missing, a path leads out or is
            listed twice, or a bad image.
    """
    file = Path(file)
    rows, unused = _rows(file)
    root = file.resolve().parent
    paths = []
    for row in rows:
        try:
            path = root / row.path
            if "\\" in row.path and not path.exists():  # as Windows writes them
                path = root / row.path.replace("\\", "/")
            check_inside(path, root, row.path)
        except ValueError:  # a null byte
            raise DataError(f"{file.name} line {row.line}: {row.path!r} is no file name") from None
        except DataError as error:
            raise DataError(f"{file.name} line {row.line}: {error}") from None
        paths.append(path)
    labels, classes = class_names(_as_numbers([row.label for row in rows]), len(rows))
    grouped = any(row.group for row in rows)
    return open_files(
        paths,
        [row.path for row in rows],
        name=file.stem,
        classes=classes,
        labels=labels,
        splits=[row.split for row in rows],
        groups=[row.group or f"alone: {row.path}" for row in rows] if grouped else None,
        skip_bad_images=skip_bad_images,
        notes=[f"columns of {file.name} that are not used: {', '.join(unused)}"] if unused else (),
    )


def _rows(file: Path) -> tuple[list[_Row], list[str]]:
    """Return the rows, and the names of the columns that are not used."""
    if file.exists() and not file.is_file():  # reading a pipe would wait for ever
        raise DataError(f"{str(file)!r} is not a file")
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(
                text,
                delimiter=_delimiter(file, text),
                skipinitialspace=True,
                strict=True,  # or a stray quote would take in the rows after it
            )
            header = [name.strip().lower() for name in next(reader, [])]
            at = _columns(file, header)
            lines = list(_numbered(reader))
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{str(file)!r} is no UTF-8 CSV file: {error}") from None
    if not lines:
        raise DataError(f"{str(file)!r} lists no images")
    rows: list[_Row] = []
    seen: dict[str, int] = {}
    for number, cells in lines:
        where = f"{file.name} line {number}"
        row = _row(number, cells, at, where)
        place = posixpath.normpath(row.path.replace("\\", "/"))  # "./a.png" is "a.png"
        if place in seen:
            raise DataError(f"{where}: {row.path!r} is listed in line {seen[place]} already")
        seen[place] = number
        if any(cell.strip() for cell in cells[len(header) :]):
            raise DataError(
                f"{where} has more cells than the first line has columns; put a text that holds "
                "a comma or a tab between double quotes"
            )
        rows.append(row)
    unused = {i: name for i, name in enumerate(header) if name and i not in at.values()}
    for index, name in unused.items():
        held = {cells[index].strip().lower() for _, cells in lines if index < len(cells)}
        if "split" not in at and held - {""} and held - {""} <= SPLIT_ALIASES.keys():
            raise DataError(
                f"{str(file)!r}: column {name!r} holds {_first(held - {''})}, as of parts of the "
                "data; call it split, or remove it"
            )
    return rows, list(unused.values())


def _first(names: set[str]) -> str:
    return " and ".join(map(repr, sorted(names)[:2]))


def _delimiter(file: Path, text: TextIO) -> str:
    """Return what the first line is divided by: a comma, a semicolon (Excel's), or a tab."""
    line = text.readline()
    text.seek(0)
    for delimiter in "\t" if file.suffix.lower() == ".tsv" else ",;\t":
        names = {name.strip().strip('"').lower() for name in line.split(delimiter)}
        if all(names & set(_COLUMNS[needed]) for needed in ("path", "label")):
            return delimiter
    return "\t" if file.suffix.lower() == ".tsv" else ","


def _numbered(reader: Reader) -> Iterator[tuple[int, list[str]]]:
    """Rows that hold something, each with the line of the file on which it begins."""
    begins = reader.line_num + 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield begins, cells
        begins = reader.line_num + 1


def _columns(file: Path, header: list[str]) -> dict[str, int]:
    for name in filter(None, header):
        if header.count(name) > 1:
            raise DataError(f"{str(file)!r} has two columns {name!r}; rename or remove one")
    at = {
        column: header.index(alias)
        for column, aliases in _COLUMNS.items()
        for alias in reversed(aliases)
        if alias in header
    }
    for needed in ("path", "label"):
        if needed not in at:
            raise DataError(
                f"{str(file)!r} has no column {needed!r}; its first line must name the columns "
                f"path, label and optionally split, group (found: {', '.join(header[:6])})"
            )
    return at


def _row(line: int, found: list[str], at: dict[str, int], where: str) -> _Row:
    cells = {
        column: found[index].strip() if index < len(found) else "" for column, index in at.items()
    }
    for needed in ("path", "label"):
        if not cells[needed]:
            raise DataError(f"{where}: {needed} is empty")
    given = cells.get("split", "").lower()
    if given and given not in SPLIT_ALIASES:
        raise DataError(f"{where}: split {given!r} is not train, val, test or empty")
    split = SPLIT_ALIASES[given] if given else ""
    label, group = (unicodedata.normalize("NFC", cells.get(one, "")) for one in ("label", "group"))
    return _Row(line, cells["path"], label, split, group)


def _as_numbers(labels: list[str]) -> list[str] | list[int]:
    """Whole numbers as such, so that class 10 comes after class 9; longer ones stay text."""
    try:
        numbers = [int(label) for label in labels]
    except ValueError:
        return labels
    fit = all(-(2**63) <= number < 2**63 for number in numbers)
    return numbers if fit and [str(number) for number in numbers] == labels else labels
