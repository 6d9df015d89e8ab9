"""Files of images that were cut off, or whose rest is still zeros as an interrupted copy leaves it, by their structure.

Decoders make up what is missing, as black, gray or transparent pixels, or stop at the first frame. Only what each
format says about its own extent is checked here; nothing is decoded.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any, Callable, Dict

if TYPE_CHECKING:
    from PIL import Image as Pillow

PNG_SIGNATURE = 8
COMPRESSED_BMP = (1, 2)  # run lengths of 8 and of 4 bits
TIFF_DATA = ((273, 279), (324, 325))  # tags of the offsets and the sizes of the strips, and of the tiles
COMPRESSION, JPEG, DEFLATE = 259, 7, (8, 32946)  # a tag and its values
JPEG_END = b"\xff\xd9"
MAX_PADDING = 64  # behind the end of a JPEG in a TIFF


def check_complete(image: Pillow.Image, stream: Any) -> None:
    """Raise ValueError if the file of an image that Pillow has opened is not complete; the stream stays where it is."""
    check = CHECKS.get(image.format or "")
    if check is None:
        return
    position = stream.tell()
    stream.seek(0)
    data = stream.read()
    stream.seek(position)
    try:
        is_complete = check(data, image)
    except (IndexError, struct.error):  # it ends in the middle of a field
        is_complete = False
    if not is_complete:
        raise ValueError("image file is truncated or damaged: a part of it, or its end, is missing")


def is_complete_png(data: bytes, image: Pillow.Image) -> bool:
    """Return whether all chunks are there, up to the last one, and those of the image have the CRC that they state.

    Viewers ignore the CRC of other chunks.
    """
    start = PNG_SIGNATURE
    while True:
        size, name = struct.unpack_from(">I4s", data, start)
        end = start + 8 + size
        (checksum,) = struct.unpack_from(">I", data, end)
        is_critical = not name[0] & 0x20
        if is_critical and zlib.crc32(memoryview(data)[start + 4 : end]) != checksum:
            return False
        if name == b"IEND":
            return True
        start = end + 4


def is_complete_jpeg(data: bytes, image: Pillow.Image) -> bool:
    """Return whether the end is there. After the header, FF D9 is nothing but the end of the image."""
    start = 2
    while data[start] == 0xFF and data[start + 1] != 0xDA:  # a segment before the first scan
        is_fill = data[start + 1] == 0xFF
        start += 1 if is_fill else 2 + struct.unpack_from(">H", data, start + 2)[0]
    return data.find(JPEG_END, start) >= 0


def is_complete_webp(data: bytes, image: Pillow.Image) -> bool:
    """Return whether the chunks fill the size that the header states; a chunk's name has no zeros.

    The content of a chunk may be any bytes, so zeros in it are not noticed.
    """
    end: int = 8 + struct.unpack_from("<I", data, 4)[0]
    start = 12
    while start < end:
        name, size = struct.unpack_from("<4sI", data, start)
        if 0 in name:
            return False
        start += 8 + size + size % 2
    return end <= len(data) and start <= end + 1  # some writers do not count the padding of the last chunk


def is_complete_gif(data: bytes, image: Pillow.Image) -> bool:
    """Return whether all blocks are there, up to the trailer; some encoders write zeros between blocks."""
    start = 13 + _color_table_size(data[10])
    while data[start] != 0x3B:
        if data[start] == 0x21:  # an extension
            start = _skip_sub_blocks(data, start + 2)
        elif data[start] == 0x2C:  # a frame
            start = _skip_sub_blocks(data, start + 11 + _color_table_size(data[start + 9]))
        elif data[start] == 0:
            start += 1
        else:
            return False
    return True


def _color_table_size(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_sub_blocks(data: bytes, start: int) -> int:
    while data[start]:
        start += 1 + data[start]
    return start + 1


def is_complete_bmp(data: bytes, image: Pillow.Image) -> bool:
    """Return whether all rows are there, or the mark at the end of run lengths.

    The size of the file in its header is often wrong. Zeros are black pixels.
    """
    offset: int
    end: int
    offset, header = struct.unpack_from("<II", data, 10)
    if header == 12:  # of OS/2, whose bits are never compressed
        bits, compression, size = struct.unpack_from("<H", data, 24)[0], 0, 0
    else:
        bits, compression, size = struct.unpack_from("<HII", data, 28)
    if compression in COMPRESSED_BMP:
        end = offset + size if size else len(data)
        return end <= len(data) and data[offset:end].rstrip(b"\0").endswith(b"\0\x01")
    width, height = image.size
    end = offset + (width * bits + 31) // 32 * 4 * height
    return end <= len(data)


def is_complete_tiff(data: bytes, image: Pillow.Image) -> bool:
    """Return whether all strips or tiles are inside the file, and those that are compressed have their end.

    Zeros in others are pixels.
    """
    tags = getattr(image, "tag_v2", {})
    for offsets, sizes in TIFF_DATA:
        for offset, size in zip(tags.get(offsets, ()), tags.get(sizes, ())):
            end = offset + size
            if end > len(data):
                return False
            if tags.get(COMPRESSION) == JPEG and JPEG_END not in data[max(offset, end - MAX_PADDING) : end]:
                return False
            if tags.get(COMPRESSION) in DEFLATE and not any(data[end - 4 : end]):  # its checksum
                return False
    return True


# By the name that Pillow gives a format; MPO is a JPEG with more images behind its end.
CHECKS: Dict[str, Callable[[bytes, Pillow.Image], bool]] = {
    "PNG": is_complete_png,
    "JPEG": is_complete_jpeg,
    "MPO": is_complete_jpeg,
    "WEBP": is_complete_webp,
    "GIF": is_complete_gif,
    "BMP": is_complete_bmp,
    "TIFF": is_complete_tiff,
}
