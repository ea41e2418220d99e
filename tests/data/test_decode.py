from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from timm.data import create_transform

from biotune_optuna.data import decode
from biotune_optuna.data.decode import decode_image, preprocess, read_image, to_rgb
from biotune_optuna.errors import DataError
from tests.kit.images import picture

if TYPE_CHECKING:
    from pathlib import Path


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(width: int = 16, height: int = 9) -> np.ndarray:
    return np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)


def test_greyscale_is_repeated_over_three_channels() -> None:
    found = np.asarray(decode_image(encoded(Image.fromarray(ramp())), name="x"))
    assert found.shape == (9, 16, 3)
    assert (found == ramp()[..., None]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_is_scaled_over_its_full_range(kind: str) -> None:
    deep = ramp().astype(np.uint16) * 257
    found = np.asarray(decode_image(encoded(Image.fromarray(deep), kind), name="x"))
    assert (found[..., 0] == ramp()).all()


def test_float_tiff_in_unit_range_is_scaled() -> None:
    unit = (ramp() / 255.0).astype(np.float32)
    found = np.asarray(decode_image(encoded(Image.fromarray(unit), "TIFF"), name="x"))
    assert (found[..., 1] == ramp()).all()


def test_float_with_nan_is_refused_by_name() -> None:
    broken = np.full((4, 4), np.nan, np.float32)
    with pytest.raises(DataError, match=r"'scan\.tif' cannot be decoded: float pixels"):
        decode_image(encoded(Image.fromarray(broken), "TIFF"), name="scan.tif")
    with pytest.raises(DataError, match=r"'scan\.tif' cannot be decoded: float pixels"):
        decode_image(encoded(Image.fromarray(broken), "TIFF"), name="scan.tif", draft=True)


def test_palette_gives_its_colours() -> None:
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[:4] = (200, 10, 30)
    colours[4:] = (5, 120, 250)
    flat = Image.fromarray(colours).quantize(4)
    assert flat.mode == "P"
    found = np.asarray(decode_image(encoded(flat), name="x"))
    assert np.abs(found.astype(int) - colours).max() <= 1


def test_transparent_parts_lie_on_white_whatever_colour_they_hide() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (255, 0, 0, 0)  # red, but invisible
    pixels[1, 1] = (10, 20, 30, 255)
    found = np.asarray(decode_image(encoded(Image.fromarray(pixels)), name="x"))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [10, 20, 30]


def test_transparent_palette_entry_lies_on_white() -> None:
    flat = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    flat.putpalette([9, 9, 9, 50, 60, 70])
    found = np.asarray(decode_image(encoded(flat, transparency=0), name="x"))
    assert found[0].tolist() == [[255, 255, 255], [50, 60, 70]]


UNDO = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(upright: Image.Image, orientation: int) -> Image.Image:
    """As a camera that was held otherwise stores a picture."""
    undo = UNDO[orientation]
    return upright if undo is None else upright.transpose(undo)


def tiff_tags(orientation: int, *others: tuple[int, int, int, bytes]) -> bytes:
    """EXIF with an orientation and other tags: number, type, count and up to 4 bytes of value."""
    tags = sorted([(0x0112, 3, 1, struct.pack("<H", orientation)), *others])
    body = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3].ljust(4, b"\0") for tag in tags)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    upright = Image.fromarray(np.stack([ramp(24, 16)] * 3, axis=-1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exact = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    content = encoded(turned(upright, orientation), kind, exif=exif, **exact)
    found = decode_image(content, name="x")
    assert np.abs(np.asarray(found, int) - np.asarray(upright, int)).max() <= 2 * (kind == "JPEG")
    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert found.tobytes() == theirs.tobytes()
    assert to_rgb(found).tobytes() == found.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("with_exif", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_xmp_orientation_is_applied_once(orientation: int, with_exif: bool, kind: str) -> None:
    upright = Image.fromarray(np.stack([ramp(24, 16)] * 3, axis=-1))
    xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()
    more: dict[str, object] = {"xmp": xmp}
    if kind == "PNG":
        more = {"pnginfo": PngImagePlugin.PngInfo()}
        more["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())  # type: ignore[attr-defined]
    if with_exif:
        more["exif"] = tiff_tags(orientation)
    exact = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    content = encoded(turned(upright, orientation), kind, **more, **exact)
    found = decode_image(content, name="x")
    assert np.abs(np.asarray(found, int) - np.asarray(upright, int)).max() <= 2 * (kind == "JPEG")
    assert to_rgb(found).tobytes() == found.tobytes()


@pytest.mark.parametrize(
    "odd",
    [
        (0x0128, 2, 2, b"2\0"),  # the unit of the resolution, as text
        (0x011A, 2, 3, b"72\0"),
        (0x0100, 2, 3, b"40\0"),
        (0x0102, 8, 1, struct.pack("<h", -1)),
        (0x8769, 2, 4, b"abc\0"),
    ],
    ids=lambda odd: hex(odd[0]),
)
def test_odd_exif_of_a_turned_picture_does_no_harm(odd: tuple[int, int, int, bytes]) -> None:
    upright = Image.fromarray(np.stack([ramp(24, 16)] * 3, axis=-1))
    content = encoded(turned(upright, 6), "PNG", exif=tiff_tags(6, odd))
    decode_image(content, name="x", draft=True)
    found = decode_image(content, name="x")
    assert found.tobytes() == upright.tobytes()
    assert to_rgb(found).tobytes() == upright.tobytes()


def test_cmyk_and_animation(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), (250, 5, 5))
    assert decode_image(encoded(red.convert("CMYK"), "JPEG"), name="x").mode == "RGB"
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("blue", "green")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(moving, name="x").getpixel((0, 0)) == (0, 0, 255)


def test_truncated_file_is_named(tmp_path: Path) -> None:
    whole = encoded(picture(0, (64, 64)), "JPEG")
    path = tmp_path / "half.jpg"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"half\.jpg' cannot be decoded") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="half"):
        decode_image(path.read_bytes(), name="half", draft=True)


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "empty"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"), (b"hello" * 99, "not an")],
)
def test_what_is_no_image_is_refused(content: bytes, what: str) -> None:
    with pytest.raises(DataError, match=f"'odd' is {what}"):
        decode_image(content, name="odd")


def test_a_name_that_cannot_be_is_one_line() -> None:
    with pytest.raises(DataError, match="this is no file name"):
        read_image("a\0b.png")


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png' cannot be read: No such file"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize("side", [11_000, 60_000])
def test_decompression_bomb_is_refused_before_decoding(side: int, recwarn: object) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    with pytest.raises(DataError, match=r"'bomb\.png' is too large to be decoded safely"):
        decode_image(bomb, name="bomb.png")
    assert not list(recwarn)  # type: ignore[call-overload]


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (97, 31), (32, 32), (8, 8), (300, 200)])
@pytest.mark.parametrize(
    ("crop_pct", "interpolation"),
    [(1.0, "bilinear"), (0.875, "bicubic"), (1.15, "bicubic"), (1.4, "bilinear"), (2.0, "bicubic")],
)
def test_preprocess_gives_timms_pixels(
    shape: tuple[int, int], crop_pct: float, interpolation: str
) -> None:
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    )
    theirs = create_transform(
        (3, 32, 32), crop_pct=crop_pct, interpolation=interpolation, mean=0, std=1
    )
    expected = np.rint(theirs(picture).numpy() * 255.0).astype(np.uint8)
    found = preprocess(picture, size=32, crop_pct=crop_pct, interpolation=interpolation)
    assert found.dtype == np.uint8
    assert (found == expected).all()


def test_a_crop_larger_than_the_picture_gets_a_black_edge() -> None:
    found = preprocess(Image.new("RGB", (50, 20), "white"), size=31, crop_pct=1.15)
    expected = np.zeros((31, 31), np.uint8)
    expected[2:28] = 255  # of 26 rows; the wider side is cut as always
    assert (found == expected).all()
    assert preprocess(Image.new("RGB", (5, 5)), size=1, crop_pct=2.0).shape == (3, 1, 1)


def test_preprocess_of_a_very_long_strip_stays_small() -> None:
    strip = Image.new("RGB", (200_000, 1), (7, 8, 9))
    found = preprocess(strip, size=64)
    assert found.shape == (3, 64, 64)
    assert (found == np.array([7, 8, 9])[:, None, None]).all()


@pytest.mark.parametrize(
    "bad",
    [
        {"size": 0},
        {"size": 2.5},
        {"size": 8, "crop_pct": 0.0},
        {"size": 8, "crop_pct": 2.1},
        {"size": 8, "crop_pct": float("nan")},
        {"size": 8, "interpolation": "x"},
    ],
)
def test_preprocess_refuses_odd_settings(bad: dict[str, object]) -> None:
    with pytest.raises(DataError):
        preprocess(Image.new("RGB", (4, 4)), **bad)  # type: ignore[arg-type]


def test_limit_is_read_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="16 x 9 over the limit of 100"):
        decode_image(encoded(Image.fromarray(ramp())), name="x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "AVIF"])
def test_whatever_is_wrong_with_a_file_is_one_line(kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    whole = encoded(picture(0, (20, 24)), kind)
    draw = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        content = bytearray(whole[: draw.integers(1, len(whole) + 1)])
        for place in draw.integers(0, len(content), 3):
            content[place] = draw.integers(256)
        for draft in (False, True):
            try:
                decode_image(bytes(content), name="odd", draft=draft)
            except DataError as error:
                refused += 1
                assert "'odd'" in str(error)  # noqa: PT017
                assert "\n" not in str(error)  # noqa: PT017
    assert refused > 20
