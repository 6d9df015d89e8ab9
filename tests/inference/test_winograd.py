"""Winograd's matrices give exactly the convolution in rational arithmetic, of either stride."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repvgg_zoo.inference.jit.winograd import WINOGRAD_TRANSFORMS

every_transform = pytest.mark.parametrize(
    "transform", WINOGRAD_TRANSFORMS, ids=lambda transform: f"F{transform.m}, stride {transform.stride}"
)


def exact(matrix):
    """The fractions that the float entries stand for; all denominators are divisors of 24."""
    fractions = [[Fraction(value).limit_denominator(24) for value in row] for row in matrix]
    assert [[float(value) for value in row] for row in fractions] == [list(map(float, row)) for row in matrix]
    return np.array(fractions, object)


def matrices(transform):
    """B^T, G, and A^T with a column for each product instead of one for each element, which is their sum."""
    AT = np.repeat(exact(transform.AT), transform.products_per_element, axis=1)
    return exact(transform.BT), exact(transform.G), AT


@every_transform
def test_every_pixel_and_weight_counts_as_in_a_convolution(transform):
    # Both sides are linear in the pixels and in the weights, so what holds for units holds for all, also in two
    # dimensions, where each matrix is applied to rows and to columns.
    BT, G, AT = matrices(transform)
    for pixel in range(transform.side):
        for weight in range(3):
            outputs = AT @ (BT[:, pixel] * G[:, weight])
            expected = [1 if index * transform.stride + weight == pixel else 0 for index in range(transform.m)]
            assert outputs.tolist() == expected


@every_transform
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_tile_of_outputs_is_that_of_the_convolution(transform, data):
    side, stride = transform.side, transform.stride
    whole = st.integers(-100, 100)
    pixels = np.array(data.draw(st.lists(whole, min_size=side * side, max_size=side * side)), object)
    weights = np.array(data.draw(st.lists(whole, min_size=9, max_size=9)), object)
    BT, G, AT = matrices(transform)
    pixels, weights = pixels.reshape(side, side), weights.reshape(3, 3)
    products = (BT @ pixels @ BT.T) * (G @ weights @ G.T)
    outputs = AT @ products @ AT.T
    for y in range(transform.m):
        for x in range(transform.m):
            top, left = y * stride, x * stride
            assert outputs[y, x] == (pixels[top : top + 3, left : left + 3] * weights).sum()


@every_transform
def test_a_tile_has_the_pixels_that_its_outputs_need(transform):
    assert transform.side == (transform.m - 1) * transform.stride + 3


@every_transform
def test_each_product_is_part_of_one_element(transform):
    products = [product for element in transform.products for product in element]
    count = len(transform.BT)
    assert sorted(products) == [(i, j) for i in range(count) for j in range(count)]
    assert (len(products), len(transform.products)) == (transform.num_products, transform.num_elements)


@every_transform
def test_weights_are_transformed_as_the_matrix_says(transform):
    kernels = np.random.RandomState(0).standard_normal((9, 5)).astype(np.float32)
    G = np.array(transform.G)
    transformed = np.full((transform.num_products, 5), np.nan, np.float32)
    transform.transform_weights(kernels, transformed)
    order = [product for element in transform.products for product in element]
    for index in range(5):
        expected = G @ kernels[:, index].astype(np.float64).reshape(3, 3) @ G.T
        # Nine products and their sum in float32: at most about ten roundings of 6e-8.
        assert np.allclose(transformed[:, index], [expected[i, j] for i, j in order], rtol=0, atol=1e-6)
