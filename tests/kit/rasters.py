"""Image files written byte by byte, so that what they hold is known without any library.

Samples are whole numbers of shape (H, W, S), as the file stores them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]


def packed_rows(samples: Samples, bits: int, order: str = ">") -> list[bytes]:
    """Each row of (H, W, S) as bytes: packed below 8 bits and at 12, else in this byte order."""
    rows = samples.reshape(len(samples), -1)
    if samples.dtype.kind == "f" or bits in {8, 16, 32, 64}:
        kind = samples.dtype.kind if samples.dtype.kind in "if" else "u"
        return [row.astype(f"{order}{kind}{bits // 8}").tobytes() for row in rows]
    spread = (rows[..., None].astype(np.uint32) >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in spread]


def _chunk(kind: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


# Adam7: first column, first row, step of the columns, of the rows.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4))
_LAST_PASSES = ((1, 0, 2, 2), (0, 1, 1, 2))


def png(
    samples: Samples,
    *,
    bits: int = 8,
    colour: int,
    interlaced: bool = False,
    palette: bytes = b"",
    transparency: bytes = b"",
    extra: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of colour type 0, 2, 3, 4 or 6, with further chunks before its pixels."""
    height, width = samples.shape[:2]
    parts = [samples]
    if interlaced:
        parts = [samples[y::dy, x::dx] for x, y, dx, dy in (*_PASSES, *_LAST_PASSES)]
    lines = b"".join(b"\0" + row for part in parts if part.size for row in packed_rows(part, bits))
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    chunks = [(b"IHDR", head)]
    chunks += [(b"PLTE", palette)] if palette else []
    chunks += [(b"tRNS", transparency)] if transparency else []
    chunks += [*extra, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def tiff(
    samples: Samples,
    *,
    bits: int = 8,
    photometric: int,
    sample_format: int | None = None,
    planar: bool = False,
    deflate: bool = False,
    fill_order: int | None = None,
    extra: Sequence[int] = (),
    palette: Sequence[int] = (),
    orientation: int | None = None,
    order: str = "<",
    rows_per_strip: int | None = None,
    tile: int | None = None,
    more: Sequence[tuple[int, int, Sequence[int]]] = (),
) -> bytes:
    """A TIFF; a strip for each plane, or some, or square tiles.

    Args:
        samples: What the file stores.
        bits: Per sample.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 Lab.
        sample_format: 1 unsigned, 2 signed, 3 float.
        planar: Whether each sample has a plane of its own.
        deflate: Whether the strips are compressed.
        fill_order: 2 turns the bits of each byte round.
        extra: What each further sample is: 0 unsaid, 1 alpha that is multiplied in, 2 alpha.
        palette: Red, green and blue values, 16 bits each, one colour after the other.
        orientation: As of EXIF.
        order: ``"<"`` or ``">"``.
        rows_per_strip: Default all.
        tile: Side of the tiles, a multiple of 16; None writes strips.
        more: Further tags: number, type (3 short, 4 long), values.
    """
    height, width, depth = samples.shape
    planes = [samples[..., i : i + 1] for i in range(depth)] if planar else [samples]
    pieces = []
    for plane in planes:
        if tile:
            high, wide = -(-height // tile) * tile, -(-width // tile) * tile
            full = np.zeros((high, wide, plane.shape[2]), plane.dtype)
            full[:height, :width] = plane
            pieces += [
                full[y : y + tile, x : x + tile]
                for y in range(0, high, tile)
                for x in range(0, wide, tile)
            ]
        else:
            step = rows_per_strip or height
            pieces += [plane[y : y + step] for y in range(0, height, step)]
    strips = [b"".join(packed_rows(piece, bits, order)) for piece in pieces]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    if fill_order == 2:
        turn = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))
        strips = [strip.translate(turn) for strip in strips]
    tags: list[tuple[int, int, Sequence[int]]] = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [bits] * depth),
        (259, 3, [8 if deflate else 1]),
        (262, 3, [photometric]),
        (277, 3, [depth]),
        (284, 3, [2 if planar else 1]),
        *more,
    ]
    tags += [(266, 3, [fill_order])] if fill_order else []
    tags += [(274, 3, [orientation])] if orientation else []
    tags += [(338, 3, extra)] if extra else []
    tags += [(339, 3, [sample_format] * depth)] if sample_format else []
    tags += [(320, 3, list(palette))] if palette else []
    at, counts = [], [len(strip) for strip in strips]
    position = 8
    for strip in strips:
        at.append(position)
        position += len(strip) + len(strip) % 2
    if tile:
        tags += [(322, 4, [tile]), (323, 4, [tile]), (324, 4, at), (325, 4, counts)]
    else:
        tags += [(278, 4, [rows_per_strip or height]), (273, 4, at), (279, 4, counts)]
    data = b"".join(strip + b"\0" * (len(strip) % 2) for strip in strips)
    values, entries = b"", b""
    values_at = position + 2 + 12 * len(tags) + 4
    for number, kind, value in sorted(tags, key=lambda tag: tag[0]):
        body = struct.pack(f"{order}{len(value)}{'H' if kind == 3 else 'I'}", *value)
        if len(body) <= 4:
            field = body.ljust(4, b"\0")
        else:
            field = struct.pack(f"{order}I", values_at + len(values))
            values += body + b"\0" * (len(body) % 2)
        entries += struct.pack(f"{order}HHI", number, kind, len(value)) + field
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", position)
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + values


def bmp(
    samples: Samples,
    *,
    bits: int,
    palette: bytes = b"",
    masks: Sequence[int] = (),
    upside_down: bool = True,
) -> bytes:
    """A BMP: indices with a palette (blue, green, red, 0), or whole pixels as numbers."""
    height, width = samples.shape[:2]
    order = samples[::-1] if upside_down else samples
    if bits == 24:
        raw = order.astype("<u4").reshape(height, width, 1).view(np.uint8)[..., :3]
        rows = [row.tobytes() for row in raw.reshape(height, -1)]
    else:
        rows = packed_rows(order.reshape(height, width, 1), bits, "<")
    body = b"".join(row + bytes(-len(row) % 4) for row in rows)
    extra = b"".join(struct.pack("<I", mask) for mask in masks)
    head = struct.pack(
        "<IiiHHIIiiII", 40, width, height if upside_down else -height, 1, bits,
        3 if masks else 0, len(body), 0, 0, len(palette) // 4, 0,
    )  # fmt: skip
    at = 14 + len(head) + len(extra) + len(palette)
    return b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + head + extra + palette + body


def pnm(samples: Samples, *, kind: int, most: int = 255) -> bytes:
    """A PBM (1, 4), PGM (2, 5) or PPM (3, 6), as text or in bytes."""
    height, width = samples.shape[:2]
    head = f"P{kind}\n{width} {height}\n" + ("" if kind in {1, 4} else f"{most}\n")
    if kind <= 3:
        text = "\n".join(" ".join(map(str, row.reshape(-1))) for row in samples)
        return (head + text + "\n").encode()
    bits = 1 if kind == 4 else 8 if most < 256 else 16
    return head.encode() + b"".join(packed_rows(samples, bits))
