"""A picture becomes a network's input as the publisher of its checkpoint prepared it."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

import repvgg_zoo
from repvgg_zoo.errors import ArgumentError, NoWeightsError, UnknownModelError
from repvgg_zoo.registry.spec import Preprocessing
from repvgg_zoo.vision.preprocess import to_input

RGB = Preprocessing(224, 256, "bilinear", "pillow", "RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BGR = replace(RGB, backend="opencv", colour="BGR", mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229))


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


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_a_file_of_any_kind_is_read_as_its_colours(tmp_path, picture, mode):
    path = tmp_path / "picture.png"
    Image.fromarray(picture).convert(mode).save(path)
    with Image.open(path) as opened:
        expected = to_input(np.asarray(opened.convert("RGB")), RGB)
    assert np.array_equal(to_input(path, RGB), expected)
    assert np.array_equal(to_input(str(path), RGB), expected)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10, 3), np.float32),
        np.zeros((10, 10), np.uint8),
        np.zeros((3, 10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((0, 10, 3), np.uint8),
        "no such file.png",
        __file__,
        5,
    ],
    ids=lambda image: str(getattr(image, "shape", image))[-30:],
)
def test_what_is_no_image_is_an_argument_error(image):
    with pytest.raises(ArgumentError):
        to_input(image, RGB)


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
