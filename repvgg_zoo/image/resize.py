"""Resizing as the publishers' libraries do it, to the last bit: Pillow's own, and OpenCV's computed with NumPy."""

from __future__ import annotations

from typing import Any, Tuple

import numpy as np
from numpy.typing import NDArray

from .._requirements import needed_by

BITS = 11  # of OpenCV's fixed-point weights


def resize_with_pillow(pixels: NDArray[Any], size: Tuple[int, int], interpolation: str) -> NDArray[Any]:
    """Resize uint8 pixels (H, W) or (H, W, C) to ``size``, (height, width), with an antialiasing filter."""
    from PIL import Image

    method = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], method))


def resize_with_opencv(pixels: NDArray[Any], size: Tuple[int, int], interpolation: str) -> NDArray[Any]:
    """Resize uint8 pixels (H, W) or (H, W, C) to ``size``, (height, width), without antialiasing.

    The results are those of OpenCV's ``resize``. Bilinear interpolation is computed here, since OpenCV is not installed
    everywhere; raises DependencyError for bicubic interpolation where it is not.
    """
    if interpolation == "bilinear":
        return _bilinear(pixels, *size)
    with needed_by("bicubic interpolation as OpenCV does it"):
        import cv2

    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size[::-1], interpolation=cv2.INTER_CUBIC))


def _bilinear(pixels: NDArray[Any], new_height: int, new_width: int) -> NDArray[Any]:
    height, width = pixels.shape[:2]
    if (height, width) == (new_height, new_width):
        return pixels
    values = pixels.reshape(height, width, -1).astype(np.int32)
    if (height, width) == (2 * new_height, 2 * new_width):  # OpenCV takes the mean of the four pixels
        sums = values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]
        result = (sums + 2) >> 2
    else:
        left, fractions = _positions(width, new_width)
        # Beyond the border, columns are clamped before the weights are computed, rows afterwards.
        fractions[(left < 0) | (left >= width - 1)] = 0
        rows = _interpolate(values.transpose(1, 0, 2), left, fractions, shift=0).transpose(1, 0, 2)
        result = (_interpolate(rows >> 4, *_positions(height, new_height), shift=16) + 2) >> 2
    resized: NDArray[Any] = result.astype(np.uint8)
    return resized.reshape(new_height, new_width, *pixels.shape[2:])


def _positions(length: int, new_length: int) -> Tuple[NDArray[Any], NDArray[Any]]:
    """Return, for each new pixel, the index of the pixel before it and how far it is from that one, in float32."""
    positions = ((np.arange(new_length) + 0.5) * (length / new_length) - 0.5).astype(np.float32)
    before = np.floor(positions)
    return before.astype(np.int64), positions - before


def _interpolate(values: NDArray[Any], before: NDArray[Any], fractions: NDArray[Any], shift: int) -> NDArray[Any]:
    """Interpolate along the first axis with weights of ``BITS`` bits; each product is shifted before they are added."""
    last = len(values) - 1
    products = [
        np.rint(weights * np.float32(1 << BITS)).astype(np.int32)[:, None, None] * values[np.clip(index, 0, last)]
        for index, weights in ((before, np.float32(1) - fractions), (before + 1, fractions))
    ]
    result: NDArray[Any] = (products[0] >> shift) + (products[1] >> shift)
    return result
