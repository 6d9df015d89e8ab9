"""Load images: paths, open files, Pillow images and arrays as upright 8-bit pixels."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO, Union

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError

if TYPE_CHECKING:
    from PIL import Image as Pillow

Image = Union[str, "os.PathLike[str]", BinaryIO, "Pillow.Image", NDArray[Any]]
# Pillow knows some forty formats and recognizes a file by its content, whatever its name: its decoder for EPS starts
# Ghostscript, and many others are hardly tested. Only these are tried.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
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
        return _decode(image, mode, "the Pillow image")
    if not isinstance(image, (str, os.PathLike)) and not hasattr(image, "read"):
        hint = "io.BytesIO(data) is an open file" if isinstance(image, (bytes, bytearray, memoryview)) else None
        raise ArgumentError(f"{type(image).__name__} is not an image", expected=SUPPORTED_INPUTS, hint=hint)
    name = repr(os.fspath(image)) if isinstance(image, (str, os.PathLike)) else "the open file"
    try:
        file = Pillow.open(image, formats=FORMATS)
    except Exception as error:
        raise _read_error(name, error) from error
    with file:
        return _decode(file, mode, name)


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


def _decode(image: Pillow.Image, mode: str, name: str) -> NDArray[Any]:
    try:
        return np.asarray(_to_eight_bits(_apply_exif_orientation(image)).convert(mode))
    except Exception as error:
        raise _read_error(name, error) from error


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
        return ArgumentError(f"{name} does not exist", actual=name)
    if type(error).__name__ == "UnidentifiedImageError":
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        return ArgumentError(f"cannot identify {name} as a {formats} image", expected=FORMATS, actual=name)
    hint = None
    if type(error).__name__ == "DecompressionBombError":
        hint = "make it smaller first; if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
    reason = str(error).partition("\n")[0] or type(error).__name__
    return ArgumentError(f"cannot read {name} as an image: {reason}", actual=name, hint=hint)
