"""Preprocess an image into a network's input, as the publisher of its checkpoint does for evaluation."""

from __future__ import annotations

from typing import Any, Callable, Mapping, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from .._requirements import needed_by
from ..errors import ArgumentError
from ..registry.api import find_default_checkpoint
from ..registry.names import find_checkpoint
from ..registry.specs import CheckpointSpec, Preprocessing
from .io import Image, load_image

# An image of 1 x 100000 would have 26 million columns once its short side is 256.
MAX_RESIZED_PIXELS = 1 << 26
ROUNDING: Mapping[str, Callable[[float], int]] = {"floor": int, "round": round}


def preprocess(model_or_name: Any) -> Callable[[Image], NDArray[Any]]:
    """Return the function that turns an image into this network's input: (C, image_size, image_size) float32.

    An image is a path, an open file, a Pillow image, or a uint8 array (H, W, 3) in RGB order or (H, W). It is rotated
    by its EXIF orientation, resized so that its short side is ``resize``, center-cropped, put into the checkpoint's
    color order, scaled to 0..1 and normalized. Resizing uses the publisher's library (Pillow or OpenCV,
    ``Preprocessing.backend``), as the two differ when they shrink. Transparency is dropped, of an animation the first
    frame is used, of 16-bit grayscale the high byte. A name without a tag, and a network with random weights, use the
    variant's default checkpoint.

    Raises UnknownModelError, NoWeightsError for a variant without pretrained weights, and ArgumentError for anything
    that is not an image.
    """
    preprocessing = checkpoint_of(model_or_name).preprocessing
    return lambda image: preprocess_image(image, preprocessing)


def preprocess_image(image: Image, preprocessing: Preprocessing) -> NDArray[Any]:
    """Return one image as (C, image_size, image_size) float32."""
    pixels = load_image(image, preprocessing.color_order)
    height, width = pixels.shape[:2]
    size = target_size(height, width, preprocessing)
    if size[0] * size[1] > MAX_RESIZED_PIXELS:
        raise ArgumentError(
            f"an image of {width} x {height} pixels is too narrow to be resized",
            expected=f"at most {MAX_RESIZED_PIXELS} pixels when the short side is {preprocessing.resize}",
            actual=size[0] * size[1],
            hint="crop it first",
        )
    resize = _resize_with_pillow if preprocessing.backend == "pillow" else _resize_with_opencv
    pixels = resize(pixels, size, preprocessing.interpolation)
    crop = preprocessing.image_size
    top, left = (ROUNDING[preprocessing.crop_rounding]((length - crop) / 2) for length in pixels.shape[:2])
    pixels = pixels[top : top + crop, left : left + crop]
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    pixels = pixels[:, :, ::-1] if preprocessing.color_order == "BGR" else pixels
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    return np.ascontiguousarray(((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1))


def checkpoint_of(model_or_name: Any) -> CheckpointSpec:
    """Return the checkpoint of a name or a network: its own, or its variant's default."""
    if isinstance(model_or_name, str):
        return find_default_checkpoint(model_or_name)
    checkpoint: Optional[CheckpointSpec] = getattr(model_or_name, "checkpoint", None)
    if checkpoint is not None:
        return checkpoint
    spec = getattr(model_or_name, "spec", None)
    if spec is None:
        raise ArgumentError(
            f"{type(model_or_name).__name__} is neither a name nor a network that repvgg_zoo.create made",
            expected="a name such as 'RepVGG_A0', or a network",
        )
    return find_checkpoint(spec)


def target_size(height: int, width: int, preprocessing: Preprocessing) -> Tuple[int, int]:
    """Return (height, width) with ``resize`` as the short side and the aspect ratio kept, in whole pixels."""
    short, long = min(height, width), max(height, width)
    # In the publishers' own order of operations, for the same rounding in the last bit.
    if preprocessing.resize_rounding == "round":
        length = round(long * (preprocessing.resize / short))
    else:
        length = int(preprocessing.resize * long / short)
    return (preprocessing.resize, length) if height <= width else (length, preprocessing.resize)


def _resize_with_pillow(pixels: NDArray[Any], size: Tuple[int, int], interpolation: str) -> NDArray[Any]:
    from PIL import Image as Pillow

    method = Pillow.Resampling.BILINEAR if interpolation == "bilinear" else Pillow.Resampling.BICUBIC
    return np.asarray(Pillow.fromarray(pixels).resize(size[::-1], method))


def _resize_with_opencv(pixels: NDArray[Any], size: Tuple[int, int], interpolation: str) -> NDArray[Any]:
    with needed_by("resizing as this publisher does"):
        import cv2

    method = cv2.INTER_LINEAR if interpolation == "bilinear" else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size[::-1], interpolation=method))
