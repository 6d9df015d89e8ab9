"""Preprocess an image into a network's input, as the publisher of its checkpoint does for evaluation."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from .._escape import escape
from ..checkpoints import Checkpoint, CheckpointMetadata, load_checkpoint
from ..checkpoints.metadata import metadata_of_spec
from ..checkpoints.network_metadata import metadata_of_network
from ..checkpoints.publisher import complete_metadata
from ..errors import ArgumentError
from ..registry.model_or_file import find_model_or_file
from ..registry.names import find_checkpoint
from ..registry.specs import CheckpointSpec, ModelSpec, Preprocessing
from .io import Image, load_image
from .resize import resize_with_opencv, resize_with_pillow

# An image of 1 x 100000 would have 26 million columns once its short side is 256.
MAX_RESIZED_PIXELS = 1 << 26
ROUNDING: Mapping[str, Callable[[float], int]] = {"floor": int, "round": round}


class Preprocess:
    """The function that ``preprocess`` returns: from an image to (C, image_size, image_size) float32.

    Attributes: ``preprocessing``, a Preprocessing, and ``source``, which says in words where it is from.
    """

    def __init__(self, preprocessing: Preprocessing, source: Optional[str] = None) -> None:
        self.preprocessing = preprocessing
        self.source = source

    def __call__(self, image: Image) -> NDArray[Any]:
        return preprocess_image(image, self.preprocessing)

    def __repr__(self) -> str:
        size, resize, interpolation, backend, color_order = self.preprocessing[:5]
        source = "" if self.source is None else f", from {escape(self.source)}"
        return f"<Preprocess {size}x{size} {color_order}, resized to {resize} {interpolation} by {backend}{source}>"


def preprocess(model_or_name: Any) -> Preprocess:
    """Return the function that turns an image into this network's input: (C, image_size, image_size) float32.

    ``model_or_name`` is a name, a file, a Checkpoint, or a network, quantized ones included. An image is a path, an
    open file, a Pillow image, or a uint8 array (H, W, 3) in RGB order or (H, W). It is rotated by its EXIF orientation,
    resized so that its short side is ``resize``, center-cropped, put into the checkpoint's color order, scaled to 0..1
    and normalized. Resizing uses the publisher's library (Pillow or OpenCV, ``Preprocessing.backend``), as the two
    differ when they shrink. Transparency is dropped, of an animation the first frame is used, of 16-bit grayscale the
    high byte.

    A file that ``save_checkpoint`` wrote says its preprocessing. Any other is preprocessed as the publisher does it
    whose layout it has, such as BaseCls in BGR order. A name without a tag, a network with random weights, and a file
    in a layout of no publisher use the variant's default checkpoint. The result's ``source`` says which it was.

    Raises UnknownModelError, NoWeightsError for a variant without pretrained weights, ArgumentError for anything that
    is not an image or a network, and what ``load_checkpoint`` raises for a file.
    """
    metadata = metadata_of(model_or_name)
    assert metadata.preprocessing is not None
    return Preprocess(metadata.preprocessing, metadata.preprocessing_source)


def metadata_of(model: Any) -> CheckpointMetadata:
    """Return what is known about a name's, a file's, a Checkpoint's or a network's weights, preprocessing included."""
    model = open_model(model)
    spec = getattr(model, "spec", None)
    if isinstance(model, CheckpointSpec):
        return metadata_of_spec(model)
    if isinstance(model, Checkpoint):
        metadata = complete_metadata(model)
    elif spec is None and not any(hasattr(model, name) for name in ("metadata", "checkpoint")):
        raise ArgumentError(
            f"{type(model).__name__} is neither a name nor a network that repvgg_zoo.create made",
            expected="a name such as 'RepVGG_A0', a checkpoint file, or a network",
        )
    else:
        metadata = metadata_of_network(model)
    if metadata.preprocessing is None and isinstance(spec, ModelSpec):
        return replace(metadata, preprocessing=find_checkpoint(spec).preprocessing)
    if metadata.preprocessing is None:
        raise ArgumentError(
            f"the preprocessing of {escape(getattr(model, 'path', type(model).__name__))} is not known",
            hint="save the file with save_checkpoint(path, network, preprocessing=...)",
        )
    return metadata


def open_model(model: Any) -> Any:
    """Return the registry's checkpoint of a name, what is in a file, or anything else as it is.

    A file has a Checkpoint or a QuantizedNetwork.
    """
    if not isinstance(model, (str, os.PathLike)):
        return model
    target = find_model_or_file(model)
    if not isinstance(target, Path):
        return find_checkpoint(*target)
    from ..inference.quantized_file import is_quantized_file

    if is_quantized_file(target):
        from ..inference.quantized_network import QuantizedNetwork

        return QuantizedNetwork.load(target)
    return load_checkpoint(target)


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
    resize = resize_with_pillow if preprocessing.backend == "pillow" else resize_with_opencv
    pixels = resize(pixels, size, preprocessing.interpolation)
    crop = preprocessing.image_size
    top, left = (ROUNDING[preprocessing.crop_rounding]((length - crop) / 2) for length in pixels.shape[:2])
    pixels = pixels[top : top + crop, left : left + crop]
    return normalize(pixels, preprocessing)


def normalize(pixels: NDArray[Any], preprocessing: Preprocessing) -> NDArray[Any]:
    """Return uint8 pixels (H, W, 3) in RGB, or (H, W), as float32 (C, H, W): scaled to 0..1, less mean, over std."""
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    pixels = pixels[:, :, ::-1] if preprocessing.color_order == "BGR" else pixels
    table = normalization_table(preprocessing.mean, preprocessing.std)
    normalized = np.empty((len(table), *pixels.shape[:2]), np.float32)
    for channel, values in enumerate(table):
        np.take(values, pixels[:, :, channel], out=normalized[channel], mode="clip")  # "raise" would copy
    return normalized


@functools.lru_cache(maxsize=8)
def normalization_table(mean: Tuple[float, ...], std: Tuple[float, ...]) -> NDArray[Any]:
    """Return what each of the 256 values of a channel becomes, float32 (C, 256); looking it up is half the work."""
    values = np.arange(256, dtype=np.float32)[None]
    means, stds = (np.array(numbers, np.float32)[:, None] for numbers in (mean, std))
    table: NDArray[Any] = (values / np.float32(255) - means) / stds
    table.flags.writeable = False
    return table


def target_size(height: int, width: int, preprocessing: Preprocessing) -> Tuple[int, int]:
    """Return (height, width) with ``resize`` as the short side and the aspect ratio kept, in whole pixels."""
    short, long = min(height, width), max(height, width)
    # In the publishers' own order of operations, for the same rounding in the last bit.
    if preprocessing.resize_rounding == "round":
        length = round(long * (preprocessing.resize / short))
    else:
        length = int(preprocessing.resize * long / short)
    return (preprocessing.resize, length) if height <= width else (length, preprocessing.resize)
