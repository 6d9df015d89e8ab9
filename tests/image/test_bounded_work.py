"""An image takes memory in proportion to its file: what it declares is compared with its size before it is decoded.

The kind: formats that compress a thousand times or more, and headers that ask for more memory than the pixels need.
"""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Tuple

import numpy as np
import pytest
from PIL import Image

from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.image.io import FREE_PIXELS, MAX_PIXELS, load_image
from repvgg_zoo.image.preprocess import preprocess_image
from repvgg_zoo.registry.api import find_default_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
PREPROCESSING = find_default_checkpoint("RepVGG_A0").preprocessing


def png(width: int, height: int, color: int, depth: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = bytes(1 + (width * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color] * depth + 7) // 8)
    compressor = zlib.compressobj(9)
    rows = b"".join(compressor.compress(row * min(64, height - first)) for first in range(0, height, 64))
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(6)) if color == 3 else b""
    pixels = chunk(b"IDAT", rows + compressor.flush())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + pixels + chunk(b"IEND", b"")


def tiff(tile: int) -> bytes:
    """One pixel in a tile of ``tile`` x ``tile``, deflated."""
    data = zlib.compress(bytes(tile * tile))
    tags = [(256, 1), (257, 1), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile), (324, 8)]
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in [*tags, (325, len(data))])
    return b"II*\0" + struct.pack("<L", 8 + len(data)) + data + struct.pack("<H", len(tags) + 1) + entries + bytes(4)


def gif(width: int, height: int) -> bytes:
    """A frame that is larger than the animation's screen."""
    frame = b"," + struct.pack("<4HB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + struct.pack("<2HBBB", 1, 1, 0x80, 0, 0) + bytes(6) + frame + b";"


BOMBS = {
    "a palette of one bit": png(13_300, 13_300, 3, 1),
    "red, green, blue and alpha": png(9_000, 9_000, 6, 8),
    "gray of 16 bits": png(6_000, 6_000, 0, 16),
    "a line": png(FREE_PIXELS + 1, 1, 0, 1),
    "a TIFF of one pixel": tiff(16_384),
    "a GIF with a frame beyond its screen": gif(8_000, 8_000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_an_image_that_declares_too_much_is_refused_before_it_is_decoded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(BOMBS[kind])
    code = f"""
import resource, sys
import numpy, PIL.Image
from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.image.io import load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_image({str(path)!r}, "RGB")
except ArgumentError as error:
    assert "decompression bomb" in str(error) and error.hint
else:
    sys.exit("it was decoded")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 << 10  # kB
    with pytest.raises(ArgumentError, match="decompression bomb"):
        load_image(io.BytesIO(path.read_bytes()), "RGB")


def test_an_open_image_of_pillow_is_checked_as_well(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(png(9_000, 9_000, 0, 1))
    assert MAX_PIXELS < 9_000 * 9_000
    with Image.open(tmp_path / "image.png") as opened, pytest.raises(ArgumentError, match="decompression bomb"):
        load_image(opened, "RGB")


@pytest.mark.parametrize("size", [(2_048, 4_096), (4_000, 3_000)], ids=str)
def test_a_large_image_of_usual_content_is_read(tmp_path: Path, size: Tuple[int, int]) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (size[1] // 16, size[0] // 16, 3)).astype(np.uint8)
    Image.fromarray(noise).resize(size).save(tmp_path / "image.jpg", quality=50)
    assert load_image(tmp_path / "image.jpg", "RGB").shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir],
    ids=["a FIFO", "a device", "a folder"],
)
def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path, make) -> None:
    make(tmp_path / "image.png")
    with pytest.raises(ArgumentError, match=r"not a regular file|folder"):
        load_image(tmp_path / "image.png", "RGB")


def test_an_image_that_would_grow_when_it_is_resized_is_refused() -> None:
    with pytest.raises(ArgumentError, match="too narrow"):
        preprocess_image(np.zeros((1, 1_000_000), np.uint8), PREPROCESSING)
