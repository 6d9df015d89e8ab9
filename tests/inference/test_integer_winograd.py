"""Integer Winograd gives exactly the convolution's sums, whatever 8-bit numbers it gets, if the last value fits."""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_zoo.inference.jit.integer_winograd import INTEGER_TRANSFORMS

by_transform = pytest.mark.parametrize("transform", INTEGER_TRANSFORMS, ids=lambda transform: f"F{transform.name}")


@by_transform
def test_every_pixel_and_weight_counts_as_in_a_convolution_times_the_divisor(transform):
    # As for the float matrices: what holds for units holds for all. One dimension has the root of the factor of two.
    BT, G, AT = (np.array(matrix) for matrix in (transform.BT, transform.G, transform.AT))
    factor = transform.divisor * 2**transform.shift
    assert round(factor**0.5) ** 2 == factor
    starts = np.cumsum((0, *transform.products_per_element[:-1]))
    for pixel in range(transform.side):
        for weight in range(3):
            outputs = AT @ np.add.reduceat(BT[:, pixel] * G[:, weight], starts)
            expected = [transform.stride * index + weight == pixel for index in range(transform.m)]
            assert outputs.tolist() == [round(factor**0.5) * value for value in expected]


@by_transform
def test_transformed_activations_and_weights_fit_into_16_bits(transform):
    for matrix, largest in ((transform.BT, 255), (transform.G, 127)):
        twice = np.kron(np.array(matrix), np.array(matrix))
        assert np.abs(twice).sum(axis=1).max() * largest < 2**15


@by_transform
def test_dividing_is_multiplying_with_the_inverse_modulo_2_to_the_32(transform):
    assert transform.divisor * transform.divisor_inverse % 2**32 == 1
    assert 0 < transform.divisor_inverse < 2**32


@by_transform
def test_weights_are_transformed_as_the_matrix_says(transform):
    kernels = np.random.RandomState(0).randint(-127, 128, (9, 50))
    G = np.array(transform.G)
    order = [product for element in transform.products for product in element]
    transformed = [G @ kernel.reshape(3, 3) @ G.T for kernel in kernels.T]
    expected = [[kernel[i, j] for i, j in order] for kernel in transformed]
    assert np.array_equal(transform.transform_integers(kernels).T, expected)
