"""An epoch's batches depend on the seed and the epoch, not on threads or on where they begin."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.data.sources import Sample
from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.training.batches import training_batches, validation_batches
from repvgg_zoo.training.recipe import Recipe
from repvgg_zoo.training.samples import Labeled

PREPROCESSING = repvgg_zoo.model_info("RepVGG_N0").checkpoint("digits").preprocessing
RECIPE = Recipe(batch_size=4, seed=3)
IMAGES = np.random.RandomState(0).randint(0, 256, (22, 28, 28)).astype(np.uint8)
DATA = Labeled(tuple(Sample(f"{i}.png", image, "a") for i, image in enumerate(IMAGES)), np.arange(22, dtype=np.int32))


def batches(threads=2, data=DATA, **options):
    with ThreadPoolExecutor(threads) as pool:
        return list(training_batches(data, PREPROCESSING, RECIPE, pool, **options))


def same(left, right):
    assert len(left) == len(right)
    return all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(left, right))


def test_an_epoch_has_each_image_at_most_once_in_whole_batches():
    labels = np.concatenate([labels for _, labels in batches(epoch=0)])
    assert len(labels) == 20 and len(set(labels.tolist())) == 20


def test_threads_change_nothing():
    assert same(batches(1, epoch=1), batches(4, epoch=1))


def test_another_epoch_has_another_order_and_other_crops():
    assert not same(batches(epoch=0), batches(epoch=1))


@pytest.mark.parametrize("first", [1, 4, 5])
def test_an_epoch_goes_on_from_any_batch(first):
    assert same(batches(epoch=2, first=first), batches(epoch=2)[first:])


def test_two_processes_share_each_batch():
    parts = [batches(epoch=0, part=part, parts=2) for part in (0, 1)]
    for whole, left, right in zip(batches(epoch=0), *parts):
        assert sorted([*left[1], *right[1]]) == sorted(whole[1]) and len(left[1]) == len(right[1]) == 2


def test_validation_has_all_images_in_order():
    with ThreadPoolExecutor(2) as pool:
        parts = list(validation_batches(DATA, PREPROCESSING, 4, pool))
    assert np.concatenate([labels for _, labels in parts]).tolist() == list(range(22))
    to_input = repvgg_zoo.preprocess("RepVGG_N0")
    np.testing.assert_array_equal(np.concatenate([images for images, _ in parts]), [to_input(i) for i in IMAGES])


def test_an_image_that_cannot_be_read_is_named():
    broken = Labeled((Sample("5/broken.png", b"not an image", "a"), *DATA.samples[1:4]), DATA.labels[:4])
    with pytest.raises(ArgumentError, match=r"5/broken\.png"):
        batches(data=broken, epoch=0)
