"""What an epoch sees of an image: crops within it, mirrored only where that keeps the class, the same for a seed."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.training.augmentation import augment, may_flip, random_crop
from repvgg_zoo.training.recipe import check_recipe, differences

PREPROCESSING = repvgg_zoo.model_info("RepVGG_N0").checkpoint("digits").preprocessing
PHOTO = repvgg_zoo.model_info("RepVGG_A0").checkpoint("timm").preprocessing

FLIPS = {
    "cats and dogs": (["cat", "dog"], True),
    "synsets": (["n01440764", "n02102040"], True),
    "digits": (["0", "1", "10"], False),
    "letters": (["A", "B"], False),
    "letters of another alphabet": (["\u0416", "\u4e2d"], False),
    "sides": (["turn-left", "turn-right"], False),
    "one side among others": (["Left hand", "foot", "head"], False),
    "words that only contain a side": (["bright", "cleft"], True),
    "one symbol among words": (["x", "circle"], True),
}


@pytest.mark.parametrize(("names", "expected"), FLIPS.values(), ids=FLIPS)
def test_images_are_mirrored_where_that_keeps_their_class(names, expected):
    assert may_flip(names) is expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (28, 28), (375, 500), (3, 1000)])
@pytest.mark.parametrize("min_crop", [0.08, 0.5, 0.999])
def test_a_crop_is_within_the_image_and_not_smaller_than_allowed(shape, min_crop):
    random = Random(0)
    height, width = shape
    for _ in range(50):
        top, left, crop_height, crop_width = random_crop(height, width, random, min_crop)
        assert top >= 0 and left >= 0 and crop_height > 0 and crop_width > 0
        assert top + crop_height <= height and left + crop_width <= width
        if min(shape) > 20 and max(shape) < 2 * min(shape):
            assert crop_height * crop_width >= 0.9 * min_crop * height * width


@pytest.mark.parametrize("preprocessing", [PREPROCESSING, PHOTO], ids=["gray, OpenCV", "RGB, Pillow"])
def test_the_input_has_the_shape_and_the_scale_of_the_network(preprocessing):
    pixels = np.random.RandomState(0).randint(0, 256, (40, 60, 3)).astype(np.uint8)
    result = augment(pixels, preprocessing, Random(1), min_crop=0.5, flip=True)
    channels = len(preprocessing.color_order)
    assert result.shape == (channels, preprocessing.image_size, preprocessing.image_size)
    assert result.dtype == np.float32 and result.flags.c_contiguous


def test_without_crops_a_square_image_is_preprocessed_as_for_evaluation():
    pixels = np.random.RandomState(0).randint(0, 256, (28, 28)).astype(np.uint8)
    result = augment(pixels, PREPROCESSING, Random(1), min_crop=1, flip=False)
    np.testing.assert_array_equal(result, repvgg_zoo.preprocess("RepVGG_N0")(pixels))


def test_half_of_the_images_are_mirrored_and_nothing_else_changes():
    pixels = np.random.RandomState(0).randint(0, 256, (28, 28)).astype(np.uint8)
    mirrored = 0
    for seed in range(40):
        plain, flipped = (
            augment(pixels, PREPROCESSING, Random(seed), min_crop=0.5, flip=flip) for flip in (False, True)
        )
        is_mirrored = not np.array_equal(plain, flipped)
        mirrored += is_mirrored
        np.testing.assert_array_equal(flipped[:, :, ::-1] if is_mirrored else flipped, plain)
    assert 10 < mirrored < 30


def test_settings_that_differ_are_named_with_both_values():
    assert differences({"lr": 0.1, "seed": 1}, {"lr": 0.2, "seed": 1}) == ["lr (0.1 before, 0.2 now)"]


def test_a_short_run_has_a_short_warm_up_unless_one_is_asked_for():
    assert check_recipe(epochs=1).warmup_epochs < 1
    with pytest.raises(ArgumentError, match="warm-up"):
        check_recipe(epochs=2, warmup_epochs=2.0)
