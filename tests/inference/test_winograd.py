"""Winograd's matrices give exactly the convolution in rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repvgg_zoo.inference.jit.winograd import WINOGRAD_TRANSFORMS


def exact(matrix):
    """The fractions that the float entries stand for; all denominators are divisors of 24."""
    fractions = [[Fraction(value).limit_denominator(24) for value in row] for row in matrix]
    assert [[float(value) for value in row] for row in fractions] == [list(map(float, row)) for row in matrix]
    return np.array(fractions, object)


@pytest.mark.parametrize("transform", WINOGRAD_TRANSFORMS, ids=lambda transform: f"F{transform.m}")
def test_every_pixel_and_weight_counts_as_in_a_convolution(transform):
    # Both sides are linear in the pixels and in the weights, so what holds for units holds for all, also in two
    # dimensions, where each matrix is applied to rows and to columns.
    BT, G, AT = (exact(matrix) for matrix in (transform.BT, transform.G, transform.AT))
    for pixel in range(transform.m + 2):
        for weight in range(3):
            outputs = AT @ (BT[:, pixel] * G[:, weight])
            assert outputs.tolist() == [1 if index + weight == pixel else 0 for index in range(transform.m)]


@pytest.mark.parametrize("transform", WINOGRAD_TRANSFORMS, ids=lambda transform: f"F{transform.m}")
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_tile_of_outputs_is_that_of_the_convolution(transform, data):
    side = transform.m + 2
    whole = st.integers(-100, 100)
    pixels = np.array(data.draw(st.lists(whole, min_size=side * side, max_size=side * side)), object)
    weights = np.array(data.draw(st.lists(whole, min_size=9, max_size=9)), object)
    BT, G, AT = (exact(matrix) for matrix in (transform.BT, transform.G, transform.AT))
    pixels, weights = pixels.reshape(side, side), weights.reshape(3, 3)
    products = (BT @ pixels @ BT.T) * (G @ weights @ G.T)
    outputs = AT @ products @ AT.T
    for y in range(transform.m):
        for x in range(transform.m):
            assert outputs[y, x] == (pixels[y : y + 3, x : x + 3] * weights).sum()


@pytest.mark.parametrize("transform", WINOGRAD_TRANSFORMS, ids=lambda transform: f"F{transform.m}")
def test_weights_are_transformed_as_the_matrix_says(transform):
    kernels = np.random.RandomState(0).standard_normal((9, 5)).astype(np.float32)
    G = np.array(transform.G)
    transformed = np.full((transform.num_elements, 5), np.nan, np.float32)
    transform.transform_weights(kernels, transformed)
    for index in range(5):
        expected = G @ kernels[:, index].astype(np.float64).reshape(3, 3) @ G.T
        # Nine products and their sum in float32: at most about ten roundings of 6e-8.
        assert np.allclose(transformed[:, index], expected.reshape(-1), rtol=0, atol=1e-6)
