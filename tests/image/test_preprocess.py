"""A picture becomes a network's input as the publisher of its checkpoint prepared it."""

from __future__ import annotations

from dataclasses import replace

import cv2
import megengine.data.transform as T
import numpy as np
import pytest
from PIL import Image

import repvgg_zoo
from repvgg_zoo.errors import ArgumentError, NoWeightsError, UnknownModelError
from repvgg_zoo.image.preprocess import target_size, to_input
from repvgg_zoo.registry.specs import Preprocessing

RGB = Preprocessing(224, 256, "bilinear", "pillow", "RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BGR = replace(RGB, backend="opencv", color_order="BGR", mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229))


@pytest.fixture(scope="module")
def picture():
    """Smooth colours with noise, wider than high, so that resizing, cropping and colour order all show."""
    random = np.random.RandomState(0)
    y, x = np.mgrid[0:300, 0:400]
    smooth = np.stack([x * 255 / 400, y * 255 / 300, (x + y) * 255 / 700], axis=2)
    return np.clip(smooth + random.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


def normalised(pixels: np.ndarray, facts: Preprocessing) -> np.ndarray:
    return ((pixels / 255 - np.array(facts.mean)) / np.array(facts.std)).transpose(2, 0, 1)


def test_pillows_resize_centre_crop_and_normalisation(picture):
    resized = np.asarray(Image.fromarray(picture).resize((341, 256), Image.Resampling.BILINEAR))
    expected = normalised(resized[16:240, 58:282], RGB)
    assert np.allclose(to_input(picture, RGB), expected, atol=1e-5)


def test_opencvs_resize_in_blue_green_red(picture):
    resized = cv2.resize(picture, (341, 256), interpolation=cv2.INTER_LINEAR)
    expected = normalised(resized[16:240, 58:282, ::-1], BGR)
    assert np.allclose(to_input(picture, BGR), expected, atol=1e-5)


def test_the_two_backends_differ_when_they_shrink_which_is_why_the_registry_names_them(picture):
    opencv = to_input(picture, replace(RGB, backend="opencv"))
    assert np.abs(opencv - to_input(picture, RGB)).max() > 0.1


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256), (10, 1000), (1, 1)])
@pytest.mark.parametrize("facts", [RGB, BGR, replace(RGB, interpolation="bicubic"), replace(RGB, resize=224)], ids=str)
def test_any_size_gives_the_networks_size(size, facts):
    image = np.random.RandomState(0).randint(0, 256, (*size, 3), dtype=np.uint8)
    result = to_input(image, facts)
    assert (result.shape, result.dtype) == ((3, 224, 224), np.float32)
    assert result.flags.c_contiguous


@pytest.mark.parametrize("size", [(300, 400), (401, 300), (333, 500), (500, 333), (341, 257), (343, 256), (224, 1000)])
def test_baseclss_preparation_is_megengines_own_transforms(size):
    """basecls evaluates with these three steps and normalises in the network, in 0..255."""
    picture = np.random.RandomState(0).randint(0, 256, (*size, 3), dtype=np.uint8)
    steps = T.Compose([T.Resize(256, cv2.INTER_LINEAR), T.CenterCrop(224), T.ToMode()])
    theirs = steps.apply(picture[:, :, ::-1].copy()).astype(np.float32)
    mean, std = np.float32([103.530, 116.280, 123.675]), np.float32([57.375, 57.120, 58.395])
    theirs = (theirs - mean[:, None, None]) / std[:, None, None]
    # The same bytes; float32's operations come in another order.
    assert np.abs(repvgg_zoo.preprocess("RepVGG_A0.basecls")(picture) - theirs).max() < 2e-6


def test_paddleclas_rounds_otherwise():
    """The long side to the nearest whole pixel, and the crop's offset down."""
    paddle = replace(RGB, resize_rounding="round", crop_rounding="floor")
    assert target_size(613, 1000, RGB) == (256, 417)
    assert target_size(613, 1000, paddle) == target_size(1000, 613, paddle)[::-1] == (256, 418)
    picture = np.random.RandomState(0).randint(0, 256, (256, 343, 3), dtype=np.uint8)  # (343 - 224) / 2 is 59.5
    assert np.array_equal(to_input(picture, RGB), to_input(picture[16:240, 60:284], replace(RGB, resize=224)))
    assert np.array_equal(to_input(picture, paddle), to_input(picture[16:240, 59:283], replace(RGB, resize=224)))


def test_a_name_a_tag_and_a_network_give_their_own_checkpoints_facts(picture):
    by_name = repvgg_zoo.preprocess("RepVGG_A0")(picture)
    assert np.array_equal(by_name, to_input(picture, RGB))
    assert np.array_equal(repvgg_zoo.preprocess("RepVGG_A0.basecls")(picture), to_input(picture, BGR))
    grey = np.random.RandomState(0).randint(0, 256, (8, 8), dtype=np.uint8)
    network = repvgg_zoo.create("RepVGG_N0")
    assert repvgg_zoo.preprocess(network)(grey).shape == (1, 32, 32)
    assert np.array_equal(repvgg_zoo.preprocess(network)(grey), repvgg_zoo.preprocess("n0")(grey[:, :, None]))


def test_things_without_facts_say_so():
    with pytest.raises(UnknownModelError):
        repvgg_zoo.preprocess("resnet50")
    with pytest.raises(NoWeightsError):
        repvgg_zoo.preprocess("RepVGG_B2g2")
    with pytest.raises(ArgumentError, match="neither a name nor a network"):
        repvgg_zoo.preprocess(object())
