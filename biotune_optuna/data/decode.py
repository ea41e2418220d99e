"""Reading image files rightly, and the one preprocessing shared by training and prediction.

:func:`read_image` turns any supported file into an upright 8-bit RGB picture, or says in one line
why it cannot. :func:`preprocess` turns such a picture into the pixels that a network sees; the
pixel cache and prediction on an exported model both call it, so they do the same arithmetic.
"""

from __future__ import annotations

import io
import logging
import math
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from biotune_optuna.data.formats import (
    alpha_of_grey,
    check_kind,
    formats,
    full_range,
    transparent_grey,
    why_unreadable,
    without_metadata,
)
from biotune_optuna.errors import DataError

_logger = logging.getLogger("biotune_optuna.data")

DECODING_VERSION = 2
"""Counts up whenever some file is decoded to other pixels, or is refused that was not: pixel cache
and scan cache then begin anew, and a study begun with another version is not gone on with."""

MAX_PIXELS = 100_000_000
"""Largest picture that is decoded, in pixels (width times height)."""

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg"}
    | {".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""File name endings, lower case, that are taken for images in a folder."""

DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError),
    *(MemoryError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises for damaged pictures, opened or later read; RuntimeError is of AVIF."""

_INTERPOLATION = {
    name: Image.Resampling[name.upper()]
    for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
}
_UPRIGHT_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow looks for the orientation.
_METADATA = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
# A strip much longer than this is cut before it is resized: scaling its short side up to the wanted
# size would otherwise blow a harmless 1 x 1,000,000 file up to gigabytes.
_LONGEST_STRIP = 16
_OPEN_LOCK = threading.Lock()


def read_image(path: str | Path, *, name: str | None = None) -> Image.Image:
    """Read an image file as an upright 8-bit RGB picture.

    Args:
        path: The file.
        name: What to call the file in an error; default its path as given.

    Returns:
        A fully decoded picture of mode ``"RGB"``.

    Raises:
        DataError: The file cannot be read, is no image of a supported format, is truncated or has
            more than :data:`MAX_PIXELS` pixels.
    """
    shown = str(path) if name is None else name
    return decode_image(read_bytes(Path(path), name=shown), name=shown)


def read_bytes(path: Path, *, name: str) -> bytes:
    """Return the bytes of an image file.

    Raises:
        DataError: There is no such file, it is no ordinary file, or it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise DataError(f"image {name!r} is not a file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"image {name!r} cannot be read: {error.strerror or error}") from None
    except ValueError:  # a null byte
        raise DataError(f"image {name!r} cannot be read: this is no file name") from None


def decode_image(content: bytes, *, name: str, draft: bool = False) -> Image.Image:
    """Decode an encoded image as an upright 8-bit RGB picture.

    Greyscale is repeated over three channels, 16-bit values are scaled to 8 bits over their full
    range, palettes are resolved, transparent parts lie on white, and the EXIF orientation is
    applied. Of an animation the first frame is taken.

    Args:
        content: The bytes of the file.
        name: What to call the image in an error.
        draft: Decode as cheaply as the format allows, only to find damage: JPEG at an eighth of its
            size, which still reads every coded byte.

    Returns:
        A fully decoded picture of mode ``"RGB"``.

    Raises:
        DataError: As :func:`read_image`.
    """
    picture = _open(without_metadata(content), name)
    try:
        if draft:
            picture.draft("RGB", (1, 1))
        return to_rgb(picture)
    except DECODE_ERRORS as error:
        raise DataError(f"image {name!r} cannot be decoded: {first_line(error)}") from None


def preprocess(
    picture: Image.Image, *, size: int, crop_pct: float = 1.0, interpolation: str = "bicubic"
) -> NDArray[np.uint8]:
    """Turn a picture into the pixels a network sees.

    The shorter side is resized to ``floor(size / crop_pct)`` and a square of ``size`` is cut from
    the centre, with a black edge where the picture is smaller: timm's evaluation transform, up to
    normalisation.

    Args:
        picture: Any picture; other modes than ``"RGB"`` are converted as in :func:`decode_image`.
        size: Side of the square, in pixels.
        crop_pct: Share of the shorter side that is kept, in (0, 2]; above 1 all of it is, and the
            rest of the square is black.
        interpolation: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, ``"lanczos"``, ``"box"`` or
            ``"hamming"``.

    Returns:
        uint8 array of shape (3, size, size), whose memory runs channels last.

    Raises:
        DataError: A setting is out of range, or the picture has no pixels.
    """
    check_geometry(size=size, crop_pct=crop_pct, interpolation=interpolation)
    picture = to_rgb(picture)
    width, height = picture.size
    if not width or not height:
        raise DataError("the picture has no pixels")
    longest = _LONGEST_STRIP * min(width, height)
    if max(width, height) > longest:
        picture = _centre_crop(picture, min(width, longest), min(height, longest))
        width, height = picture.size
    side = max(1, math.floor(size / crop_pct))
    upright = width <= height
    scaled = (side, int(side * height / width)) if upright else (int(side * width / height), side)
    if scaled != picture.size:
        picture = picture.resize(scaled, _INTERPOLATION[interpolation])
    picture = _centre_crop(picture, size, size)
    return np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1)


def check_geometry(*, size: int, crop_pct: float, interpolation: str) -> None:
    """Refuse settings that :func:`preprocess` cannot follow.

    Raises:
        DataError: A setting is out of range.
    """
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise DataError(f"image size {size!r} is not a positive whole number of pixels")
    if not 0.0 < crop_pct <= 2.0:
        raise DataError(f"crop_pct {crop_pct!r} is not in (0, 2]")
    if interpolation not in _INTERPOLATION:
        raise DataError(
            f"interpolation {interpolation!r} is unknown; known are {', '.join(_INTERPOLATION)}"
        )


def array_to_image(array: NDArray[np.generic]) -> Image.Image:
    """Turn a uint8 array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) into RGB."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _open(content: bytes, name: str) -> Image.Image:
    """Read the header only, and refuse what should not be decoded at all."""
    # Pillow warns about big pictures before it can be asked how big they are. Filters are global
    # to the process, hence the lock; decoding itself runs outside of it.
    with _OPEN_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong is raised, or does no harm
        try:
            picture = Image.open(io.BytesIO(content), formats=formats())
        except Image.DecompressionBombError:
            raise DataError(_too_large(name, "far")) from None
        except DECODE_ERRORS:
            raise DataError(f"image {name!r} {why_unreadable(content)}") from None
    pixels = picture.width * picture.height
    if pixels > MAX_PIXELS:
        raise DataError(_too_large(name, f"with {picture.width} x {picture.height}"))
    return picture


def _too_large(name: str, how: str) -> str:
    return (
        f"image {name!r} is too large to be decoded safely: {how} over the limit of "
        f"{MAX_PIXELS:,} pixels"
    )


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return an upright 8-bit RGB picture of any picture, by the rules of :func:`decode_image`.

    Raises:
        ValueError: Pixels are no colours: negative, NaN or above the mode's range.
    """
    check_kind(picture)
    # What the file says is known only until the pixels are read, or copied.
    transparent, most, inverted = transparent_grey(picture), *full_range(picture)
    picture = _upright(picture)
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode == "La":  # convert() knows no other way
        picture = picture.convert("LA")
    if picture.mode == "L" and transparent is not None:
        picture.info["transparency"] = transparent
    if picture.mode.startswith("I") or picture.mode == "F":
        alpha = None if transparent is None else alpha_of_grey(np.asarray(picture), transparent)
        picture = _to_8_bit(picture, most, inverted=inverted)
        if alpha is not None:
            picture.putalpha(alpha)
    if picture.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in picture.info:
        # Straight conversion would show whatever colour lies hidden under transparent parts.
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(paper, picture)
    return picture.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    """Return a copy of a picture, turned as its metadata say, which it then has no more.

    Pillow's own ``exif_transpose`` writes all of EXIF anew, and fails where any of it is odd.
    """
    picture.load()
    turn = _UPRIGHT_BY.get(_orientation(picture))
    if turn is None:
        return picture.copy()
    turned = picture.transpose(turn)
    for key in _METADATA:
        turned.info.pop(key, None)
    return turned


def _orientation(picture: Image.Image) -> Any:
    """Return what the metadata say of how the picture is turned; 1 where they cannot be read."""
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with them, the pixels are sound
        _logger.debug("metadata left aside: %s", first_line(error))
        return 1


def _to_8_bit(picture: Image.Image, most: int, *, inverted: bool) -> Image.Image:
    """Scale integer and float pixels to 0..255; Pillow's own conversion clips them."""
    values = np.asarray(picture)
    if picture.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0.0 and high <= 255.0):  # catches NaN too
            raise ValueError(f"float pixels from {low:g} to {high:g} are outside 0..1 and 0..255")
        scaled = values * 255.0 if high <= 1.0 else values
    else:
        if int(values.min()) < 0 or int(values.max()) > most:
            raise ValueError(f"integer pixels are outside 0..{most}")
        scaled = values.astype(np.float32) / np.float32(most / 255.0)
    pixels = np.rint(scaled).astype(np.uint8)
    return Image.fromarray(255 - pixels if inverted else pixels)


def _centre_crop(picture: Image.Image, width: int, height: int) -> Image.Image:
    left, top = _margin(picture.width, width), _margin(picture.height, height)
    if (left, top, width, height) == (0, 0, *picture.size):
        return picture
    return picture.crop((left, top, left + width, top + height))  # black outside of the picture


def _margin(have: int, wanted: int) -> int:
    """Return what is cut off before the centre, rounded as in timm; negative is added."""
    return round((have - wanted) / 2.0) if have >= wanted else -((wanted - have) // 2)


def first_line(error: BaseException) -> str:
    """Return what an error says, or its name if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
