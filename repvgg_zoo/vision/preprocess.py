"""Preprocessing: a picture to a network's input, as the publisher of its checkpoint evaluated it."""

from __future__ import annotations

import os
from typing import Any, Callable, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..registry.names import find_checkpoint
from ..registry.spec import CheckpointSpec, Preprocessing
from ..registry.zoo import find_model

Image = Union[str, "os.PathLike[str]", NDArray[Any]]


def preprocess(model_or_name: Any) -> Callable[[Image], NDArray[Any]]:
    """The function that turns an image into the input of this network: (C, image_size, image_size) float32.

    An image is a path, or a uint8 array (H, W, 3) in RGB order, or (H, W) for grey ones. It is resized so that its
    short side is ``resize``, cropped at the centre, put into the checkpoint's colour order, scaled to 0..1 and
    normalised; resizing is the publisher's (Pillow or OpenCV, ``Preprocessing.backend``), as the two differ when they
    shrink. A name without a tag, and a network with random weights, stand for the variant's default checkpoint.

    Raises UnknownModelError, NoWeightsError for a variant that nobody trained, ArgumentError for what is no image.
    """
    facts = _checkpoint_of(model_or_name).preprocessing
    return lambda image: to_input(image, facts)


def to_input(image: Image, facts: Preprocessing) -> NDArray[Any]:
    """One image (a path, or a uint8 array) to (C, image_size, image_size) float32."""
    pixels = _loaded(image, facts.colour)
    resize = _resized_by_pillow if facts.backend == "pillow" else _resized_by_opencv
    pixels = resize(pixels, _target_size(pixels.shape[0], pixels.shape[1], facts.resize), facts.interpolation)
    top = round((pixels.shape[0] - facts.image_size) / 2)
    left = round((pixels.shape[1] - facts.image_size) / 2)
    pixels = pixels[top : top + facts.image_size, left : left + facts.image_size]
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    pixels = pixels[:, :, ::-1] if facts.colour == "BGR" else pixels
    mean, std = np.array(facts.mean, np.float32), np.array(facts.std, np.float32)
    return np.ascontiguousarray(((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1))


def _checkpoint_of(model_or_name: Any) -> CheckpointSpec:
    if isinstance(model_or_name, str):
        return find_checkpoint(*find_model(model_or_name))
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


def _loaded(image: Image, colour: str) -> NDArray[Any]:
    if not isinstance(image, np.ndarray):
        from PIL import Image as Pillow

        try:
            with Pillow.open(os.fspath(image)) as opened:
                return np.asarray(opened.convert("L" if colour == "L" else "RGB"))
        except (OSError, TypeError, ValueError) as error:
            raise ArgumentError(f"cannot read {image!r} as an image: {error}", actual=image) from error
    expected = "uint8 (H, W)" if colour == "L" else "uint8 (H, W, 3), RGB"
    pixels = image[:, :, 0] if colour == "L" and image.ndim == 3 and image.shape[2] == 1 else image
    fits = pixels.ndim == 2 if colour == "L" else pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype != np.uint8 or not fits or 0 in pixels.shape:
        raise ArgumentError(
            f"an image is {expected}, not {image.dtype} {image.shape}",
            expected=expected,
            actual=(str(image.dtype), image.shape),
        )
    return pixels


def _target_size(height: int, width: int, short: int) -> Tuple[int, int]:
    """(height, width) with the short side ``short`` and the same shape, the long side rounded down as publishers do."""
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def _resized_by_pillow(pixels: NDArray[Any], size: Tuple[int, int], interpolation: str) -> NDArray[Any]:
    from PIL import Image as Pillow

    method = Pillow.Resampling.BILINEAR if interpolation == "bilinear" else Pillow.Resampling.BICUBIC
    return np.asarray(Pillow.fromarray(pixels).resize(size[::-1], method))


def _resized_by_opencv(pixels: NDArray[Any], size: Tuple[int, int], interpolation: str) -> NDArray[Any]:
    import cv2

    method = cv2.INTER_LINEAR if interpolation == "bilinear" else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size[::-1], interpolation=method))
