"""The pixel cache: every image decoded once, into one memory-mapped uint8 file.

A cache file is written under a temporary name and renamed when complete, under a lock, so any
number of processes may ask for the same one at once: one builds, the others wait and use it. It
ends with a checksum per image, and what does not check is built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from filelock import FileLock
from numpy.typing import NDArray

from biotune_optuna.data.cache_dir import default_cache_dir
from biotune_optuna.data.decode import DECODING_VERSION, check_geometry, preprocess
from biotune_optuna.data.sources.scan import worker_count
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource


_logger = logging.getLogger("biotune_optuna.data")

_MAGIC = "biotune-pixels-1"
_HEADER_BYTES = 4096
_CHUNK = 16


@dataclass(eq=False, repr=False)
class PixelStore:
    """Preprocessed pixels of a data set, in a memory-mapped file or in memory.

    Attributes:
        pixels: uint8, shape (N, 3, H, W); :meth:`build` gives a read-only memory map whose memory
            runs channels last.
        key: Digest of what the pixels are.
        path: The cache file, None if the pixels are only in memory.
    """

    pixels: NDArray[np.uint8]
    key: str = ""
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3 or self.pixels.dtype != np.uint8:
            raise ValueError("pixels must be uint8 of shape (N, 3, H, W)")

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        return f"PixelStore({'x'.join(map(str, self.pixels.shape))}, {str(self.path)!r})"

    @classmethod
    def build(
        cls,
        source: ImageSource,
        *,
        size: int,
        crop_pct: float = 1.0,
        interpolation: str = "bicubic",
        cache_dir: str | Path | None = None,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> PixelStore:
        """Open the cache of a data set at one geometry, decoding the images where there is none.

        Args:
            source: The images.
            size: Side of the stored squares, in pixels.
            crop_pct: See :func:`biotune_optuna.data.decode.preprocess`.
            interpolation: See :func:`biotune_optuna.data.decode.preprocess`.
            cache_dir: Folder of the cache files; default :func:`default_cache_dir`.
            workers: Threads that decode; default one per usable core.
            progress: Called now and then with the number of images decoded and of all, while a
                cache is built.

        Raises:
            DataError: An image cannot be read, a setting is out of range, or the cache folder
                cannot be written or is full.
        """
        check_geometry(size=size, crop_pct=crop_pct, interpolation=interpolation)
        geometry = {"size": int(size), "crop_pct": float(crop_pct), "interpolation": interpolation}
        key = _key(source, geometry)
        folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
        path = folder / f"pixels-{key}.bin"
        header = {"magic": _MAGIC, "key": key, "count": len(source), **geometry}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock")) as alone:
                if not _is_sound(path, header):
                    # Builders that were killed left these; nobody else can be building.
                    for stale in path.parent.glob(f"{path.stem}.*.tmp") if alone else ():
                        stale.unlink(missing_ok=True)
                    _write(path, header, source, workers or worker_count(), progress)
            return cls(_map(path, header), key=key, path=path)
        except OSError as error:
            with contextlib.suppress(OSError):  # it may be there, in a folder that is read only
                if _is_sound(path, header):
                    return cls(_map(path, header), key=key, path=path)
            raise DataError(_unusable(folder, str(error.strerror or error))) from None
        except ValueError:
            if "\0" not in str(folder):
                raise
            raise DataError(_unusable(folder, "this is no folder name")) from None


def _key(source: ImageSource, geometry: dict[str, Any]) -> str:
    """Digest of the images in their order and of all that shapes the pixels.

    The version of our own decoding is part of it; Pillow's is because its decoders and filters may
    change by a grey level.
    """
    made_by = [_MAGIC, DECODING_VERSION, PIL.__version__, geometry]
    digest = hashlib.sha256(json.dumps(made_by).encode())
    for content in source.content_hashes:
        digest.update(content.encode())
    return digest.hexdigest()[:32]


def _unusable(folder: Path, why: str) -> str:
    return f"pixel cache in {str(folder)!r} cannot be used: {why}; give another cache folder"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock between processes and threads; freed even if the holder is killed.

    Yields:
        Whether the lock is held. Where there can be none (a file system without locks, a folder
        that is read only) that costs double work at worst: files are renamed when complete.
    """
    # The stand-in for file systems without locks is a file, which a killed holder leaves behind.
    lock = FileLock(path, fallback_to_soft=False)
    with contextlib.suppress(OSError):
        lock.acquire()
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _image_shape(header: dict[str, Any]) -> tuple[int, int, int]:
    return (header["size"], header["size"], 3)


def _map(path: Path, header: dict[str, Any], mode: Any = "r") -> NDArray[np.uint8]:
    """Return pixels (N, 3, H, W), stored channels last: neither decoder nor GPU transposes."""
    shape = (header["count"], *_image_shape(header))
    mapped = np.memmap(path, dtype=np.uint8, mode=mode, offset=_HEADER_BYTES, shape=shape)
    return mapped.transpose(0, 3, 1, 2)


def _checksums_at(header: dict[str, Any]) -> int:
    return _HEADER_BYTES + int(header["count"] * np.prod(_image_shape(header)))


def _encoded(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True).encode().ljust(_HEADER_BYTES)


def _is_sound(path: Path, header: dict[str, Any]) -> bool:
    """Whether a cache file is there, complete and undamaged."""
    if not path.is_file():
        return False
    end = _checksums_at(header)
    if path.stat().st_size == end + 4 * header["count"]:
        with path.open("rb") as handle:
            written = handle.read(_HEADER_BYTES)
            handle.seek(end)
            expected = np.frombuffer(handle.read(), dtype="<u4")
        if written == _encoded(header):
            rows = _map(path, header).transpose(0, 2, 3, 1)
            with ThreadPoolExecutor(worker_count()) as pool:
                found = list(pool.map(lambda i: zlib.crc32(rows[i].data), range(len(rows))))
            if np.array_equal(expected, np.array(found, dtype="<u4")):
                return True
    _logger.warning("pixel cache %s is damaged and is built again", path)
    return False


def _write(
    path: Path,
    header: dict[str, Any],
    source: ImageSource,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Decode all images into a new cache file; called with the lock held."""
    needed = _checksums_at(header) + 4 * header["count"]
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DataError(
            f"pixel cache needs {needed / 2**20:,.0f} MiB but {str(path.parent)!r} has "
            f"{free / 2**20:,.0f} MiB free; give another cache folder"
        )
    # Not made by tempfile, which lets nobody else read it: the user's umask decides.
    temporary = path.with_name(f"{path.stem}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("x+b") as file:
            _reserve(file.fileno(), needed)
            file.write(_encoded(header))
            file.flush()
            # Nothing keeps the map: Windows renames no file that is mapped.
            sums = _decode_into(_map(temporary, header, "r+"), header, source, workers, progress)
            file.seek(_checksums_at(header))
            file.write(sums.tobytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _reserve(handle: int, size: int) -> None:
    """Make a file that long, on the disk: a mapped file that finds it full kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.ftruncate(handle, size)


def _decode_into(
    pixels: NDArray[np.uint8],
    header: dict[str, Any],
    source: ImageSource,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> NDArray[np.uint32]:
    """Fill ``pixels`` and return a checksum per image. Pillow decodes without holding the GIL."""
    checksums = np.zeros(header["count"], dtype="<u4")

    def decode(start: int) -> None:
        for index in range(start, min(start + _CHUNK, header["count"])):
            image = preprocess(
                source.load(index),
                size=header["size"],
                crop_pct=header["crop_pct"],
                interpolation=header["interpolation"],
            )
            pixels[index] = image
            checksums[index] = zlib.crc32(np.ascontiguousarray(image.transpose(1, 2, 0)).data)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(decode, start) for start in range(0, header["count"], _CHUNK)]
        try:
            for done, future in enumerate(futures, start=1):
                future.result()
                if progress is not None:
                    progress(min(done * _CHUNK, header["count"]), header["count"])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return checksums
