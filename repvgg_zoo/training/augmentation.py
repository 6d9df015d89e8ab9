"""augment: a random crop of an image, resized to the network's input, mirrored half of the time."""

from __future__ import annotations

import math
from random import Random
from typing import Any, Iterable, Tuple

import numpy as np
from numpy.typing import NDArray

from ..image.io import load_image
from ..image.preprocess import normalize
from ..image.resize import resize_with_opencv, resize_with_pillow
from ..registry.specs import Preprocessing

ASPECT_RATIOS = (3 / 4, 4 / 3)  # width over height, as torchvision's and timm's RandomResizedCrop
MAX_TRIES = 10

Box = Tuple[int, int, int, int]


def augment(image: Any, preprocessing: Preprocessing, random: Random, *, min_crop: float, flip: bool) -> NDArray[Any]:
    """Return a random crop of an image as float32 (C, image_size, image_size), preprocessed as the checkpoint's are.

    The crop has ``min_crop`` to all of the area and 3/4 to 4/3 of the aspect ratio; with ``min_crop=1`` it is the whole
    image, squeezed. Raises ArgumentError for anything that is not an image.
    """
    pixels = load_image(image, preprocessing.color_order)
    height, width = pixels.shape[:2]
    top, left, crop_height, crop_width = (
        random_crop(height, width, random, min_crop) if min_crop < 1 else (0, 0, height, width)
    )
    pixels = np.ascontiguousarray(pixels[top : top + crop_height, left : left + crop_width])
    resize = resize_with_pillow if preprocessing.backend == "pillow" else resize_with_opencv
    pixels = resize(pixels, (preprocessing.image_size,) * 2, preprocessing.interpolation)
    is_mirrored = random.random() < 0.5  # drawn in any case, so that flip changes nothing else
    return normalize(pixels[:, ::-1] if flip and is_mirrored else pixels, preprocessing)


def random_crop(height: int, width: int, random: Random, min_crop: float) -> Box:
    """Return (top, left, height, width) of a random crop, or, where none fits, of the largest one in the center."""
    low, high = map(math.log, ASPECT_RATIOS)
    for _ in range(MAX_TRIES):
        area = height * width * random.uniform(min_crop, 1)
        ratio = math.exp(random.uniform(low, high))
        crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top = random.randrange(height - crop_height + 1)
            return top, random.randrange(width - crop_width + 1), crop_height, crop_width
    crop_height, crop_width = min(height, round(width / ASPECT_RATIOS[0])), min(width, round(height * ASPECT_RATIOS[1]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def may_flip(class_names: Iterable[str]) -> bool:
    """Return whether mirroring an image keeps its class, as far as the names tell.

    It does not where a class is a number or a single character, as digits and letters are, or where a name says left
    or right.

    >>> from repvgg_zoo.training.augmentation import may_flip
    >>> may_flip(["cat", "dog"]), may_flip(["0", "1"]), may_flip(["turn_left", "stop"])
    (True, False, False)
    """
    words = [name.lower().replace("-", "_").replace(" ", "_").split("_") for name in class_names]
    is_symbol = all(len(name) == 1 and (len(name[0]) == 1 or name[0].isdecimal()) for name in words)
    return not is_symbol and not any({"left", "right"} & set(name) for name in words)
