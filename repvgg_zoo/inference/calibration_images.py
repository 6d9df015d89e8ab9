"""collect_images: the images that quantize is given, whatever they come as, as one array."""

from __future__ import annotations

import itertools
import math
import os
from typing import Any, Callable, Iterable, Iterator, List, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_local_path
from ..checkpoints import CheckpointMetadata
from ..errors import ArgumentError

MIN_IMAGES = 8
EXPECTED = "a folder, paths, an array (N, C, H, W), or an iterable of arrays or images"


def collect_images(
    images: Any,
    model: Any,
    metadata: CheckpointMetadata,
    *,
    channels: int,
    size: Optional[Tuple[int, int]],
    limit: int,
) -> NDArray[Any]:
    """Return at most ``limit`` images as float32 (N, channels, height, width), of ``size`` if there is one.

    Of folders, lists and arrays, images are taken evenly from beginning to end; of other iterables the first ones.
    Arrays of floating-point numbers are preprocessed ones; everything else goes through the preprocessing of ``model``.
    Raises ArgumentError for too few images, and for images of other shapes or with values that are not finite.
    """
    preprocess = _preprocessing(model, metadata, size)
    parts: List[NDArray[Any]] = []
    for item in _items(images, limit):
        batch = _as_batch(item, preprocess)
        parts.append(batch)
        _check_batch(batch, parts[0], channels, size)
        if sum(map(len, parts)) >= limit:
            break
    count = sum(map(len, parts))
    if count < MIN_IMAGES:
        raise ArgumentError(
            f"too few images to quantize a network: {count}",
            expected=f"at least {MIN_IMAGES}",
            actual=count,
            hint=f"pass at least {MIN_IMAGES} images, and better 100, such as the network will see",
        )
    data: NDArray[Any] = np.concatenate(parts)[:limit].astype(np.float32, copy=False)
    return data


def _items(images: Any, limit: int) -> Iterator[Any]:
    """Yield images or batches."""
    if isinstance(images, (str, os.PathLike)):
        from ..image.folder import find_images

        yield from _evenly(find_images([check_local_path("images", images)]), limit)
    elif isinstance(images, np.ndarray):
        if images.ndim != 4:
            raise _not_images(images)
        yield from _evenly(images, limit)
    elif isinstance(images, (list, tuple)):
        yield from _evenly(images, limit)
    elif isinstance(images, (bytes, dict)) or not isinstance(images, Iterable):
        raise _not_images(images)
    else:
        yield from itertools.islice(images, limit)


def _evenly(items: Any, limit: int) -> Iterator[Any]:
    count = min(len(items), limit)
    return (items[index * len(items) // count] for index in range(count))


def _as_batch(item: Any, preprocess: Callable[[Any], NDArray[Any]]) -> NDArray[Any]:
    if isinstance(item, np.ndarray) and item.dtype.kind == "f":
        if item.ndim not in (3, 4):
            raise _not_images(item)
        return item if item.ndim == 4 else item[None]
    return preprocess(item)[None]


def _preprocessing(
    model: Any, metadata: CheckpointMetadata, size: Optional[Tuple[int, int]]
) -> Callable[[Any], NDArray[Any]]:
    """Return the function that preprocesses an image for the network, to ``size`` if there is one."""

    def preprocess(image: Any) -> NDArray[Any]:
        from ..image.preprocess import metadata_of, preprocess_image

        known = metadata.preprocessing or metadata_of(model).preprocessing
        assert known is not None
        if size is not None and size != (known.image_size,) * 2:
            if size[0] != size[1]:
                raise ArgumentError(
                    f"images are preprocessed to squares, not to {size[0]} x {size[1]}",
                    expected="one number as image_size",
                    actual=size,
                    hint="preprocess them yourself and pass arrays",
                )
            known = known._replace(image_size=size[0], resize=math.ceil(known.resize * size[0] / known.image_size))
        return preprocess_image(image, known)

    return preprocess


def _check_batch(batch: NDArray[Any], first: NDArray[Any], channels: int, size: Optional[Tuple[int, int]]) -> None:
    expected = (channels, *(size or first.shape[2:]))
    if batch.shape[1:] != expected or 0 in batch.shape[1:]:
        raise ArgumentError(
            f"an image is {batch.shape[1:]} but should be {expected}",
            expected=expected,
            actual=batch.shape[1:],
            hint="pass images of one size, channels first",
        )
    if not np.isfinite(batch.sum(dtype=np.float64)):
        raise ArgumentError(
            "an image has values that are not finite",
            expected="finite numbers",
            hint="check how the images were preprocessed",
        )


def _not_images(value: Any) -> ArgumentError:
    shape = f" {value.shape} of {value.dtype}" if isinstance(value, np.ndarray) else ""
    return ArgumentError(
        f"{type(value).__name__}{shape} is not a set of images",
        expected=EXPECTED,
        actual=type(value).__name__,
        hint=f"pass {EXPECTED}",
    )
