"""Load images: paths, open files, Pillow images and arrays as upright 8-bit pixels."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO, Optional, Union

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_local_path
from .._files import open_regular_file
from ..errors import ArgumentError, MissingFileError
from .completeness import check_complete

if TYPE_CHECKING:
    from PIL import Image as Pillow

Image = Union[str, "os.PathLike[str]", BinaryIO, "Pillow.Image", NDArray[Any]]
# Pillow knows some forty formats and recognizes a file by its content, whatever its name: its decoder for EPS starts
# Ghostscript, and many others are hardly tested. Only these are tried.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# Sizes are checked before anything is decoded, which takes up to 14 bytes for each pixel. Cameras have up to 61 million
# pixels, and a photograph at least a byte for 70 of them; drawings of up to 8 million may be as uniform as they like.
MAX_PIXELS = 1 << 26
FREE_PIXELS = 1 << 23
MAX_PIXELS_PER_BYTE = 256
TILE_TAGS = (322, 323)  # of TIFF: width and length of the tiles, each of which is decoded as a whole
SUPPORTED_INPUTS = "a path, an open file, a Pillow image, or a uint8 array (H, W, 3) in RGB or (H, W)"
SUPPORTED_ARRAYS = "uint8 (H, W, 3) in RGB, or (H, W)"


def load_image(image: Any, color_order: str) -> NDArray[Any]:
    """Return the pixels of one ``Image``: uint8, (H, W, 3) in RGB, or (H, W) where ``color_order`` is "L".

    Raises ArgumentError for anything that is not an image, and for a damaged one.
    """
    from PIL import Image as Pillow

    mode = "L" if color_order == "L" else "RGB"
    if isinstance(image, np.ndarray):
        return np.asarray(_from_array(image).convert(mode))
    if isinstance(image, Pillow.Image):
        _check_opened(image)
        return _decode(image, mode, "the Pillow image")
    if not isinstance(image, (str, os.PathLike)) and not hasattr(image, "read"):
        hint = "io.BytesIO(data) is an open file" if isinstance(image, (bytes, bytearray, memoryview)) else None
        raise ArgumentError(f"{type(image).__name__} is not an image", expected=SUPPORTED_INPUTS, hint=hint)
    is_path = isinstance(image, (str, os.PathLike))
    source = check_local_path("the image", image) if is_path else image
    name = repr(str(source)) if is_path else "the open file"
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(open_regular_file(source)) if is_path else source
            file = stack.enter_context(Pillow.open(stream, formats=FORMATS))
            size = _byte_count(stream)
            check_complete(file, stream)
        except Exception as error:
            raise _read_error(name, error) from error
        return _decode(file, mode, name, size)


def _from_array(array: NDArray[Any]) -> Pillow.Image:
    from PIL import Image as Pillow

    pixels = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    has_valid_shape = (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)) and 0 not in pixels.shape
    if pixels.dtype != np.uint8 or not has_valid_shape:
        hint = None
        if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
            hint = "image.transpose(1, 2, 0) puts the channels last"
        elif array.ndim == 4:
            hint = "one image, or a list of images for predict"
        elif array.dtype != np.uint8:
            hint = "values of 0 to 255 as uint8, before any normalization"
        raise ArgumentError(
            f"an image is {SUPPORTED_ARRAYS}, not {array.dtype} {array.shape}",
            expected=SUPPORTED_ARRAYS,
            actual=(str(array.dtype), array.shape),
            hint=hint,
        )
    return Pillow.fromarray(np.ascontiguousarray(pixels))


def _check_opened(image: Pillow.Image) -> None:
    """Raise ArgumentError for an image of Pillow that is still to be decoded, from a file that is not complete."""
    stream = getattr(image, "fp", None)
    if stream is None or not getattr(image, "tile", None):  # it has its pixels
        return
    try:
        check_complete(image, stream)
    except Exception as error:
        raise _read_error("the Pillow image", error) from error


def _decode(image: Pillow.Image, mode: str, name: str, size: Optional[int] = None) -> NDArray[Any]:
    _check_pixels(image, name, size)
    try:
        return np.asarray(_to_eight_bits(_apply_exif_orientation(image)).convert(mode))
    except Exception as error:
        raise _read_error(name, error) from error


def _byte_count(stream: Any) -> Optional[int]:
    """Return the length of an open file, or None if it is unknown."""
    try:
        position = stream.tell()
        end: int = stream.seek(0, os.SEEK_END)
        stream.seek(position)
    except Exception:  # whatever an object that Pillow can read from raises
        return None
    return end


def _check_pixels(image: Pillow.Image, name: str, size: Optional[int]) -> None:
    """Raise ArgumentError if an image, or a tile of it, declares more pixels than a file of ``size`` bytes may have."""
    width, height = image.size
    tags = getattr(image, "tag_v2", {})
    sides = [value for tag in TILE_TAGS for value in [tags.get(tag, 0)] if isinstance(value, int)]
    pixels = max(width * height, math.prod(sides) if len(sides) == len(TILE_TAGS) else 0)
    limit = MAX_PIXELS if size is None else min(MAX_PIXELS, max(FREE_PIXELS, MAX_PIXELS_PER_BYTE * size))
    if pixels > limit:
        raise ArgumentError(
            f"{name} declares {pixels} pixels" + ("" if size is None else f" in {size} bytes") + ", which may be a"
            " decompression bomb",
            expected=f"at most {limit}",
            actual=pixels,
            hint="make it smaller first; if you trust it, pass its pixels as an array",
        )


def _apply_exif_orientation(image: Pillow.Image) -> Pillow.Image:
    from PIL import ImageOps

    image.load()  # here, so that an error in the pixels is not taken for one in the EXIF
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # cameras and editors write broken EXIF; the pixels are fine
        return image


def _to_eight_bits(image: Pillow.Image) -> Pillow.Image:
    """Convert palettes to colors, and 16-bit grayscale to its high byte, as OpenCV reads it.

    Pillow's own conversion would clip 16-bit values, which makes nearly all of them white.
    """
    from PIL import Image as Pillow

    if image.mode == "P":
        return image.convert("RGBA")  # converting to RGB directly, Pillow warns about the transparency that is lost
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"its values ({values.min():g} to {values.max():g}) are not of 8 or 16 bits")
    return Pillow.fromarray((values >> 8).astype(np.uint8))


def _read_error(name: str, error: Exception) -> ArgumentError:
    # A decoder may raise almost anything for a damaged file: OSError, SyntaxError, struct.error and more.
    if isinstance(error, FileNotFoundError):
        return MissingFileError(f"{name} does not exist", path=name.strip("'"), actual=name, hint="check the path")
    if type(error).__name__ == "UnidentifiedImageError":
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        return ArgumentError(f"cannot identify {name} as a {formats} image", expected=FORMATS, actual=name)
    hint = None
    if type(error).__name__.startswith("DecompressionBomb"):  # an error, or a warning that the program makes one
        hint = "make it smaller first; if you trust it, pass its pixels as an array"
    reason = str(error).partition("\n")[0] or type(error).__name__
    return ArgumentError(f"cannot read {name} as an image: {reason}", actual=name, hint=hint)
