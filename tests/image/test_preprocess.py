"""An image becomes a network's input as the publisher of its checkpoint preprocesses it."""

from __future__ import annotations

import cv2
import megengine.data.transform as T
import numpy as np
import pytest
from PIL import Image

import repvgg_zoo
from repvgg_zoo.errors import ArgumentError, NoWeightsError, UnknownModelError
from repvgg_zoo.image.preprocess import preprocess_image, target_size
from repvgg_zoo.registry.specs import Preprocessing

RGB = Preprocessing(224, 256, "bilinear", "pillow", "RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BGR = RGB._replace(backend="opencv", color_order="BGR", mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229))


@pytest.fixture(scope="module")
def image():
    """Return smooth colors with noise, wider than high, so that resize, crop and color order all matter."""
    random = np.random.RandomState(0)
    y, x = np.mgrid[0:300, 0:400]
    smooth = np.stack([x * 255 / 400, y * 255 / 300, (x + y) * 255 / 700], axis=2)
    return np.clip(smooth + random.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


def normalized(pixels: np.ndarray, config: Preprocessing) -> np.ndarray:
    return ((pixels / 255 - np.array(config.mean)) / np.array(config.std)).transpose(2, 0, 1)


def test_pillow_resize_center_crop_and_normalization(image):
    resized = np.asarray(Image.fromarray(image).resize((341, 256), Image.Resampling.BILINEAR))
    expected = normalized(resized[16:240, 58:282], RGB)
    assert np.allclose(preprocess_image(image, RGB), expected, atol=1e-5)


def test_opencv_resize_in_bgr(image):
    resized = cv2.resize(image, (341, 256), interpolation=cv2.INTER_LINEAR)
    expected = normalized(resized[16:240, 58:282, ::-1], BGR)
    assert np.allclose(preprocess_image(image, BGR), expected, atol=1e-5)


def test_the_two_backends_differ_when_they_shrink(image):
    opencv = preprocess_image(image, RGB._replace(backend="opencv"))
    assert np.abs(opencv - preprocess_image(image, RGB)).max() > 0.1


# The ranges of the registry's checkpoints, and one in which rounding differs much.
@pytest.mark.parametrize("config", [RGB, BGR, RGB._replace(mean=(0.1, 1 / 3, 0.9), std=(1e-3, 7, 1 / 3))], ids=str)
def test_a_table_normalizes_to_the_same_bits_as_the_formula(config):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)[:, :, None].repeat(3, axis=2)
    config = config._replace(image_size=16, resize=16)
    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    expected = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    assert preprocess_image(pixels, config).tobytes() == np.ascontiguousarray(expected.transpose(2, 0, 1)).tobytes()


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256), (10, 1000), (1, 1)])
@pytest.mark.parametrize("config", [RGB, BGR, RGB._replace(interpolation="bicubic"), RGB._replace(resize=224)], ids=str)
def test_any_size_gives_the_networks_size(size, config):
    image = np.random.RandomState(0).randint(0, 256, (*size, 3), dtype=np.uint8)
    result = preprocess_image(image, config)
    assert (result.shape, result.dtype) == ((3, 224, 224), np.float32)
    assert result.flags.c_contiguous


@pytest.mark.parametrize("size", [(300, 400), (401, 300), (333, 500), (500, 333), (341, 257), (343, 256), (224, 1000)])
def test_basecls_preprocessing_is_that_of_megengine_transforms(size):
    """basecls evaluates with these three steps and normalizes in the network, in 0..255."""
    image = np.random.RandomState(0).randint(0, 256, (*size, 3), dtype=np.uint8)
    steps = T.Compose([T.Resize(256, cv2.INTER_LINEAR), T.CenterCrop(224), T.ToMode()])
    expected = steps.apply(image[:, :, ::-1].copy()).astype(np.float32)
    mean, std = np.float32([103.530, 116.280, 123.675]), np.float32([57.375, 57.120, 58.395])
    expected = (expected - mean[:, None, None]) / std[:, None, None]
    # The same bytes; float32's operations come in another order.
    assert np.abs(repvgg_zoo.preprocess("RepVGG_A0.basecls")(image) - expected).max() < 2e-6


def test_paddleclas_rounds_differently():
    """The long side to the nearest whole pixel, and the crop's offset down."""
    paddle = RGB._replace(resize_rounding="round", crop_rounding="floor")
    assert target_size(613, 1000, RGB) == (256, 417)
    assert target_size(613, 1000, paddle) == target_size(1000, 613, paddle)[::-1] == (256, 418)
    image = np.random.RandomState(0).randint(0, 256, (256, 343, 3), dtype=np.uint8)  # (343 - 224) / 2 is 59.5
    assert np.array_equal(
        preprocess_image(image, RGB), preprocess_image(image[16:240, 60:284], RGB._replace(resize=224))
    )
    assert np.array_equal(
        preprocess_image(image, paddle), preprocess_image(image[16:240, 59:283], RGB._replace(resize=224))
    )


def test_a_name_a_tag_and_a_network_use_their_checkpoint(image):
    by_name = repvgg_zoo.preprocess("RepVGG_A0")(image)
    assert np.array_equal(by_name, preprocess_image(image, RGB))
    assert np.array_equal(repvgg_zoo.preprocess("RepVGG_A0.basecls")(image), preprocess_image(image, BGR))
    gray = np.random.RandomState(0).randint(0, 256, (8, 8), dtype=np.uint8)
    network = repvgg_zoo.create("RepVGG_N0")
    assert repvgg_zoo.preprocess(network)(gray).shape == (1, 32, 32)
    assert np.array_equal(repvgg_zoo.preprocess(network)(gray), repvgg_zoo.preprocess("n0")(gray[:, :, None]))


def test_a_name_or_object_without_a_checkpoint_is_an_error():
    with pytest.raises(UnknownModelError):
        repvgg_zoo.preprocess("resnet50")
    with pytest.raises(NoWeightsError):
        repvgg_zoo.preprocess("RepVGG_B2g2")
    with pytest.raises(ArgumentError, match="neither a name nor a network"):
        repvgg_zoo.preprocess(object())
