"""Winograd's matrices: in rational arithmetic they give exactly what the convolution gives."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repvgg_zoo.inference.jit.winograd import TILES


def exact(matrix):
    """The fractions that the float entries stand for; all denominators are divisors of 24."""
    fractions = [[Fraction(value).limit_denominator(24) for value in row] for row in matrix]
    assert [[float(value) for value in row] for row in fractions] == [list(map(float, row)) for row in matrix]
    return np.array(fractions, object)


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"F{tile.size}")
def test_every_pixel_and_weight_counts_exactly_as_in_a_convolution(tile):
    # Both sides are linear in the pixels and in the weights, so what holds for units holds for all, also in two
    # dimensions, where each matrix is applied to rows and to columns.
    spread, kernel, gather = (exact(matrix) for matrix in (tile.spread, tile.kernel, tile.gather))
    for pixel in range(tile.size + 2):
        for weight in range(3):
            found = gather @ (spread[:, pixel] * kernel[:, weight])
            expected = [1 if result + weight == pixel else 0 for result in range(tile.size)]
            assert found.tolist() == expected


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"F{tile.size}")
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_square_of_results_is_the_convolutions(tile, data):
    side = tile.size + 2
    whole = st.integers(-100, 100)
    pixels = np.array(data.draw(st.lists(whole, min_size=side * side, max_size=side * side)), object)
    weights = np.array(data.draw(st.lists(whole, min_size=9, max_size=9)), object)
    spread, kernel, gather = (exact(matrix) for matrix in (tile.spread, tile.kernel, tile.gather))
    pixels, weights = pixels.reshape(side, side), weights.reshape(3, 3)
    products = (spread @ pixels @ spread.T) * (kernel @ weights @ kernel.T)
    found = gather @ products @ gather.T
    for y in range(tile.size):
        for x in range(tile.size):
            assert found[y, x] == (pixels[y : y + 3, x : x + 3] * weights).sum()


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"F{tile.size}")
def test_kernels_are_made_ready_as_the_matrix_says(tile):
    kernels = np.random.RandomState(0).standard_normal((9, 5)).astype(np.float32)
    matrix = np.array(tile.kernel)
    found = np.full((tile.points, 5), np.nan, np.float32)
    tile.weights(kernels, found)
    for index in range(5):
        expected = matrix @ kernels[:, index].astype(np.float64).reshape(3, 3) @ matrix.T
        # Nine products and their sum in float32: at most about ten roundings of 6e-8.
        assert np.allclose(found[:, index], expected.reshape(-1), rtol=0, atol=1e-6)
