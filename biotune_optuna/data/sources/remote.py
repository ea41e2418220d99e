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
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

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
"""Marks a copy as whole; holds a line for each member of an archive that was left out."""

# What file systems call that which changes with a file's content.
_VERSIONS = frozenset(
    {"etag", "md5hash", "contentmd5", "digest", "checksum", "crc", "chksum", "blobid", "sha"}
    | {"lastmodified", "updated", "mtime", "modified", "created"}
)


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
    folder, left_out = fetch(url)
    source = open_folder(folder, skip_bad_images=skip_bad_images)
    source.name = url
    source.skipped = (*left_out, *source.skipped)
    return source


def fetch(url: str) -> tuple[Path, list[str]]:
    """Copy the images at a URL into the cache of this host, if need be.

    Args:
        url: See `open_remote`.

    Returns:
        Their folder, and a line for each member of an archive that was left out.

    Raises:
        DataError: See `open_remote`.
    """
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
        left_out = (folder / _DONE).read_text(encoding="utf-8").splitlines()
        return _inner(folder / "data"), left_out


def _shown(url: str) -> str:
    """Return the URL as it may be printed and stored.

    Raises:
        DataError: It holds a password, which would be kept in the study.
    """
    for parts in map(urlsplit, url.split("::")):  # of chains such as zip://*::https://….zip
        if parts.username is None and parts.password is None:
            continue
        raise DataError(
            f"the URL of the data {parts.scheme}://***@{parts.hostname} holds a user or password, "
            "which the study would keep; give them where the file system looks for them, such as "
            "its environment variables or files"
        )
    if urlsplit(url).path.lower().endswith((".csv", ".tsv")):
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
    if urlsplit(url).path.lower().endswith(ARCHIVES):
        info = dict(filesystem.info(root))
        if info.get("type") != "directory":  # as in zip://photos::https://….zip
            return [(root, info)], filesystem, root
    found = _linked(filesystem, root) if _is_web(root) else filesystem.find(root, detail=True)
    return sorted((name, dict(info)) for name, info in found.items()), filesystem, root


def _is_web(root: str) -> bool:
    return root.startswith(("http://", "https://"))


def _linked(filesystem: Any, root: str) -> dict[str, Any]:
    """Return the files below a page that lists a folder; other links of it are not followed."""
    top = root.rstrip("/") + "/"
    found: dict[str, Any] = {}
    seen, pending = {top}, [top]
    while pending:
        for info in filesystem.ls(pending.pop(), detail=True):
            name = str(info["name"])
            if not name.startswith(top) or "?" in name:  # the folder above; links that sort
                continue
            if not name.endswith("/"):
                found[name] = info
            elif name not in seen:
                seen.add(name)
                pending.append(name)
    return found


def _version(info: dict[str, Any]) -> str:
    """Return what tells one version of a file from another, as far as its file system says."""
    plain = {re.sub(r"[^a-z]", "", key.lower()): value for key, value in info.items()}
    return " ".join(str(plain[key]) for key in sorted(_VERSIONS & plain.keys()) if plain[key])


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
        left_out: list[str] = []
        for name, _ in files:
            if name == root:  # the archive, or a single file
                archive = Path(part, PurePosixPath(name).name)
                filesystem.get_file(name, str(archive))
                left_out += _unpack(archive, target)
                continue
            below = PurePosixPath(name).relative_to(PurePosixPath(root))
            path = _inside(target, PurePosixPath(unquote(str(below))) if _is_web(root) else below)
            path.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(name, str(path))
        (target.parent / _DONE).write_text("\n".join(left_out), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        target.parent.rename(folder)


def _unpack(archive: Path, target: Path) -> list[str]:
    """Write the plain files of an archive; return a line for each link, device and the like."""
    left_out: list[str] = []
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _check_room(target, sum(member.file_size for member in members), archive.name)
            for member in members:
                name = _zip_name(member)
                if stat.S_IFMT(member.external_attr >> 16) not in {0, stat.S_IFREG}:
                    left_out.append(_no_file(name))
                    continue
                with opened.open(member) as file:
                    _write(file, target, name)
        return left_out
    with tarfile.open(archive) as packed:
        for entry in packed:
            # A hard link is a file that another name in the archive has too.
            content = packed.extractfile(entry) if entry.isreg() or entry.islnk() else None
            if content is not None:
                _write(content, target, entry.name)
            elif not entry.isdir():
                left_out.append(_no_file(entry.name))
    return left_out


def _no_file(name: str) -> str:
    """Say in one line that a member of an archive is left out."""
    return f"{name!a} in the archive is a link or the like, not a file"


def _zip_name(member: zipfile.ZipInfo) -> str:
    """Return a member's name, which some programs write in UTF-8 without saying so."""
    if member.flag_bits & 0x800:
        return member.filename
    try:
        return member.filename.encode("cp437").decode()
    except UnicodeError:
        return member.filename


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
