"""What Pillow alone would misread: mended here, or refused with a cure.

Pillow decodes files that it half understands, in silence: a white-is-zero picture of 16 bits comes
out inverted, one of 12 bits sixteen times too dark, planes of 16 bits as noise. Every kind that is
let through is compared with pixels computed by hand in ``tests/data/test_formats.py``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Only raster decoders: Pillow's full list holds formats that run other programs (EPS) or refer to
# other files.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
_HEIF = "HEIF"
_CURE = "save it anew as PNG with 8 bits per value"

# Beginnings of files, by which a message can say what a file is.
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG2000"),
    (b"\xffO\xffQ", "JPEG2000"),
    (b"RIFF", "WEBP"),
)
_STRANGERS = (
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"<svg", "SVG, a drawing"),
    (b"8BPS", "Photoshop's own format"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a pointer of Git LFS: run git lfs pull"),
    (b"<!DOCTYPE html", "a web page, as a failed download leaves it"),
    (b"<html", "a web page, as a failed download leaves it"),
)
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of the formats that this build of Pillow reads: a name that it lacks is an error.

    HEIC is among them where the package pillow-heif is installed.
    """
    Image.init()
    if importlib.util.find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in (*_FORMATS, _HEIF) if name in Image.OPEN)


def why_unreadable(content: bytes) -> str:
    """Say what a file is that Pillow could not open, and what to do about it.

    Args:
        content: The bytes of the file.

    Returns:
        What follows "image ... ".
    """
    if not content:
        return "is empty"
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS and _HEIF not in formats():
        return (
            "is a HEIC photo: install what reads it with pip install pillow-heif, or convert it to"
            " JPEG"
        )
    for magic, what in _STRANGERS:
        if content.lstrip()[: len(magic)].lower() == magic.lower():
            return f"is not an image but {what}"
    kinds = [kind for magic, kind in _MAGIC if content.startswith(magic)]
    if content[4:8] == b"ftyp" and content[8:12] in _AVIF_BRANDS:
        kinds = ["AVIF"]
    for kind in kinds:
        if kind == "WEBP" and content[8:12] != b"WEBP":  # a sound or a film
            continue
        if kind in formats():
            what = f"{'an' if kind == 'AVIF' else 'a'} {kind}"
            return f"is {what} that cannot be read: {_reason(kind, content)}; {_CURE}"
    return "is not an image of a supported format (JPEG, PNG, TIFF, WebP, BMP, GIF, ...)"


def _reason(kind: str, content: bytes) -> str:
    """Return what the decoder of that kind says of a file."""
    try:
        Image.OPEN[kind][0](io.BytesIO(content), "")
    except Exception as error:  # noqa: BLE001 - decoders fail in every way; this is for a message
        text = (str(error).splitlines() or [type(error).__name__])[0]
        return "its kind of pixels is not supported" if text == "unknown pixel mode" else text
    return "it is damaged"


# -- metadata


def without_metadata(content: bytes) -> bytes:
    """Return a PNG without what is neither pixels nor orientation.

    A text or colour profile that is broken, or longer than Pillow takes, would make it refuse a
    picture that every other program shows. Other formats pass as they are: there Pillow reads only
    what is asked for.
    """
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    kept = [content[:8]]
    at = 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind, end = content[at + 4 : at + 8], at + 12 + length
        is_extra = bool(kind[0] & 0x20)
        if not is_extra or kind in {b"tRNS", b"eXIf"} or _may_turn(kind, content[at + 8 : end]):
            kept.append(content[at:end])
        at = end
    kept.append(content[at:])
    return b"".join(kept)


_LONGEST_TEXT = 1 << 16


def _may_turn(kind: bytes, body: bytes) -> bool:
    """Whether a chunk of text may hold the orientation, which XMP and old EXIF do."""
    if len(body) > _LONGEST_TEXT:
        return False
    if kind == b"iTXt":
        return body.startswith(b"XML:com.adobe.xmp\0")
    return kind in {b"tEXt", b"zTXt"} and body.startswith(b"Raw profile type exif\0")


# -- TIFF and PNG

_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 258, 259, 262, 266
_SAMPLES, _PLANAR, _COLOURS, _FORMAT = 277, 284, 320, 339
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3


def check_kind(picture: Image.Image) -> None:
    """Refuse a file whose pixels Pillow would misread.

    Args:
        picture: As opened from a file, before its pixels are read; any other passes.

    Raises:
        ValueError: Why, and what to do.
    """
    problem = None
    tags = getattr(picture, "tag_v2", None)
    if picture.format == "TIFF" and tags is not None:
        problem = _tiff_problem(tags)
    elif picture.format == "PNG" and picture.mode == "RGB" and "transparency" in picture.info:
        # Pillow keeps the upper bytes only, by which the colour cannot be told from its neighbours.
        problem = "a transparent colour of 16 bits" if _png_rawmode(picture) != "RGB" else None
    if problem:
        raise ValueError(f"it has {problem}, which is not supported; {_CURE}")


def _tiff_problem(tags: Any) -> str | None:
    """Return what of a TIFF's pixels Pillow would misread, None where nothing."""
    photometric = tags.get(_PHOTOMETRIC)
    kinds = {int(kind) for kind in tags.get(_FORMAT, (_UNSIGNED,))}
    bits = max(tags.get(_BITS, (1,)))
    if photometric is None:
        return "no word on whether 0 is black or white"
    if photometric not in {0, 1, 2, 3, 5, 6}:
        return "a colour space other than grey, RGB, CMYK and YCbCr"
    if _SIGNED in kinds:
        return "signed values"
    packed = tags.get(_COMPRESSION, 1) != 1
    if _FLOAT in kinds and packed and tags.prefix == b"MM":
        return "compressed floats in big-endian order"
    if bits > 16 and kinds == {_UNSIGNED}:
        return "whole numbers of 32 bits"
    if photometric == 3 and 0 < max(tags.get(_COLOURS, (0,))) < 256:
        return "a palette of 8 bits, where TIFF wants 16"
    if tags.get(_PLANAR, 1) == 2 and tags.get(_SAMPLES, 1) > 1:
        if photometric not in {2, 5, 6}:
            return "grey and alpha in planes of their own"
        if not packed and (bits != 8 or tags.get(_FILL_ORDER, 1) != 1):
            return "its colours in uncompressed planes of their own"
    return None


def full_range(picture: Image.Image) -> tuple[int, bool]:
    """Return what is the brightest value of a picture of deep grey, and whether it is black.

    Args:
        picture: Of mode ``"I;16"`` and its like, ``"I"`` or ``"F"``.
    """
    tags = getattr(picture, "tag_v2", None)
    if picture.format != "TIFF" or tags is None:
        return 65535, False
    most = 4095 if max(tags.get(_BITS, (16,))) == 12 else 65535
    return most, tags.get(_PHOTOMETRIC) == 0


def transparent_grey(picture: Image.Image) -> int | None:
    """Return the grey value that is transparent, on the picture's own scale.

    PNG says it on the scale of the file, and Pillow passes it on: for 2 and 4 bits per value it is
    another one than that of the decoded pixels.

    Args:
        picture: As opened, before its pixels are read.
    """
    grey = picture.info.get("transparency")
    if picture.format != "PNG" or not isinstance(grey, int) or picture.mode not in {"L", "I;16"}:
        return None
    scale = {"L;2": 85, "L;4": 17}.get(_png_rawmode(picture), 1)
    return grey * scale


def _png_rawmode(picture: Image.Image) -> str:
    """Return what Pillow calls the layout of a PNG's pixels; its mode once they have been read."""
    tiles = getattr(picture, "tile", None)
    args = tiles[0].args if tiles else picture.mode
    return str(args[0] if isinstance(args, tuple) else args)


def alpha_of_grey(values: NDArray[Any], transparent: int) -> Image.Image:
    """Return the alpha channel of deep grey values of which one is transparent."""
    return Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
