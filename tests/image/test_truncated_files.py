"""Files that were cut off, or whose rest is zeros as an interrupted copy leaves it: noticed in each format."""

from __future__ import annotations

import io
import struct
from typing import Any, Callable, Dict

import numpy as np
import pytest
from PIL import Image

from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.image.io import load_image

SIZE = (163, 63)  # rows of a BMP that have padding
ROWS = 16  # of a strip of a TIFF
COARSE = np.random.RandomState(0).randint(0, 256, (16, 21, 3), np.uint8)
PHOTO = Image.fromarray(COARSE).resize(SIZE, Image.Resampling.BICUBIC)
PALETTE = PHOTO.quantize(64)
EXIF = Image.Exif()
EXIF[0x0112] = 1
FRAMES: Dict[str, Any] = {"save_all": True, "append_images": [PHOTO.rotate(90)]}


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def tiff(compression: str) -> bytes:
    """Return a TIFF that begins with its tags, as other programs write it, and ends with its strips."""
    is_raw = compression == "raw"  # for which older versions of Pillow write a single strip
    data = saved(PHOTO, "TIFF", compression=compression, tiffinfo={} if is_raw else {278: ROWS})
    tags = dict(Image.open(io.BytesIO(data)).tag_v2)
    strips = [data[offset : offset + size] for offset, size in zip(tags[273], tags[279])]
    if is_raw:
        pixels, strip_bytes = b"".join(strips), 3 * SIZE[0] * ROWS
        strips = [pixels[start : start + strip_bytes] for start in range(0, len(pixels), strip_bytes)]
        tags.update({273: (0,) * len(strips), 278: ROWS, 279: tuple(map(len, strips))})
    names = sorted(tag for tag in tags if not isinstance(tags[tag], (str, float)) and tag not in (282, 283))
    tags.update((tag, (tags[tag],)) for tag in names if isinstance(tags[tag], int))

    def written(strips_at: int) -> bytes:
        offsets = np.cumsum([strips_at, *map(len, strips[:-1])]).tolist()
        rest, entries, rest_at = b"", b"", 8 + 2 + 12 * len(names) + 4
        for tag in names:
            value = tuple(offsets) if tag == 273 else tags[tag]
            content = value if isinstance(value, bytes) else struct.pack(f"<{len(value)}I", *value)
            kind = 7 if isinstance(value, bytes) else 4
            at = content.ljust(4, b"\0") if len(content) <= 4 else struct.pack("<I", rest_at + len(rest))
            rest += content if len(content) > 4 else b""
            entries += struct.pack("<HHI", tag, kind, len(value)) + at
        return b"II*\0" + struct.pack("<IH", 8, len(names)) + entries + bytes(4) + rest

    return written(len(written(0))) + b"".join(strips)


def bmp_of_run_lengths() -> bytes:
    """Return a BMP of runs of 8 bits, each a pixel, with the marks at the end of each row and of the image."""
    pixels = np.asarray(PALETTE)[::-1]
    rows = b"".join(b"".join(bytes((1, pixel)) for pixel in row) + b"\0\0" for row in pixels.tolist())
    data = rows[:-2] + b"\0\1"
    colors = b"".join(struct.pack("<BBBx", *color) for color in np.arange(768).reshape(256, 3) % 256)
    offset = 14 + 40 + len(colors)
    header = struct.pack("<IiiHHIIiiII", 40, *SIZE, 1, 8, 1, len(data), 0, 0, 0, 0)
    return struct.pack("<2sIII", b"BM", offset + len(data), 0, offset) + header + colors + data


FILES: Dict[str, bytes] = {
    "JPEG": saved(PHOTO, "JPEG"),
    "PNG": saved(PHOTO, "PNG"),
    "PNG with a palette": saved(PALETTE, "PNG"),
    "animated PNG": saved(PHOTO, "PNG", **FRAMES),
    "GIF": saved(PHOTO, "GIF"),
    "animated GIF": saved(PHOTO, "GIF", **FRAMES),
    "WebP": saved(PHOTO, "WEBP"),
    "WebP without loss": saved(PHOTO, "WEBP", lossless=True),
    "WebP with EXIF": saved(PHOTO, "WEBP", exif=EXIF),
    "BMP": saved(PHOTO, "BMP"),
    "BMP with a palette": saved(PALETTE, "BMP"),
    "BMP of run lengths": bmp_of_run_lengths(),
    "TIFF": tiff("raw"),
    "TIFF, LZW": tiff("tiff_lzw"),
    "TIFF, deflate": tiff("tiff_adobe_deflate"),
    "TIFF, PackBits": tiff("packbits"),
    "TIFF, JPEG": tiff("jpeg"),
}
# Where zeros are pixels, or data that the decoder takes; the guide names these formats.
ZEROS_ARE_PIXELS = {"WebP", "WebP without loss", "BMP", "BMP with a palette", "TIFF"}


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(share * len(data))]


def zeroed(share: float) -> Callable[[bytes], bytes]:
    return lambda data: cut(share)(data).ljust(len(data), b"\0")


DAMAGE: Dict[str, Callable[[bytes], bytes]] = {
    "cut at 30 %": cut(0.3),
    "cut at 90 %": cut(0.9),
    "without its last byte": lambda data: data[:-1],
    "zeros from 30 %": zeroed(0.3),
    "zeros from 90 %": zeroed(0.9),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about tags that are cut off
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("form", FILES)
def test_a_file_that_is_not_complete_is_an_error(form: str, damage: str) -> None:
    if form in ZEROS_ARE_PIXELS and damage.startswith("zeros"):
        return
    data = DAMAGE[damage](FILES[form])
    with pytest.raises(ArgumentError, match=r"cannot (read|identify)"):
        load_image(io.BytesIO(data), "RGB")
    try:
        opened = Image.open(io.BytesIO(data))
    except Exception:
        return
    if not opened.tile:  # older versions of Pillow read all of a WebP file when they open it
        return
    with pytest.raises(ArgumentError, match="cannot read the Pillow image"):
        load_image(opened, "RGB")


@pytest.mark.parametrize("form", FILES)
def test_the_whole_file_is_read_and_what_follows_it_does_not_matter(form: str) -> None:
    expected = np.asarray(Image.open(io.BytesIO(FILES[form])).convert("RGB"))
    for rest in (b"", bytes(1000), b"\xff\xda an image of another program"):
        stream = io.BytesIO(FILES[form] + rest)
        assert np.array_equal(load_image(stream, "RGB"), expected)
        assert np.array_equal(load_image(Image.open(io.BytesIO(FILES[form] + rest)), "RGB"), expected)


def test_a_gif_may_have_zeros_between_its_blocks() -> None:
    data = FILES["GIF"]
    assert load_image(io.BytesIO(data[:-1] + b"\0\0;"), "RGB").shape == (SIZE[1], SIZE[0], 3)


def test_viewers_ignore_the_checksum_of_a_comment_in_a_png() -> None:
    data = FILES["PNG"]
    comment = struct.pack(">I", 9) + b"tEXtComment\0x" + bytes(4)
    assert load_image(io.BytesIO(data[:-12] + comment + data[-12:]), "RGB").shape == (SIZE[1], SIZE[0], 3)


def test_strips_that_overlap_take_no_longer_than_the_file() -> None:
    """A file may say that each of its many strips is all of it."""
    count = 200_000
    tags = [(256, 3, 1, 8), (257, 3, 1, count), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 1), (278, 3, 1, 1)]
    start = 10 + 12 * (len(tags) + 2) + 4
    size = start + 8 * count
    tags += [(273, 4, count, start), (279, 4, count, start + 4 * count)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    data = head + struct.pack("<I", 0) * count + struct.pack("<I", size) * count
    with pytest.raises(ArgumentError):
        load_image(io.BytesIO(data), "RGB")
