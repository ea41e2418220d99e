"""Images at a URL: copied once a host into the cache, then read as a folder.

Any URL that fsspec understands will do (s3://, gs://, https://, …), of a folder or of an archive.
The copy lies under a digest of the listing: what changes there is copied anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock

from biotune_optuna.data.cache_dir import default_cache_dir
from biotune_optuna.data.sources.folder import listing, open_folder
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource


_log = logging.getLogger("biotune_optuna.data")

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DONE = ".complete"


def is_remote(name: str) -> bool:
    """Say whether the name of some data is a URL."""
    return _URL.match(name) is not None


def open_remote(url: str, *, skip_bad_images: bool) -> ImageSource:
    """Open the images at a URL, after copying them where this host has no copy.

    Args:
        url: Of a folder with a folder per class, or of an archive of one.
        skip_bad_images: As in `open_images`.

    Raises:
        DataError: Nothing is there, it cannot be reached, or it is no such folder.
    """
    source = open_folder(fetch(url), skip_bad_images=skip_bad_images)
    source.name = url
    return source


def fetch(url: str) -> Path:
    """Return the folder of a URL's images in the cache of this host; copies them if need be."""
    try:
        shown = _shown(url)
    except ValueError as error:
        raise DataError(f"the URL of the data cannot be read: {error}; mend it") from None
    with _told(shown):
        files, filesystem, root = _listing(url)
        if not files:
            raise DataError(f"nothing is at {shown}; give a folder of images or an archive of one")
        marks = [f"{name} {info.get('size')} {_version(info)}" for name, info in files]
        digest = hashlib.sha256("\n".join([url, *sorted(marks)]).encode()).hexdigest()[:24]
        folder = default_cache_dir() / "remote" / digest
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / _DONE).exists():
                _check_room(folder.parent, sum(int(i.get("size") or 0) for _, i in files), shown)
                _log.warning("copying %s into %s", shown, folder)
                _copy(files, filesystem, root, folder)
        return _inner(folder / "data")


def _shown(url: str) -> str:
    """Return the URL as it may be printed and stored.

    Raises:
        DataError: It holds a password, which would be kept in the study.
    """
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise DataError(
            f"the URL of the data {parts.scheme}://***@{parts.hostname} holds a user or password, "
            "which the study would keep; give them where the file system looks for them, such as "
            "its environment variables or files"
        )
    if parts.path.lower().endswith((".csv", ".tsv")):
        raise DataError(
            f"{url}: a CSV file at a URL is not read, since its images lie beside it; give the "
            "folder per class, or an archive of it"
        )
    return url


@contextlib.contextmanager
def _told(shown: str) -> Iterator[None]:
    """Say in one line what a file system, of whichever package, could not do."""
    try:
        yield
    except (DataError, KeyboardInterrupt):
        raise
    except FileNotFoundError:
        raise DataError(f"nothing is at {shown}") from None
    except ImportError as error:
        raise DataError(
            f"{shown} needs another package ({error}); install pip install 'biotune-optuna[remote]'"
        ) from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{shown} is no archive that can be read ({error})") from None
    except Exception as error:  # noqa: BLE001  (of many packages)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{shown} cannot be read: {reason}") from None


def _listing(url: str) -> tuple[list[tuple[str, dict[str, Any]]], Any, str]:
    """Return the files at a URL with what is known of them, their file system and their root."""
    core: Any = importlib.import_module("fsspec.core")
    filesystem, root = core.url_to_fs(url)
    if url.lower().endswith(ARCHIVES):
        return [(root, dict(filesystem.info(root)))], filesystem, root
    found = filesystem.find(root, detail=True)
    return sorted((name, dict(info)) for name, info in found.items()), filesystem, root


def _version(info: dict[str, Any]) -> str:
    """Return what tells one version of a file from another, as far as its file system says."""
    keys = ("ETag", "etag", "md5Hash", "checksum", "LastModified", "updated", "mtime", "created")
    return next((str(info[key]) for key in keys if info.get(key)), "")


def _check_room(folder: Path, size: int, shown: str) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(
            f"{shown} holds {size / 1e9:.1f} GB, and {folder} has room for {free / 1e9:.1f}; free "
            "some space, or set BIOTUNE_CACHE to another folder"
        )


def _copy(
    files: list[tuple[str, dict[str, Any]]], filesystem: Any, root: str, folder: Path
) -> None:
    """Copy, or unpack, into a folder that is complete when it is there."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="part-") as part:
        target = Path(part, "made", "data")
        target.mkdir(parents=True)
        for name, _ in files:
            if name == root:  # the archive, or a single file
                archive = Path(part, PurePosixPath(name).name)
                filesystem.get_file(name, str(archive))
                _unpack(archive, target)
                continue
            path = _inside(target, PurePosixPath(name).relative_to(PurePosixPath(root)))
            path.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(name, str(path))
        (target.parent / _DONE).touch()
        shutil.rmtree(folder, ignore_errors=True)
        target.parent.rename(folder)


def _unpack(archive: Path, target: Path) -> None:
    """Write the plain files of an archive; links, devices and the like are left out."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                if not member.is_dir():
                    with opened.open(member) as file:
                        _write(file, target, member.filename)
        return
    with tarfile.open(archive) as packed:
        for entry in packed:
            content = packed.extractfile(entry) if entry.isreg() else None
            if content is not None:
                _write(content, target, entry.name)


def _write(file: IO[bytes], target: Path, name: str) -> None:
    path = _inside(target, PurePosixPath(name.replace("\\", "/")))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        shutil.copyfileobj(file, out)


def _inside(target: Path, name: PurePosixPath) -> Path:
    """Return where a file goes.

    Raises:
        DataError: It would lie outside.
    """
    if name.is_absolute() or ".." in name.parts or "\0" in str(name) or ":" in name.parts[0]:
        raise DataError(f"the file {str(name)!r} would lie outside the folder of the data")
    return target.joinpath(*name.parts)


def _inner(folder: Path) -> Path:
    """Return the folder of the classes: archives often hold one folder with everything in it."""
    while True:
        folders, files = listing(folder)
        if files or len(folders) != 1:
            return folder
        (folder,) = folders
