"""Images of every kind are loaded as the pixels that a viewer shows, or end in ArgumentError."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.image.io import FORMATS, load_image

RANDOM = np.random.RandomState(0)
GRAY = RANDOM.randint(0, 256, (12, 20), dtype=np.uint8)
COLOR = RANDOM.randint(0, 256, (12, 20, 3), dtype=np.uint8)
ALPHA = np.dstack([COLOR, GRAY])


def as_rgb(gray):
    return np.repeat(gray[:, :, None], 3, axis=2)


def palette():
    image = Image.new("P", (20, 12))
    image.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
    image.putdata(GRAY.ravel().tolist())
    return image


PALETTE = np.stack([GRAY, 255 - GRAY, GRAY // 2], axis=2)
SIXTEEN = GRAY.astype(np.uint16) * 256 + 77

# name: (the image, how to save it, the pixels in RGB)
KINDS = {
    "RGB": (Image.fromarray(COLOR), {"format": "PNG"}, COLOR),
    "gray": (Image.fromarray(GRAY), {"format": "PNG"}, as_rgb(GRAY)),
    "gray with alpha": (Image.fromarray(np.dstack([GRAY, GRAY]), "LA"), {"format": "PNG"}, as_rgb(GRAY)),
    "alpha: colors kept": (Image.fromarray(ALPHA, "RGBA"), {"format": "PNG"}, COLOR),
    "palette": (palette(), {"format": "PNG"}, PALETTE),
    "transparent palette": (palette(), {"format": "PNG", "transparency": bytes(range(256))}, PALETTE),
    "one bit": (Image.fromarray(GRAY > 99), {"format": "PNG"}, as_rgb(np.where(GRAY > 99, 255, 0).astype(np.uint8))),
    "16 bits PNG": (Image.fromarray(SIXTEEN), {"format": "PNG"}, as_rgb(GRAY)),
    "16 bits TIFF": (Image.fromarray(SIXTEEN), {"format": "TIFF"}, as_rgb(GRAY)),
    "32 bits, 16 used": (Image.fromarray(SIXTEEN.astype(np.int32)), {"format": "TIFF"}, as_rgb(GRAY)),
    "animated GIF: first frame": (
        palette(),
        {"format": "GIF", "save_all": True, "append_images": [Image.new("P", (20, 12), 3)]},
        PALETTE,
    ),
    "animated PNG: first frame": (
        Image.fromarray(COLOR),
        {"format": "PNG", "save_all": True, "append_images": [Image.new("RGB", (20, 12))]},
        COLOR,
    ),
    "BMP": (Image.fromarray(COLOR), {"format": "BMP"}, COLOR),
    "WebP": (Image.fromarray(COLOR), {"format": "WEBP", "lossless": True}, COLOR),
    "CMYK TIFF": (
        Image.fromarray(np.dstack([255 - COLOR, np.zeros_like(GRAY)]), "CMYK"),
        {"format": "TIFF"},
        COLOR,
    ),
}


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    file.seek(0)
    return file


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source_kind", ["path", "text", "open file", "Pillow image"])
def test_an_image_is_loaded_as_its_visible_pixels(kind, source_kind, tmp_path):
    image, options, expected = KINDS[kind]
    data = saved(image, **options).getvalue()
    (tmp_path / "image").write_bytes(data)
    path = tmp_path / "image"
    source = {
        "path": path,
        "text": str(path),
        "open file": io.BytesIO(data),
        "Pillow image": Image.open(io.BytesIO(data)),
    }
    pixels = load_image(source[source_kind], "RGB")
    assert (pixels.dtype, pixels.shape) == (np.uint8, (12, 20, 3))
    assert np.array_equal(pixels, expected)


def test_every_kind_of_image_can_be_loaded_as_grayscale():
    luma = np.asarray(Image.fromarray(COLOR).convert("L"))
    for image in (COLOR, Image.fromarray(COLOR), saved(Image.fromarray(ALPHA, "RGBA"), format="PNG")):
        assert np.array_equal(load_image(image, "L"), luma)
    for gray in (GRAY, GRAY[:, :, None], Image.fromarray(SIXTEEN)):
        assert np.array_equal(load_image(gray, "L"), GRAY)
        assert np.array_equal(load_image(gray, "RGB"), as_rgb(GRAY))


def test_an_array_need_not_be_contiguous_or_writable():
    view = COLOR[::-1, ::2, ::-1]
    view.setflags(write=False)
    assert np.array_equal(load_image(view, "RGB"), view)


ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
    0: lambda a: a,
    99: lambda a: a,
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_a_photo_is_rotated_by_its_exif_orientation(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(Image.fromarray(COLOR), format=form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    assert np.array_equal(load_image(file, "RGB"), ORIENTATIONS[orientation](COLOR))


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0" + b"\xff" * 40, b"nonsense", b"MM\0*\0\0\0\x08\0\x01"],
)
def test_broken_exif_is_ignored(exif):
    assert np.array_equal(load_image(saved(Image.fromarray(COLOR), format="PNG", exif=exif), "RGB"), COLOR)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(width, height):
    """Return a PNG of a few bytes whose header promises this many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


JPEG = saved(Image.fromarray(np.tile(COLOR, (10, 10, 1))), format="JPEG").getvalue()
PNG = saved(Image.fromarray(COLOR), format="PNG").getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    {
        "empty": (b"", "cannot identify"),
        "text": (b"GIF, or so it says", "cannot identify"),
        "truncated JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
        "truncated PNG": (PNG[:200], "truncated"),
        "PNG with a broken chunk": (PNG[:60] + b"\xff" * 4 + PNG[64:], "broken|checksum|corrupt|CRC|truncated"),
        "decompression bomb": (bomb(50_000, 50_000), "decompression bomb"),
        "empty PNG": (bomb(40, 40), "truncated|broken"),
        "floats": (saved(Image.fromarray(GRAY.astype(np.float32)), format="TIFF").getvalue(), "not of 8 or 16 bits"),
        "negative": (saved(Image.fromarray(-SIXTEEN.astype(np.int32)), format="TIFF").getvalue(), "not of 8 or 16"),
    }.values(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_or_odd_file_is_an_argument_error(data, says, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(data)
    with pytest.raises(ArgumentError, match=f"(?i){says}") as caught:
        load_image(path, "RGB")
    assert str(path) in str(caught.value)
    with pytest.raises(ArgumentError, match=f"(?i){says}"):
        load_image(io.BytesIO(data), "RGB")


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 12
%%EndComments
showpage
%%EOF
"""
# Pillow opens these by their headers and looks at the pixels later.
HEADERS = {
    "EPS": EPS,
    "PSD": b"8BPS" + struct.pack(">H6xHIIHHIIIH", 1, 3, 12, 20, 8, 3, 0, 0, 0, 0) + bytes(720),
    "FLI": struct.pack("<IHHHHHHI", 128, 0xAF12, 1, 20, 12, 8, 3, 50) + bytes(600),
}
SAVED = ("PPM", "ICO", "TGA", "PCX", "SGI", "IM", "DDS", "ICNS")
SQUARE = Image.new("RGB", (32, 32), (200, 30, 90))
OTHERS = {**HEADERS, **{form: saved(SQUARE, format=form).getvalue() for form in SAVED}}


@pytest.mark.parametrize("form", OTHERS)
def test_other_formats_of_pillow_are_refused_whatever_their_name(form, tmp_path, monkeypatch):
    with Image.open(io.BytesIO(OTHERS[form])) as opened:
        assert opened.format == form
    mark, programs = tmp_path / "started", tmp_path / "bin"
    programs.mkdir()
    for program in ("gs", "gswin32c", "gswin64c"):  # Ghostscript, which Pillow starts for EPS
        (programs / program).write_text(f"#!/bin/sh\ntouch '{mark}'\nexit 1\n")
        (programs / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    path = tmp_path / "cat.jpg"
    path.write_bytes(OTHERS[form])
    for image in (path, io.BytesIO(OTHERS[form])):
        with pytest.raises(ArgumentError, match="a PNG, JPEG, WEBP, GIF, BMP or TIFF image") as caught:
            load_image(image, "RGB")
        assert caught.value.expected == FORMATS
    assert not mark.exists()


@pytest.mark.parametrize("form", FORMATS)
def test_each_supported_format_is_read_whatever_its_name(form, tmp_path):
    path = tmp_path / "image.dat"
    path.write_bytes(saved(Image.fromarray(COLOR), format=form).getvalue())
    assert load_image(path, "RGB").shape == COLOR.shape


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([JPEG, PNG]), st.data())
def test_any_damage_ends_in_pixels_or_in_argument_error(data, draw):
    offset = draw.draw(st.integers(0, len(data) - 1))
    damage = draw.draw(st.binary(min_size=1, max_size=8))
    try:
        pixels = load_image(io.BytesIO(data[:offset] + damage + data[offset + len(damage) :]), "RGB")
    except ArgumentError:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10, 3), np.float32),
        np.zeros((10, 10), np.uint16),
        np.zeros((3, 10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((1, 10, 10, 3), np.uint8),
        np.zeros((0, 10, 3), np.uint8),
        np.zeros((10,), np.uint8),
        "no such file.png",
        "a null byte\0.png",
        ".",
        __file__,
        5,
        None,
        JPEG,
        [COLOR],
    ],
    ids=lambda image: str(getattr(image, "shape", type(image).__name__)),
)
def test_anything_else_is_an_argument_error_with_a_short_message(image):
    with pytest.raises(ArgumentError) as caught:
        load_image(image, "RGB")
    assert len(str(caught.value)) < 500


def jpeg(**options) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.RandomState(0).randint(0, 256, (64, 80, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


def with_thumbnail(data: bytes) -> bytes:
    """A JPEG whose EXIF segment has a JPEG in it, with an end of its own."""
    segment = b"Exif\0\0" + jpeg(quality=1)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("kind", [{}, {"progressive": True}, {"thumbnail": True}], ids=str)
def test_a_download_that_ends_in_zeros_is_not_decoded(kind, share):
    data = with_thumbnail(jpeg()) if kind.get("thumbnail") else jpeg(**kind)
    end = int(share * (len(data) - 2))
    with pytest.raises(ArgumentError, match=r"truncated|cannot identify"):
        load_image(io.BytesIO(data[:end] + bytes(len(data) - end)), "RGB")


@pytest.mark.parametrize("rest", [bytes(1000), b"\xff\xda an image of another program", b"\xff"], ids=str)
def test_what_follows_the_end_of_a_jpeg_does_not_matter(rest):
    data = with_thumbnail(jpeg())
    assert np.array_equal(load_image(io.BytesIO(data + rest), "RGB"), load_image(io.BytesIO(jpeg()), "RGB"))
