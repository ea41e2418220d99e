from __future__ import annotations

import multiprocessing
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from biotune_optuna.data import pixels as module
from biotune_optuna.data.cache_dir import default_cache_dir
from biotune_optuna.data.decode import preprocess
from biotune_optuna.data.pixels import PixelStore
from biotune_optuna.data.sources.image_source import ImageSource
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.errors import DataError

Tree = Callable[..., Path]


def counting(source: ImageSource) -> tuple[ImageSource, list[int]]:
    """The same source, with a list of the images that were decoded."""
    decoded: list[int] = []

    def read(index: int) -> object:
        decoded.append(index)
        return source.load(index)

    copy = ImageSource(
        read,  # type: ignore[arg-type]
        name=source.name,
        classes=source.classes,
        labels=source.labels,
        ids=source.ids,
        content_hashes=source.content_hashes,
    )
    return copy, decoded


@pytest.fixture
def source(tree: Tree) -> ImageSource:
    return open_images(tree({"a": 20, "b": 21}))


def test_pixels_are_what_preprocess_gives(source: ImageSource, tmp_path: Path) -> None:
    store = PixelStore.build(source, size=9, crop_pct=0.9, cache_dir=tmp_path / "c")
    assert store.pixels.shape == (41, 3, 9, 9)
    assert store.pixels.dtype == np.uint8
    assert not store.pixels.flags.writeable
    for index in range(41):
        expected = preprocess(source.load(index), size=9, crop_pct=0.9)
        assert (store.pixels[index] == expected).all()


def test_second_opening_decodes_nothing(source: ImageSource, tmp_path: Path) -> None:
    source, decoded = counting(source)
    first = PixelStore.build(source, size=9, cache_dir=tmp_path / "c")
    assert sorted(decoded) == list(range(41))
    second = PixelStore.build(source, size=9, cache_dir=tmp_path / "c")
    assert len(decoded) == 41
    assert (second.pixels == first.pixels).all()
    PixelStore.build(source, size=9, interpolation="bilinear", cache_dir=tmp_path / "c")
    PixelStore.build(source, size=10, cache_dir=tmp_path / "c")
    assert len(decoded) == 3 * 41
    assert sorted(p.suffix for p in (tmp_path / "c").iterdir()) == [".bin"] * 3 + [".lock"] * 3


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_byte,
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"?" + path.read_bytes()[1:]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"),
    ],
    ids=["bit flip", "truncated", "empty", "header", "checksum"],
)
def test_damaged_cache_is_built_again(
    source: ImageSource, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    source, decoded = counting(source)
    first = PixelStore.build(source, size=9, cache_dir=tmp_path)
    expected = np.array(first.pixels)
    assert first.path is not None
    damage(first.path)
    again = PixelStore.build(source, size=9, cache_dir=tmp_path)
    assert (again.pixels == expected).all()
    assert len(decoded) == 82


def test_progress_is_told_only_while_building(source: ImageSource, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    for _ in range(2):
        PixelStore.build(source, size=9, cache_dir=tmp_path, progress=lambda *at: told.append(at))
    assert told == [(16, 41), (32, 41), (41, 41)]


def test_rows_follow_the_order_of_the_images(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    one = open_images(images, labels=[0, 1, 0, 1, 0, 1])
    other = open_images(images[::-1].copy(), labels=[1, 0, 1, 0, 1, 0])
    assert one.fingerprint == other.fingerprint
    first = PixelStore.build(one, size=8, cache_dir=tmp_path).pixels
    assert (PixelStore.build(other, size=8, cache_dir=tmp_path).pixels == first[::-1]).all()


def test_threads_that_ask_at_once_decode_once(source: ImageSource, tmp_path: Path) -> None:
    source, decoded = counting(source)
    with ThreadPoolExecutor(8) as pool:
        stores = list(
            pool.map(lambda _: PixelStore.build(source, size=9, cache_dir=tmp_path), range(8))
        )
    assert sorted(decoded) == list(range(41))
    assert all((store.pixels == stores[0].pixels).all() for store in stores)


def _build(root: str, cache: str, barrier: object, results: object) -> None:
    source, decoded = counting(open_images(root))
    barrier.wait()  # type: ignore[attr-defined]
    store = PixelStore.build(source, size=16, cache_dir=cache)
    results.put((len(decoded), int(store.pixels.astype(np.int64).sum())))  # type: ignore[attr-defined]


def test_processes_that_ask_at_once_decode_once(tree: Tree, tmp_path: Path) -> None:
    root = tree({"a": 30, "b": 30})
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [
        context.Process(target=_build, args=(str(root), str(tmp_path / "c"), barrier, results))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert sorted(count for count, _ in found) == [0, 0, 60]
    assert len({total for _, total in found}) == 1


def test_a_killed_builder_leaves_nothing_behind(source: ImageSource, tmp_path: Path) -> None:
    store = PixelStore.build(source, size=9, cache_dir=tmp_path)
    assert store.path is not None
    stale = tmp_path / f"{store.path.stem}.abc.tmp"
    stale.write_bytes(b"half")
    store.path.unlink()
    PixelStore.build(source, size=9, cache_dir=tmp_path)
    assert not stale.exists()


def _build_slowly(root: str, cache: str, started: object) -> None:
    source = open_images(root)
    load = source.load

    def slow(index: int) -> object:
        started.set()  # type: ignore[attr-defined]
        time.sleep(0.2)
        return load(index)

    source.load = slow  # type: ignore[assignment,method-assign]
    PixelStore.build(source, size=16, cache_dir=cache, workers=1)


def test_killed_while_building(tree: Tree, tmp_path: Path) -> None:
    root, cache = tree({"a": 30, "b": 30}), tmp_path / "c"
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    victim = context.Process(target=_build_slowly, args=(str(root), str(cache), started))
    victim.start()
    assert started.wait(60)
    assert len(list(cache.glob("*.tmp"))) == 1
    victim.kill()
    victim.join(60)
    source = open_images(root)
    store = PixelStore.build(source, size=16, cache_dir=cache)
    assert (store.pixels[59] == preprocess(source.load(59), size=16)).all()
    assert sorted(path.suffix for path in cache.iterdir()) == [".bin", ".lock"]


def test_image_that_has_changed_is_named_and_leaves_no_cache(tree: Tree, tmp_path: Path) -> None:
    root = tree({"a": 40, "b": 40})
    source = open_images(root)
    (root / "a" / "007.png").write_bytes((root / "a" / "008.png").read_bytes())
    with pytest.raises(DataError, match=r"'a/007\.png' has changed since"):
        PixelStore.build(source, size=9, cache_dir=tmp_path / "c")
    assert [path.suffix for path in (tmp_path / "c").iterdir()] == [".lock"]


def test_cache_folder_that_cannot_be_used(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(DataError, match="give another cache folder"):
        PixelStore.build(source, size=9, cache_dir=blocked / "c")
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"needs .* MiB but .* 0 MiB free"):
        PixelStore.build(source, size=9, cache_dir=tmp_path / "c")


def test_cache_in_a_folder_that_is_read_only(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = PixelStore.build(source, size=9, cache_dir=tmp_path)
    real = Path.open

    def read_only(self: Path, mode: str = "r", *args: object, **options: object) -> object:
        if set(mode) & set("aw+"):
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, mode, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", read_only)
    again = PixelStore.build(source, size=9, cache_dir=tmp_path)
    assert (again.pixels == first.pixels).all()
    with pytest.raises(DataError, match="cannot be used: Permission denied"):
        PixelStore.build(source, size=10, cache_dir=tmp_path)


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_the_umask_says_who_may_read_a_cache(
    source: ImageSource, tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        store = PixelStore.build(source, size=9, cache_dir=tmp_path)
    finally:
        os.umask(before)
    assert store.path is not None
    assert stat.S_IMODE(store.path.stat().st_mode) == mode


def test_a_cache_folder_that_may_not_be_entered(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.stat

    def closed(self: Path, **options: object) -> object:
        if self.is_relative_to(tmp_path / "closed"):
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, **options)  # type: ignore[arg-type]

    def not_made(*_: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", closed)
    monkeypatch.setattr(Path, "mkdir", not_made)
    with pytest.raises(DataError, match="cannot be used: Permission denied; give another"):
        PixelStore.build(source, size=9, cache_dir=tmp_path / "closed")


def test_a_cache_file_that_may_not_be_read(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PixelStore.build(source, size=9, cache_dir=tmp_path)
    real = Path.open

    def private(self: Path, *args: object, **options: object) -> object:
        if self.suffix == ".bin":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", private)
    with pytest.raises(DataError, match="cannot be used: Permission denied; give another"):
        PixelStore.build(source, size=9, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "why"), [("x" * 300, "File name too long"), ("a\0b", "no folder")]
)
def test_what_cannot_be_a_cache_folder_is_one_line(
    source: ImageSource, tmp_path: Path, name: str, why: str
) -> None:
    with pytest.raises(DataError, match=f"cannot be used: .*{why}.*; give another") as caught:
        PixelStore.build(source, size=9, cache_dir=tmp_path / name)
    assert "\n" not in str(caught.value)


def test_default_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BIOTUNE_CACHE", str(tmp_path / "mine"))
    assert default_cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("BIOTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "biotune-optuna"


def test_settings_are_checked_before_anything_is_written(
    source: ImageSource, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="crop_pct"):
        PixelStore.build(source, size=9, crop_pct=2.1, cache_dir=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_disk_that_fills_is_an_error_and_kills_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_handle: int, _start: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", no_room)
    with pytest.raises(DataError, match="No space left on device"):
        PixelStore.build(open_images("digits"), size=16, cache_dir=tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


def test_without_locks_a_builders_file_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_images("digits")
    path = PixelStore.build(source, size=16, cache_dir=tmp_path).path
    assert path is not None
    path.unlink()
    others = tmp_path / f"{path.stem}.other.tmp"
    others.write_bytes(b"being written by another process")

    def unsupported(_handle: object, _how: int) -> None:
        raise OSError(38, "Function not implemented")

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", unsupported)
        PixelStore.build(source, size=16, cache_dir=tmp_path)
    assert others.exists()
    path.unlink()
    PixelStore.build(source, size=16, cache_dir=tmp_path)
    assert not others.exists(), "with the lock it can only be a dead one's"
