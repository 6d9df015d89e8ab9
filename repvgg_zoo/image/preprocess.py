"""Preprocessing: a picture to a network's input, as the publisher of its checkpoint evaluated it."""

from __future__ import annotations

from typing import Any, Callable, Mapping, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..registry.api import find_default_checkpoint
from ..registry.names import find_checkpoint
from ..registry.specs import CheckpointSpec, Preprocessing
from .io import Image, pixels_of

# A picture of 1 x 100000 would have 26 million columns once its short side is 256.
MAX_RESIZED = 1 << 26
ROUND: Mapping[str, Callable[[float], int]] = {"floor": int, "round": round}


def preprocess(model_or_name: Any) -> Callable[[Image], NDArray[Any]]:
    """The function that turns an image into the input of this network: (C, image_size, image_size) float32.

    An image is a path, an open file, a Pillow image, or a uint8 array (H, W, 3) in RGB order or (H, W). It is turned
    upright by its EXIF orientation, resized so that its short side is ``resize``, cropped at the centre, put into the
    checkpoint's colour order, scaled to 0..1 and normalised. Resizing is the publisher's (Pillow or OpenCV,
    ``Preprocessing.backend``), as the two differ when they shrink. Of a transparent picture the colours count, of an
    animated one the first frame, of a 16-bit grey one the high byte. A name without a tag, and a network with random
    weights, stand for the variant's default checkpoint.

    Raises UnknownModelError, NoWeightsError for a variant that nobody trained, ArgumentError for what is no image.
    """
    facts = checkpoint_of(model_or_name).preprocessing
    return lambda image: to_input(image, facts)


def to_input(image: Image, facts: Preprocessing) -> NDArray[Any]:
    """One image to (C, image_size, image_size) float32."""
    pixels = pixels_of(image, facts.color_order)
    size = target_size(pixels.shape[0], pixels.shape[1], facts)
    if size[0] * size[1] > MAX_RESIZED:
        raise ArgumentError(
            f"a picture of {pixels.shape[1]} x {pixels.shape[0]} pixels is too narrow to be resized",
            expected=f"at most {MAX_RESIZED} pixels when the short side is {facts.resize}",
            actual=size[0] * size[1],
            hint="cut out the part that matters",
        )
    resize = _resized_by_pillow if facts.backend == "pillow" else _resized_by_opencv
    pixels = resize(pixels, size, facts.interpolation)
    top, left = (ROUND[facts.crop_rounding]((length - facts.image_size) / 2) for length in pixels.shape[:2])
    pixels = pixels[top : top + facts.image_size, left : left + facts.image_size]
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    pixels = pixels[:, :, ::-1] if facts.color_order == "BGR" else pixels
    mean, std = np.array(facts.mean, np.float32), np.array(facts.std, np.float32)
    return np.ascontiguousarray(((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1))


def checkpoint_of(model_or_name: Any) -> CheckpointSpec:
    """The checkpoint that a name or a network stands for."""
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


def target_size(height: int, width: int, facts: Preprocessing) -> Tuple[int, int]:
    """(height, width) with ``resize`` as the short side and the same shape, as far as whole pixels allow."""
    short, long = min(height, width), max(height, width)
    # The order of the operations is the publishers' own, so that the last bit falls as theirs does.
    if facts.resize_rounding == "round":
        length = round(long * (facts.resize / short))
    else:
        length = int(facts.resize * long / short)
    return (facts.resize, length) if height <= width else (length, facts.resize)


def _resized_by_pillow(pixels: NDArray[Any], size: Tuple[int, int], interpolation: str) -> NDArray[Any]:
    from PIL import Image as Pillow

    method = Pillow.Resampling.BILINEAR if interpolation == "bilinear" else Pillow.Resampling.BICUBIC
    return np.asarray(Pillow.fromarray(pixels).resize(size[::-1], method))


def _resized_by_opencv(pixels: NDArray[Any], size: Tuple[int, int], interpolation: str) -> NDArray[Any]:
    import cv2

    method = cv2.INTER_LINEAR if interpolation == "bilinear" else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size[::-1], interpolation=method))
