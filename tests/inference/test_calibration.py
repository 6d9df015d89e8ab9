"""What is measured on the user's images: each activation's range and means, and that the images are taken as meant.

The kind of fault: statistics of other values than those that the network will see, from borders, batches or images.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

import repvgg_zoo
from repvgg_zoo._resources import hub_folder
from repvgg_zoo.errors import ArgumentError, MissingFileError
from repvgg_zoo.inference.calibration import ActivationStatistics
from repvgg_zoo.inference.calibration_images import collect_images
from repvgg_zoo.inference.target import find_target


def activations(seed, scale=1.0, shape=(4, 7, 6, 5)):
    random = np.random.RandomState(seed)
    return (scale * np.maximum(random.standard_normal(shape), 0)).astype(np.float32)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_the_means_of_taps_are_those_of_the_padded_input(stride, dilation):
    batches = [activations(0), activations(1)[:3]]
    statistics = ActivationStatistics("x", batches[0].shape)
    for batch in batches:
        statistics.add(batch)
    x = np.pad(np.concatenate(batches), ((0, 0), (dilation,) * 2, (dilation,) * 2, (0, 0)))
    height, width = (x.shape[1] - 2 * dilation - 1) // stride + 1, (x.shape[2] - 2 * dilation - 1) // stride + 1
    actual = statistics.tap_means(stride, dilation)
    for i in range(3):
        for j in range(3):
            window = x[:, i * dilation :: stride, j * dilation :: stride][:, :height, :width]
            np.testing.assert_allclose(actual[:, i, j], window.mean(axis=(0, 1, 2)), rtol=1e-5)


def rounding_error(x, scale):
    return float(((np.minimum(np.rint(x / scale), 255) * scale - x).astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("batches", [[1.0], [1.0, 8.0], [8.0, 1.0], [0.0, 1.0]])
def test_the_range_has_the_least_error_whatever_the_order_of_batches(batches):
    parts = [activations(index, scale, (2, 40, 40, 4)) for index, scale in enumerate(batches)]
    statistics = ActivationStatistics("x", parts[0].shape)
    for part in parts:
        statistics.add(part)
    x = np.concatenate(parts)
    least = min(rounding_error(x, x.max() * share / 255) for share in np.linspace(0.3, 1, 200))
    assert rounding_error(x, statistics.scale()) < 1.05 * least


# Images ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixels():
    """Images of the digits' test split, uint8 (24, 8, 8)."""
    with np.load(hub_folder() / "digits-test.npz", allow_pickle=False) as arrays:
        return arrays["images"][:24]


@pytest.fixture(scope="module")
def digits(pixels):
    """The images as the network's input."""
    preprocess = repvgg_zoo.preprocess("RepVGG_N0")
    return np.stack([preprocess(image) for image in pixels])


@pytest.fixture(scope="module")
def folder(pixels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index:03}.png")
    return folder


SETS = {
    "a folder": lambda folder, pixels, digits: folder,
    "its path as text": lambda folder, pixels, digits: str(folder),
    "paths": lambda folder, pixels, digits: sorted(folder.iterdir()),
    "pixels": lambda folder, pixels, digits: list(pixels),
    "Pillow images": lambda folder, pixels, digits: [Image.fromarray(image) for image in pixels],
    "arrays": lambda folder, pixels, digits: list(digits),
    "batches": lambda folder, pixels, digits: (digits[i : i + 5] for i in range(0, 24, 5)),
    "float64": lambda folder, pixels, digits: digits.astype(np.float64),
}


@pytest.mark.parametrize("kind", SETS)
def test_images_may_come_as(kind, folder, pixels, digits):
    data = collect(SETS[kind](folder, pixels, digits))
    assert data.dtype == np.float32
    np.testing.assert_array_equal(data, digits)


def collect(images, size=None, limit=100):
    return collect_images(images, "RepVGG_N0", find_target("RepVGG_N0").metadata, channels=1, size=size, limit=limit)


@pytest.mark.parametrize("kind", ["a folder", "paths", "arrays", "float64"])
def test_more_images_than_the_limit_are_thinned_evenly(kind, folder, pixels, digits):
    np.testing.assert_array_equal(collect(SETS[kind](folder, pixels, digits), limit=8), digits[::3])


def test_an_iterator_is_read_no_further_than_needed(digits):
    assert len(collect(itertools.repeat(digits[:5]), limit=12)) == 12


def test_images_are_preprocessed_to_the_size_that_is_asked_for(pixels):
    assert collect(list(pixels), size=(48, 48)).shape == (24, 1, 48, 48)


FAULTS = {
    "too few": (lambda digits: digits[:7], "too few images to quantize a network: 7"),
    "none": (lambda digits: [], "too few images to quantize a network: 0"),
    "other channels": (lambda digits: np.repeat(digits, 3, axis=1), "should be \\(1, 32, 32\\)"),
    "mixed sizes": (lambda digits: [*digits, digits[0][:, 1:]], "\\(1, 31, 32\\) but should be"),
    "NaN": (lambda digits: np.where(digits == digits[0, 0, 0, 0], np.nan, digits), "not finite"),
    "one image": (lambda digits: digits[0], "is not a set of images"),
    "images with labels": (lambda digits: zip(digits, range(24)), "tuple is not an image"),
    "a mapping": (lambda digits: {"images": digits}, "dict is not a set of images"),
    "a number": (lambda digits: 5, "int is not a set of images"),
    "float pixels": (lambda digits: list(digits[:, 0]), "is not a set of images"),
    "uint8 batch": (lambda digits: digits.astype(np.uint8), "an image is"),
    "a rectangle": (lambda digits: [np.zeros((8, 8), np.uint8)] * 9, "to squares"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_images_are_refused(fault, digits):
    make, message = FAULTS[fault]
    with pytest.raises(ArgumentError, match=message) as caught:
        collect(make(digits), size=(32, 48) if fault == "a rectangle" else None)
    assert caught.value.hint or caught.value.expected


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="missing"):
        collect(tmp_path / "missing")
