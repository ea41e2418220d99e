"""What commands check first: which study is meant, and that files may be written where they go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from biotune_optuna.errors import StudyError

if TYPE_CHECKING:
    import optuna

    from biotune_optuna.study.stop import StopRequest
    from biotune_optuna.study.study import TuningStudy


def quieten_optuna() -> None:
    """Leave it to our own display to tell of trials; Optuna's warnings stay."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


@contextlib.contextmanager
def stoppable(farewell: str) -> Iterator[StopRequest]:
    """Stop what runs inside on a signal: say farewell, and end with exit code 130."""
    from biotune_optuna.study.stop import Stopped, StopRequest

    try:
        with StopRequest.on_signals() as stop:
            yield stop
    except (KeyboardInterrupt, Stopped):
        if farewell:
            click.echo(farewell, err=True)
        raise SystemExit(130) from None


def folder_of(
    name: str,
    below: str | Path = "biotune-out",
    *,
    of: str = "study",
    advice: str = "give another --study",
) -> Path:
    """Return the folder of a study's files; names come from a database and must not lead out of it.

    Args:
        name: The study's name.
        below: Where all studies have theirs.
        of: What has the name.
        advice: What to do about a name that leads elsewhere.

    Raises:
        StudyError: If the name would lead elsewhere.
    """
    parts = name.replace("\\", "/").split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name:
        raise StudyError(f"{of} name {name!r} is no folder name; {advice}")
    return Path(below, *parts)


def check_apart(data: str, folder: Path, *, advice: str) -> None:
    """Refuse to write below a folder of images, where all that lies there is taken for images.

    Args:
        data: The images: a folder, or anything else, which has nothing to fear.
        folder: Where files are going to be written.
        advice: How to have them elsewhere.

    Raises:
        StudyError: If it lies there.
    """
    from biotune_optuna.data.sources.scan import path_of

    root = path_of(data)
    if root.is_dir() and folder.resolve().is_relative_to(root.resolve()):
        raise StudyError(
            f"{folder} lies in the data folder {data}, where its files would be taken for images; "
            f"type the command in another folder, or {advice}"
        )


def check_no_comparison(folder: Path, *, advice: str) -> None:
    """Refuse to write a study's report over that of a comparison.

    Raises:
        StudyError: If the folder holds a comparison.
    """
    if (folder / "results.csv").exists():
        raise StudyError(f"{folder} holds the results of a comparison; {advice}")


def study_name(storage: optuna.storages.BaseStorage, name: str | None) -> str:
    """Return the study's name; without one, the storage's only study.

    Raises:
        StudyError: If there is no such study, or a choice is left open.
    """
    from biotune_optuna.study.board import study_names

    names = study_names(storage)
    if name is None and len(names) == 1:
        return names[0]
    if not names:
        raise StudyError(
            "the storage holds no studies; start one with biotune tune or biotune demo"
        )
    known = ", ".join(map(repr, names))
    if name is None:
        raise StudyError(f"the storage holds {len(names)} studies; give --study, one of {known}")
    if name not in names:
        raise StudyError(f"there is no study {name!r} in the storage; it holds {known}")
    return name


def load_tuning(url: str | None, name: str | None, **where: str | None) -> TuningStudy:
    """Open an existing study to go on with it.

    Args:
        url: The storage's URL.
        name: The study's name; None for the storage's only one.
        where: Where this machine has data and weights, and computes; see `load_study`.
    """
    from biotune_optuna.storage.open import open_storage
    from biotune_optuna.study.study import load_study

    quieten_optuna()
    storage = open_storage(url, create=False)
    return load_study(study_name(storage, name), storage=storage, **where)  # type: ignore[arg-type]


def open_study(url: str | None, name: str | None) -> optuna.Study:
    """Open an existing study for looking at it; nothing is written, nor need it be allowed."""
    import optuna

    from biotune_optuna.storage.open import open_storage

    storage = open_storage(url, create=False, read_only=True)
    return optuna.load_study(study_name=study_name(storage, name), storage=storage)
