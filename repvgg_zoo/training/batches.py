"""Batches of images for training and validation, decoded by threads ahead of their use.

What is random in an image depends on the seed, the epoch and the image alone: neither on threads nor on what was
computed before, so that a run can go on from any step.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any, Callable, Deque, Generator, Iterable, List, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from ..data.samples import as_image
from ..errors import ZooError
from ..image.preprocess import preprocess_image
from ..registry.specs import Preprocessing
from .augmentation import augment
from .recipe import Recipe
from .samples import Labeled

AHEAD = 2  # batches that are decoded before they are needed

Batch = Tuple[NDArray[Any], NDArray[Any]]
Decode = Callable[[int], NDArray[Any]]


def training_batches(
    data: Labeled,
    preprocessing: Preprocessing,
    recipe: Recipe,
    pool: ThreadPoolExecutor,
    *,
    epoch: int,
    first: int = 0,
    part: int = 0,
    parts: int = 1,
) -> Generator[Batch, None, None]:
    """Yield float32 (N, C, H, W) and labels (N,) of an epoch from its batch ``first`` on, in a random order.

    Of each batch of ``recipe.batch_size`` images, process ``part`` of ``parts`` gets an equal share. What is left at
    the end and fills no batch is passed over.
    """
    order = np.random.RandomState([recipe.seed, epoch]).permutation(len(data.labels))
    groups = [
        order[start + part : start + recipe.batch_size : parts]
        for start in range(first * recipe.batch_size, len(order) - recipe.batch_size + 1, recipe.batch_size)
    ]

    def decode(index: int) -> NDArray[Any]:
        random = Random(f"{recipe.seed} {epoch} {index}")
        return augment(
            as_image(data.samples[index].image), preprocessing, random, min_crop=recipe.min_crop, flip=bool(recipe.flip)
        )

    return _decoded(groups, data, decode, pool)


def validation_batches(
    data: Labeled, preprocessing: Preprocessing, batch_size: int, pool: ThreadPoolExecutor
) -> Generator[Batch, None, None]:
    """Yield all images in their order, preprocessed as for evaluation; the last batch may be smaller."""
    groups = [
        np.arange(start, min(start + batch_size, len(data.labels))) for start in range(0, len(data.labels), batch_size)
    ]
    return _decoded(
        groups, data, lambda index: preprocess_image(as_image(data.samples[index].image), preprocessing), pool
    )


def _decoded(
    groups: Iterable[NDArray[Any]], data: Labeled, decode: Decode, pool: ThreadPoolExecutor
) -> Generator[Batch, None, None]:
    """Yield the batch of each group of indices; raise what decoding raises, with the image's key."""
    waiting: Deque[Tuple[NDArray[Any], List[Future[NDArray[Any]]]]] = deque()
    try:
        for group in groups:
            waiting.append((group, [pool.submit(decode, int(index)) for index in group]))
            if len(waiting) > AHEAD:
                yield _batch(*waiting.popleft(), data)
        while waiting:
            yield _batch(*waiting.popleft(), data)
    finally:
        for _, futures in waiting:
            for future in futures:
                future.cancel()


def _batch(group: NDArray[Any], futures: Sequence[Future[NDArray[Any]]], data: Labeled) -> Batch:
    images = []
    for index, future in zip(group, futures):
        try:
            images.append(future.result())
        except ZooError as error:
            error.message = f"{data.samples[index].key}: {error.message}"
            raise
    return np.stack(images), data.labels[group]
