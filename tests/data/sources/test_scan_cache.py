from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from biotune_optuna.data.sources import scan
from biotune_optuna.data.sources import scan_cache as module
from biotune_optuna.data.sources.scan_cache import ScanCache
from tests.kit.images import picture


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIOTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Ten pictures, seen a minute after they were written."""
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for seed, path in enumerate(paths):
        picture(seed).save(path)
    now = time.time_ns() + 60_000_000_000
    monkeypatch.setattr(module.time, "time_ns", lambda: now)
    return paths


def noted(files: list[Path]) -> ScanCache:
    notes = ScanCache(files, least=1)
    for number, path in enumerate(files):
        notes.put(path, f"digest {number}")
    notes.save()
    return ScanCache(files, least=1)


def test_unchanged_files_are_recognised(files: list[Path]) -> None:
    notes = noted(files)
    assert [notes.get(path) for path in files] == [f"digest {i}" for i in range(10)]


def test_changed_files_are_not(files: list[Path]) -> None:
    noted(files)
    before = files[0].stat()
    content = bytearray(files[0].read_bytes())
    content[-1] ^= 1
    files[0].write_bytes(content)
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))  # disguised
    files[1].rename(files[1].with_suffix(".old"))
    files[2].replace(files[1])
    notes = ScanCache(files, least=1)
    assert [notes.get(path) for path in files[:4]] == [None, None, None, "digest 3"]


def test_files_written_a_moment_ago_are_not_kept(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = files[0].stat().st_mtime_ns + 1_000_000_000
    monkeypatch.setattr(module.time, "time_ns", lambda: now)
    assert noted(files).get(files[0]) is None


def test_small_sets_leave_no_trace(files: list[Path], cache: Path) -> None:
    notes = ScanCache(files)
    notes.put(files[0], "x")
    notes.save()
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": 99}'])
def test_damaged_notes_are_as_good_as_none(files: list[Path], cache: Path, content: str) -> None:
    noted(files)
    (note,) = (cache / "scans").iterdir()
    note.write_text(content)
    assert noted(files).get(files[3]) == "digest 3"
    note.write_text(note.read_text().replace(module.PIL.__version__, "0.0"))
    assert ScanCache(files, least=1).get(files[3]) is None


def test_notes_that_cannot_be_written_are_done_without(files: list[Path], cache: Path) -> None:
    cache.write_text("in the way")
    assert noted(files).get(files[0]) is None


def test_scanning_reads_only_what_is_new(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.ScanCache.__init__, "__kwdefaults__", {"least": 1})
    read: list[Path] = []
    real = scan.read_bytes

    def spy(path: Path, *, name: str) -> bytes:
        read.append(path)
        return real(path, name=name)

    monkeypatch.setattr(scan, "read_bytes", spy)
    files[4].write_bytes(b"no image")

    def run() -> tuple[list[int], list[str], list[str]]:
        read.clear()
        pairs = [(path.name, path) for path in files]
        return scan.scan_files(pairs, skip_bad_images=True)

    first = run()
    assert len(read) == 10
    assert first[0] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert run() == first
    assert read == [files[4]]  # a bad one is looked at again
    picture(77).save(files[7])
    second = run()
    assert sorted(read) == [files[4], files[7]]
    assert [a == b for a, b in zip(first[1], second[1], strict=True)].count(False) == 1
