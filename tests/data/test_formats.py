"""Every kind of file that is read, against pixels computed by hand; every other is refused."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from biotune_optuna.data import formats
from biotune_optuna.data.decode import decode_image
from biotune_optuna.errors import DataError
from tests.kit.rasters import bmp, png, pnm, tiff

H, W = 6, 11
BOOL = (False, True)
Pixels = NDArray[Any]


class Case(NamedTuple):
    """One kind of file: what it holds, what it shows by hand, None where it must be refused."""

    name: str
    content: bytes
    shown: Pixels | None
    within: float = 1.0  # grey levels


def values(bits: int, depth: int = 1, seed: int = 0) -> Pixels:
    """Random samples in which the darkest and the brightest occur."""
    found = np.random.default_rng(seed).integers(0, 2**bits, (H, W, depth))
    found[0, 0], found[0, 1] = 2**bits - 1, 0
    return found


def levels(samples: Pixels, bits: int) -> Pixels:
    return samples * (255.0 / (2**bits - 1))


def grey(shown: Pixels) -> Pixels:
    return np.repeat(shown[..., :1], 3, axis=2)


def on_white(colours: Pixels, alpha: Pixels) -> Pixels:
    """Lie colours of 0 to 255 with an alpha of 0 to 1, shape (H, W), on white paper."""
    return colours * alpha[..., None] + 255.0 * (1.0 - alpha[..., None])


def pngs() -> Iterator[Case]:
    for bits, interlaced in itertools.product((1, 2, 4, 8, 16), BOOL):
        name = f"png-{bits}{'-interlaced' * interlaced}"
        v = values(bits)
        shown = grey(levels(v, bits))
        yield Case(f"{name}-grey", png(v, bits=bits, colour=0, interlaced=interlaced), shown)
        for seen in (0, int(v[2, 3, 0]), 2**bits - 1):
            content = png(
                v, bits=bits, colour=0, interlaced=interlaced, transparency=struct.pack(">H", seen)
            )
            alpha = (v[..., 0] != seen).astype(float)
            yield Case(f"{name}-grey-without-{seen}", content, on_white(shown, alpha))
        if bits == 16:
            continue
        palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3))
        colours = palette[v[..., 0]].astype(float)
        for alphas in (256, "one", "short", None):
            opaque = np.full(2**bits, 255)
            if alphas == 256:
                opaque = np.random.default_rng(9).integers(0, 256, 2**bits)
            elif alphas == "one":
                opaque[-1] = 0
            elif alphas == "short":
                opaque[0] = 7
            chunk = opaque.astype(np.uint8).tobytes()[: 1 if alphas == "short" else None]
            content = png(
                v,
                bits=bits,
                colour=3,
                interlaced=interlaced,
                palette=palette.astype(np.uint8).tobytes(),
                transparency=chunk if alphas else b"",
            )
            yield Case(
                f"{name}-palette-{alphas}", content, on_white(colours, opaque[v[..., 0]] / 255)
            )
    for bits, interlaced in itertools.product((8, 16), BOOL):
        name = f"png-{bits}{'-interlaced' * interlaced}"
        v = values(bits, 3)
        v[4, 4] = v[2, 3]
        v[1, 1] = v[2, 3]
        v[1, 1, 2] ^= 1  # its nearest neighbour shows
        shown = levels(v, bits)
        yield Case(f"{name}-rgb", png(v, bits=bits, colour=2, interlaced=interlaced), shown)
        seen = struct.pack(">3H", *map(int, v[2, 3]))
        content = png(v, bits=bits, colour=2, interlaced=interlaced, transparency=seen)
        alpha = (v != v[2, 3]).any(axis=2).astype(float)
        yield Case(f"{name}-rgb-without", content, on_white(shown, alpha) if bits == 8 else None)
        for colour, depth in ((4, 2), (6, 4)):
            v = values(bits, depth)
            shown = levels(v, bits)
            content = png(v, bits=bits, colour=colour, interlaced=interlaced)
            shown = on_white(shown[..., : depth - 1], shown[..., -1] / 255)
            yield Case(f"{name}-alpha-{colour}", content, grey(shown) if depth == 2 else shown, 2.1)


def bmps() -> Iterator[Case]:
    for turned in BOOL:
        name = f"bmp{'-upside-down' * turned}"
        for bits in (1, 2, 4, 8):
            v = values(bits)
            palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 4)).astype(np.uint8)
            content = bmp(v, bits=bits, palette=palette.tobytes(), upside_down=turned)
            shown = palette[v[..., 0]][..., 2::-1].astype(float)
            yield Case(f"{name}-{bits}", content, None if bits == 2 else shown)
        for bits, masks, readable in (
            (24, (), True),
            (32, (), True),
            (16, (), True),
            (32, (0xFF0000, 0xFF00, 0xFF), True),
            (32, (0xFF000000, 0xFF0000, 0xFF00), True),
            (32, (0xFF, 0xFF00, 0xFF0000), False),
            (16, (0x7C00, 0x3E0, 0x1F), True),
            (16, (0xF800, 0x7E0, 0x1F), True),
            (16, (0xF00, 0xF0, 0xF), False),
        ):
            v = values(bits)
            usual = (0x7C00, 0x3E0, 0x1F) if bits == 16 else (0xFF0000, 0xFF00, 0xFF)
            parts = [(v[..., 0] & mask) / mask * 255 for mask in masks or usual]
            content = bmp(v, bits=bits, masks=masks, upside_down=turned)
            shown = np.stack(parts, axis=-1)
            yield Case(f"{name}-{bits}-{masks}", content, shown if readable else None)


def pnms() -> Iterator[Case]:
    for kind in range(1, 7):
        for most in (1,) if kind in {1, 4} else (1, 7, 100, 255, 256, 1000, 4095, 65535):
            v = np.random.default_rng(kind).integers(
                0, most + 1, (H, W, 3 if kind in {3, 6} else 1)
            )
            shown = v * (255.0 / most)
            shown = 255 - shown if kind in {1, 4} else shown
            whole = shown if kind in {3, 6} else grey(shown)
            yield Case(f"pnm-{kind}-{most}", pnm(v, kind=kind, most=most), whole)
    for order in "<>":
        v = np.random.default_rng(0).random((H, W, 1))
        v[0, 0] = 1.0
        head = f"Pf\n{W} {H}\n{-1.0 if order == '<' else 1.0}\n".encode()
        yield Case(f"pfm-{order}", head + v[::-1].astype(f"{order}f4").tobytes(), grey(v * 255))


def grey_tiffs() -> Iterator[Case]:
    options = itertools.product((1, 2, 4, 8, 12, 16, 32), (0, 1), "<>", BOOL, (None, 2))
    for bits, photometric, order, deflate, fill in options:
        v = values(bits)
        content = tiff(
            v, bits=bits, photometric=photometric, order=order, deflate=deflate, fill_order=fill
        )
        shown = levels(v, bits)
        shown = grey(255 - shown if photometric == 0 else shown)
        readable = bits < 8 or (bits == 8 and (fill is None or photometric == 1 or deflate))
        if bits == 12:
            readable = photometric == 1 and order == "<" and fill is None
        elif bits == 16:
            readable = fill is None and (photometric == 1 or order == "<")
            readable |= fill == 2 and photometric == 1 and order == "<"
        name = f"tiff-grey-{bits}-{photometric}{order}{'-packed' * deflate}-{fill}"
        yield Case(name, content, shown if readable else None)
    for bits, order, deflate in itertools.product((8, 16, 32), "<>", BOOL):
        v = values(bits - 1).astype(f"i{bits // 8}")
        content = tiff(v, bits=bits, photometric=1, sample_format=2, order=order, deflate=deflate)
        yield Case(f"tiff-signed-{bits}{order}{deflate}", content, None)
    for bits, photometric, order, deflate in itertools.product((16, 32, 64), (0, 1), "<>", BOOL):
        v = np.random.default_rng(0).random((H, W, 1))
        v[0, 0] = 1.0
        content = tiff(
            v.astype(f"f{bits // 8}"),
            bits=bits,
            photometric=photometric,
            sample_format=3,
            order=order,
            deflate=deflate,
        )
        shown = grey(255 - 255 * v if photometric == 0 else 255 * v)
        readable = bits == 32 and (order == "<" or not deflate)
        name = f"tiff-float-{bits}-{photometric}{order}{'-packed' * deflate}"
        yield Case(name, content, shown if readable else None)
    for bits, photometric in itertools.product((8, 16), (0, 1)):
        v = values(bits)
        steps = v.copy()
        steps[:, 1:] = (v[:, 1:] - v[:, :-1]) % 2**bits
        content = tiff(
            steps, bits=bits, photometric=photometric, deflate=True, more=[(317, 3, [2])]
        )
        shown = levels(v, bits)
        yield Case(
            f"tiff-steps-{bits}-{photometric}",
            content,
            grey(255 - shown if photometric == 0 else shown),
        )


def colour_tiffs() -> Iterator[Case]:
    extras: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (2,), (0, 0), (2, 0))
    for bits, planar, order, deflate, fill, extra, cut in itertools.product(
        (4, 8, 12, 16, 32), BOOL, "<>", BOOL, (None, 2), extras, (None, "tiles", "strips")
    ):
        v = values(bits, 3 + len(extra))
        if extra[:1] == (1,):
            v[..., :3] = np.minimum(v[..., :3], v[..., 3:4])
        shown = levels(v, bits)
        alpha = shown[..., 3] / 255 if extra[:1] in {(1,), (2,)} else np.ones((H, W))
        colours = shown[..., :3]
        # Where alpha is multiplied in, it is so already.
        whole = (
            colours + 255 * (1 - alpha[..., None])
            if extra[:1] == (1,)
            else on_white(colours, alpha)
        )
        content = tiff(
            v,
            bits=bits,
            photometric=2,
            planar=planar,
            order=order,
            deflate=deflate,
            fill_order=fill,
            extra=extra,
            tile=16 if cut == "tiles" else None,
            rows_per_strip=2 if cut == "strips" else None,
        )
        if not planar:
            readable = (bits == 8 and fill is None) or (bits == 16 and len(extra) < 2 and not fill)
            readable |= bits == 8 and fill == 2 and not extra
        else:
            kinds = {(), (0,), (1,), (2,), (0, 0)} if deflate else {(), (2,)}
            readable = fill is None and extra in kinds and bits in ({8, 16} if deflate else {8})
            readable |= fill == 2 and deflate and bits == 8 and not any(extra)
        name = (
            f"tiff-rgb-{bits}{'-planar' * planar}{order}{'-packed' * deflate}-{fill}-{extra}-{cut}"
        )
        yield Case(name, content, whole if readable else None, 3.1 if extra else 1.0)


def other_tiffs() -> Iterator[Case]:
    for bits, order, deflate, fill in itertools.product((1, 2, 4, 8), "<>", BOOL, (None, 2)):
        v = values(bits)
        palette = np.random.default_rng(bits).integers(0, 65536, (2**bits, 3))
        content = tiff(
            v,
            bits=bits,
            photometric=3,
            palette=palette.T.reshape(-1).tolist(),
            order=order,
            deflate=deflate,
            fill_order=fill,
        )
        readable = fill is None or bits == 8 or deflate
        name = f"tiff-palette-{bits}{order}{deflate}-{fill}"
        yield Case(name, content, palette[v[..., 0]] / 257 if readable else None)
    short = tiff(values(8), photometric=3, palette=list(range(256)) * 3)
    yield Case("tiff-palette-of-8-bits", short, None)
    for bits, planar, order, deflate in itertools.product((8, 16), BOOL, "<>", BOOL):
        how: dict[str, Any] = {"bits": bits, "planar": planar, "order": order, "deflate": deflate}
        name = f"{bits}{'-planar' * planar}{order}{'-packed' * deflate}"
        v = values(bits, 4)
        ink = levels(v, bits) / 255
        shown = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
        readable = not planar or bits == 8 or deflate
        content = tiff(v, photometric=5, **how)
        yield Case(f"tiff-cmyk-{name}", content, shown if readable else None, 2.1)
        for extra, photometric in itertools.product((0, 1, 2), (0, 1)):
            v = values(bits, 2)
            if extra == 1:
                v[..., 0] = np.minimum(v[..., 0], v[..., 1])
            shown = levels(v, bits)
            alpha = shown[..., 1] / 255
            if extra == 1:
                shown = shown[..., :1] + 255 * (1 - alpha[..., None])
            elif extra == 2:
                shown = on_white(shown[..., :1], alpha)
            readable = bits == 8 and photometric == 1 and not planar
            content = tiff(v, photometric=photometric, extra=[extra], **how)
            kind = f"tiff-grey-alpha-{extra}-{photometric}-{name}"
            yield Case(kind, content, grey(shown) if readable else None, 1.1)
    for planar, deflate in itertools.product(BOOL, BOOL):
        v = values(8, 3)
        y, blue, red = (v[..., i].astype(float) for i in range(3))
        red, blue = red - 128, blue - 128
        shown = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue])
        shown = np.clip(shown, 0, 255).transpose(1, 2, 0)
        name = f"{'-planar' * planar}{'-packed' * deflate}"
        content = tiff(v, photometric=6, planar=planar, deflate=deflate, more=[(530, 3, [1, 1])])
        yield Case(f"tiff-ycbcr{name}", content, None if planar and not deflate else shown, 2.0)
        content = tiff(v, photometric=8, planar=planar, deflate=deflate)
        yield Case(f"tiff-lab{name}", content, None)


FAMILIES = (pngs, bmps, pnms, grey_tiffs, colour_tiffs, other_tiffs)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_kind_shows_what_was_computed_by_hand_or_is_refused(family: Any) -> None:
    wrong = []
    for case in family():
        try:
            found = np.asarray(decode_image(case.content, name="x"), dtype=float)
        except DataError as error:
            if case.shown is not None:
                wrong.append(f"{case.name}: {error}")
            continue
        if case.shown is None:
            wrong.append(f"{case.name} is read, but nothing here says that it is read rightly")
        elif (most := np.abs(found - case.shown).max()) > case.within:
            wrong.append(f"{case.name}: {most:g} levels off")
    assert not wrong, "\n".join(wrong[:20])


LOSSLESS: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True, "exact": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG2000": {"irreversible": False},
}
WRITTEN = [
    *(("GIF", mode) for mode in ("1", "L")),
    *((kind, mode) for kind in ("WEBP", "AVIF") for mode in ("L", "RGB", "RGBA")),
    *(("JPEG2000", mode) for mode in ("L", "LA", "RGB", "RGBA", "I;16")),
]


@pytest.mark.parametrize(("kind", "mode"), WRITTEN)
def test_formats_that_only_pillow_can_write_come_back(kind: str, mode: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    deep = np.arange(32 * 24, dtype=np.uint16).reshape(24, 32) * 85
    colours = Image.fromarray(values(8, 4).astype(np.uint8)).resize((32, 24), 0)
    picture = Image.fromarray(deep) if mode == "I;16" else colours.convert(mode)
    stream = io.BytesIO()
    picture.save(stream, kind, **LOSSLESS.get(kind, {}))
    found = np.asarray(decode_image(stream.getvalue(), name="x"), dtype=float)
    whole = np.asarray(picture.convert("RGBA"), dtype=float)
    expected = on_white(whole[..., :3], whole[..., 3] / 255)
    if mode == "I;16":
        expected = grey(deep[..., None] / 257)
    assert np.abs(found - expected).max() <= (6 if kind == "AVIF" else 1.1)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_shows_its_colours(mode: str, progressive: bool) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    colours = np.stack([np.tile(ramp, (32, 1)), np.full((32, 64), 90, np.uint8)] * 2, axis=-1)
    picture = Image.fromarray(colours[..., :3]).convert(mode)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=100, subsampling=0, progressive=progressive)
    found = np.asarray(decode_image(stream.getvalue(), name="x"), dtype=float)
    assert np.abs(found - np.asarray(picture.convert("RGB"), float)).max() <= 4


TEXT = "word " * 400_000


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"zTXt", b"Comment\0\0" + zlib.compress(TEXT.encode()))],
        [(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(TEXT.encode()))],
        [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<broken")],
        [(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3_000_000)))],
        [(b"iCCP", b"profile\0\0no profile")],
        [(b"eXIf", b"b'Exif\\x00\\x00II*'")],
        [(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03")],
        [(b"eXIf", b"II*\0" + struct.pack("<IH", 1 << 30, 9))],
        [(b"tEXt", b"Raw profile type exif\0\nexif\n8\nnot-hex!\n")],
        [(b"acTL", b"\0"), (b"fcTL", b"\0"), (b"pHYs", b"\0"), (b"tIME", b"")],
        [(b"gAMA", b"\0\0"), (b"cHRM", b""), (b"sRGB", b""), (b"bKGD", b""), (b"sBIT", b"")],
    ],
    ids=lambda chunks: chunks[0][0].decode(),
)
def test_broken_metadata_do_not_refuse_a_sound_png(chunks: list[tuple[bytes, bytes]]) -> None:
    v = values(8, 3)
    found = decode_image(png(v, colour=2, extra=chunks), name="x")
    assert (np.asarray(found) == v).all()


def test_a_wrong_checksum_of_metadata_does_not_refuse_a_png_but_one_of_its_pixels_does() -> None:
    v = values(8, 3)
    content = png(v, colour=2, extra=[(b"tEXt", b"Comment\0hello")])
    assert (np.asarray(decode_image(content.replace(b"hello", b"jello"), name="x")) == v).all()
    at = content.index(b"IHDR") + 4 + 13  # the header's own
    with pytest.raises(DataError):
        decode_image(content[:at] + b"\0\0\0\0" + content[at + 4 :], name="x")


@pytest.mark.parametrize("kind", ["WEBP", "JPEG", "AVIF"])
@pytest.mark.parametrize("exif", [b"b'Exif\\x00\\x00II*'", b"\0\x08\0\x02\x01\x12\0\x03", b"II*\0"])
def test_broken_exif_does_not_refuse_a_sound_picture(kind: str, exif: bytes) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    picture = Image.fromarray(values(8, 3).astype(np.uint8))
    plain, marked = io.BytesIO(), io.BytesIO()
    picture.save(plain, kind)
    try:
        picture.save(marked, kind, exif=exif)
    except (OSError, ValueError, SyntaxError, struct.error):
        pytest.skip(f"Pillow writes no such EXIF into {kind}")
    found = decode_image(marked.getvalue(), name="x")
    assert found.tobytes() == decode_image(plain.getvalue(), name="x").tobytes()


def heic() -> bytes:
    return b"\0\0\0\x18ftypheic" + bytes(100)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (heic(), "HEIC photo: install .* pip install pillow-heif, or convert it to JPEG"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\n<svg xmlns=...", "SVG"),
        (b"<!doctype html><title>404", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (tiff(values(8) / 255.0, bits=64, photometric=1, sample_format=3), "a TIFF that cannot"),
        (bmp(values(2), bits=2, palette=bytes(16)), r"a BMP that cannot be read: .*depth \(2\)"),
        (b"\x89PNG\r\n\x1a\n", "a PNG that cannot be read"),
        (b"RIFF\x10\0\0\0WEBPVP8L cut off", "a WEBP that cannot be read"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "not an image of a supported format"),
        (b"\0\0\0\x1cftypavif" + bytes(20), "an AVIF that cannot be read|not an image of"),
    ],
)
def test_what_a_file_is_and_the_cure_are_said(
    content: bytes, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tuple(name for name in formats.formats() if name != "HEIF")
    monkeypatch.setattr(formats, "formats", lambda: plain)
    monkeypatch.setattr("biotune_optuna.data.decode.formats", lambda: plain)
    with pytest.raises(DataError, match=what) as caught:
        decode_image(content, name="x")
    assert "\n" not in str(caught.value)


def test_a_picture_that_pillow_has_opened_is_read_by_the_same_rules() -> None:
    from biotune_optuna.data.decode import to_rgb

    v = values(16)
    opened = Image.open(io.BytesIO(tiff(v, bits=16, photometric=0)))
    assert np.abs(np.asarray(to_rgb(opened), float) - grey(255 - v / 257)).max() <= 1
    v = values(4)
    content = png(v, bits=4, colour=0, transparency=struct.pack(">H", 3))
    alpha = (v[..., 0] != 3).astype(float)
    found = np.asarray(to_rgb(Image.open(io.BytesIO(content))), float)
    assert np.abs(found - on_white(grey(v * 17.0), alpha)).max() <= 1
