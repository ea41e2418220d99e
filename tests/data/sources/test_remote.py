"""Images at a URL: copied once, from any file system, and nothing outside the folder."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import os
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from biotune_optuna.data.sources.open import open_images
from biotune_optuna.errors import DataError
from tests.kit.cli import tree

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return tree(tmp_path / "flowers", {"rose": 3, "tulip": 2})


@pytest.fixture
def memory(home: Path, local: Path) -> Iterator[str]:
    """The same images in a file system of fsspec's in memory."""
    filesystem = fsspec.filesystem("memory")
    for path in local.rglob("*.png"):
        filesystem.pipe(f"/bucket/flowers/{path.relative_to(local).as_posix()}", path.read_bytes())
    yield "memory://bucket/flowers"
    filesystem.rm("/bucket", recursive=True)


def copies(home: Path) -> list[Path]:
    return [path for path in (home / "cache" / "remote").iterdir() if path.is_dir()]


def test_a_folder_is_what_it_is_here(memory: str, local: Path, home: Path) -> None:
    there, here = open_images(memory), open_images(str(local))
    assert there.name == memory
    assert there.classes == here.classes == ("rose", "tulip")
    assert there.fingerprint == here.fingerprint
    assert len(copies(home)) == 1


def test_it_is_copied_once(memory: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_images(memory)
    filesystem = type(fsspec.filesystem("memory"))

    def again(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("copied again")

    monkeypatch.setattr(filesystem, "get_file", again)
    assert len(open_images(memory)) == 5


def test_what_changes_there_is_copied_anew(memory: str, local: Path, home: Path) -> None:
    before = open_images(memory)
    image = (local / "rose" / "0.png").read_bytes()
    fsspec.filesystem("memory").pipe("/bucket/flowers/rose/more.png", image + b"\n")
    assert len(open_images(memory)) == len(before) + 1
    assert len(copies(home)) == 2


def pack(kind: str, local: Path, *, top: str = "flowers/") -> bytes:
    packed = io.BytesIO()
    files = sorted(local.rglob("*.png"))
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as archive:
            for path in files:
                archive.write(path, top + path.relative_to(local).as_posix())
    else:
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for path in files:
                archive.add(path, top + path.relative_to(local).as_posix())
    return packed.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("top", ["", "flowers/"])
def test_an_archive_is_unpacked(home: Path, local: Path, kind: str, top: str) -> None:
    fsspec.filesystem("memory").pipe(f"/packed/f.{kind}", pack(kind, local, top=top))
    found = open_images(f"memory://packed/f.{kind}")
    assert found.fingerprint == open_images(str(local)).fingerprint


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_archive_over_http(home: Path, local: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "f.zip").write_bytes(pack("zip", local))
    with served(tmp_path / "served") as address:
        assert len(open_images(f"{address}/f.zip?download=1")) == 5
        # The server says no more of a version than when the file was written.
        changed = tmp_path / "served" / "f.zip"
        changed.write_bytes(pack("zip", tree(tmp_path / "others", {"oak": 3, "fir": 2})))
        os.utime(changed, (0, 10**9))
        assert open_images(f"{address}/f.zip?download=1").classes == ("fir", "oak")
        with pytest.raises(DataError, match=f"nothing is at {address}/none.zip"):
            open_images(f"{address}/none.zip")


def test_a_folder_over_http_is_what_it_is_here(home: Path, tmp_path: Path) -> None:
    """Names in links are quoted, and a server's page of a folder has links that sort it."""
    pytest.importorskip("aiohttp")
    there = tree(tmp_path / "there", {"wild rose": 3, "tulip": 2})
    here = open_images(str(there))
    for folder in (there, *filter(Path.is_dir, sorted(there.iterdir()))):
        links = ["?C=N;O=D", "/", "../", "/private/"]
        links += [quote(one.name) + "/" * one.is_dir() for one in sorted(folder.iterdir())]
        (folder / "index.html").write_text("".join(f'<a href="{one}">x</a>' for one in links))
    tree(tmp_path / "private", {"secret": 1})
    with served(there.parent) as address:
        found = open_images(f"{address}/there")
    assert found.classes == ("tulip", "wild rose")
    assert found.fingerprint == here.fingerprint


def test_no_link_of_a_page_leads_outside(home: Path, local: Path) -> None:
    pytest.importorskip("aiohttp")
    (local / "index.html").write_text('<a href="%2e%2e%2fout.png">x</a>')
    with (
        served(local.parent) as address,
        pytest.raises(DataError, match="would lie outside the folder of the data"),
    ):
        open_images(f"{address}/flowers")
    assert not list((home / "cache").rglob("out.png"))


@pytest.mark.parametrize("name", ["../out.png", "/out.png", "a/../../out.png", "..\\out.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_nothing_is_written_outside(home: Path, local: Path, kind: str, name: str) -> None:
    packed = io.BytesIO()
    image = next(local.rglob("*.png")).read_bytes()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(name, image)
    else:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = len(image)
            archive.addfile(entry, io.BytesIO(image))
    fsspec.filesystem("memory").pipe(f"/evil/f.{kind}", packed.getvalue())
    with pytest.raises(DataError, match="would lie outside the folder of the data"):
        open_images(f"memory://evil/f.{kind}")
    assert not copies(home)
    assert not list(home.rglob("out.png"))


def test_links_of_an_archive_are_left_out(home: Path, local: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted(local.rglob("*.png")):
            archive.add(path, path.relative_to(local).as_posix())
        link = tarfile.TarInfo("rose/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        again = tarfile.TarInfo("tulip/again.png")  # a file that has two names
        again.type, again.linkname = tarfile.LNKTYPE, next(iter(archive)).name
        archive.addfile(again)
    fsspec.filesystem("memory").pipe("/linked/f.tar", packed.getvalue())
    for _ in range(2):  # from the archive, and from the copy
        source = open_images("memory://linked/f.tar")
        assert len(source) == 6
        assert source.skipped == (
            "'rose/link.png' in the archive is a link or the like, not a file",
        )


def test_links_of_a_zip_are_left_out_and_its_names_are_utf_8(home: Path, local: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(local.rglob("*.png")):
            archive.write(path, path.relative_to(local).as_posix().replace("rose", "r\xf4s\xe9"))
        link = zipfile.ZipInfo("tulip/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "../../out")
    # As macOS packs them: UTF-8 that does not say so.
    content = bytearray(packed.getvalue())
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.find(mark)
        while at >= 0:
            content[at + flags + 1] &= ~0x08
            at = content.find(mark, at + 1)
    fsspec.filesystem("memory").pipe("/linked/f.zip", bytes(content))
    source = open_images("memory://linked/f.zip")
    assert source.classes == ("r\xf4s\xe9", "tulip")
    assert len(source) == 5
    assert len(source.skipped) == 1


@pytest.mark.parametrize("member", ["zip://*::", "zip://flowers::"])
def test_a_password_in_a_chain_of_urls_is_refused(home: Path, member: str) -> None:
    with pytest.raises(DataError, match="holds a user or password") as caught:
        open_images(f"{member}https://me:abracadabra@host/f.zip")
    assert "abracadabra" not in str(caught.value)


def test_a_folder_in_an_archive_may_be_named(home: Path, local: Path, tmp_path: Path) -> None:
    (tmp_path / "f.zip").write_bytes(pack("zip", local, top="flowers/"))
    found = open_images(f"zip://flowers::file://{tmp_path}/f.zip")
    assert found.fingerprint == open_images(str(local)).fingerprint


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://nowhere/flowers", "nothing is at memory://nowhere/flowers"),
        ("memory://nowhere/f.zip", "nothing is at memory://nowhere/f.zip"),
        ("nosuch://bucket/f", "nosuch://bucket/f cannot be read: Protocol not known: nosuch"),
        ("https://me:abracadabra@host/f.zip", r"https://\*\*\*@host holds a user or password"),
        ("memory://bucket/labels.csv", "a CSV file at a URL is not read"),
    ],
)
def test_what_cannot_be_had_is_said(home: Path, url: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        open_images(url)
    assert "abracadabra" not in str(caught.value)


def test_what_is_no_archive_is_said(home: Path) -> None:
    fsspec.filesystem("memory").pipe("/bad/f.zip", b"no archive")
    with pytest.raises(DataError, match="is no archive that can be read"):
        open_images("memory://bad/f.zip")
    assert not copies(home)


def test_what_a_system_puts_beside_the_folder_is_no_class(home: Path, local: Path) -> None:
    """As Finder packs a folder."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(local.rglob("*")):
            if path.is_file():
                archive.write(path, f"flowers/{path.relative_to(local)}")
        archive.writestr("__MACOSX/flowers/._1.png", b"x")
        archive.writestr(".DS_Store", b"x")
    fsspec.filesystem("memory").pipe("/mac/f.zip", stream.getvalue())
    assert open_images("memory://mac/f.zip").classes == open_images(local).classes


def test_a_url_that_is_none_is_said() -> None:
    with pytest.raises(DataError, match="the URL of the data cannot be read: Invalid IPv6 URL"):
        open_images("https://u:p@[::1/x.zip")
