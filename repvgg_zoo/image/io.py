"""Pictures of any kind to upright 8-bit pixels: one way for files, open files, Pillow's images and arrays."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO, Union

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError

if TYPE_CHECKING:
    from PIL import Image as Pillow

Image = Union[str, "os.PathLike[str]", BinaryIO, "Pillow.Image", NDArray[Any]]
# Pillow knows some forty formats, and opens a file by its content, whatever its name: its decoder of EPS starts
# Ghostscript, and many others are hardly tested. Only these are tried.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
KINDS = "a path, an open file, a Pillow image, or a uint8 array (H, W, 3) in RGB or (H, W)"


def pixels_of(image: Any, colour: str) -> NDArray[Any]:
    """The pixels of one ``Image``: uint8, (H, W, 3) in RGB order, or (H, W) where ``colour`` is "L".

    Raises ArgumentError for what is no image, and for one that is damaged.
    """
    from PIL import Image as Pillow

    mode = "L" if colour == "L" else "RGB"
    if isinstance(image, np.ndarray):
        return np.asarray(_from_array(image).convert(mode))
    if isinstance(image, Pillow.Image):
        return _decoded(image, mode, "the Pillow image")
    if not isinstance(image, (str, os.PathLike)) and not hasattr(image, "read"):
        hint = "io.BytesIO(data) is an open file" if isinstance(image, (bytes, bytearray, memoryview)) else None
        raise ArgumentError(f"{type(image).__name__} is no image", expected=KINDS, hint=hint)
    name = repr(os.fspath(image)) if isinstance(image, (str, os.PathLike)) else "the open file"
    try:
        opened = Pillow.open(image, formats=FORMATS)
    except Exception as error:
        raise _unreadable(name, error) from error
    with opened:
        return _decoded(opened, mode, name)


def _from_array(image: NDArray[Any]) -> Pillow.Image:
    from PIL import Image as Pillow

    pixels = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not fits or 0 in pixels.shape:
        expected = "uint8 (H, W, 3) in RGB, or (H, W)"
        hint = None
        if image.ndim == 3 and image.shape[2] != 3 and image.shape[0] == 3:
            hint = "image.transpose(1, 2, 0) puts the channels last"
        elif image.ndim == 4:
            hint = "one image, or a list of images for predict"
        elif image.dtype != np.uint8:
            hint = "values of 0 to 255 as uint8, before any normalisation"
        raise ArgumentError(
            f"an image is {expected}, not {image.dtype} {image.shape}",
            expected=expected,
            actual=(str(image.dtype), image.shape),
            hint=hint,
        )
    return Pillow.fromarray(np.ascontiguousarray(pixels))


def _decoded(opened: Pillow.Image, mode: str, name: str) -> NDArray[Any]:
    try:
        return np.asarray(_in_eight_bits(_upright(opened)).convert(mode))
    except Exception as error:
        raise _unreadable(name, error) from error


def _upright(opened: Pillow.Image) -> Pillow.Image:
    """The picture as its EXIF orientation says it was held."""
    from PIL import ImageOps

    opened.load()  # what is wrong with the pixels is not to be taken for a fault of the EXIF
    try:
        return ImageOps.exif_transpose(opened) or opened
    except Exception:  # cameras and editors write broken EXIF, which says nothing against the pixels
        return opened


def _in_eight_bits(image: Pillow.Image) -> Pillow.Image:
    """Colours for palettes, and the high byte of 16-bit grey ones, as OpenCV reads them.

    Pillow's own conversion would make the latter white.
    """
    from PIL import Image as Pillow

    if image.mode == "P":
        return image.convert("RGBA")  # to RGB at once, Pillow would warn of the transparency that is lost
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"its values ({values.min():g} to {values.max():g}) are not of 8 or 16 bits")
    return Pillow.fromarray((values >> 8).astype(np.uint8))


def _unreadable(name: str, error: Exception) -> ArgumentError:
    # A decoder that meets damage raises whatever it happens to raise: OSError, SyntaxError, struct.error and more.
    if isinstance(error, FileNotFoundError):
        return ArgumentError(f"there is no file {name}", actual=name)
    if type(error).__name__ == "UnidentifiedImageError":
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        return ArgumentError(f"cannot identify {name} as a {formats} image", expected=FORMATS, actual=name)
    hint = None
    if type(error).__name__ == "DecompressionBombError":
        hint = "make it smaller first; if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
    reason = str(error).partition("\n")[0] or type(error).__name__
    return ArgumentError(f"cannot read {name} as an image: {reason}", actual=name, hint=hint)
