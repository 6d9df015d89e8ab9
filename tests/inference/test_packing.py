"""Weights in the order in which the kernels read them, packed without a second copy of them."""

import tracemalloc

import numpy as np
import pytest

from repvgg_zoo.inference.jit.kernels import NR
from repvgg_zoo.inference.jit.winograd import WINOGRAD_TRANSFORMS
from repvgg_zoo.inference.packing import aligned_zeros, pack_conv_weights, pack_linear_weights, pack_winograd_weights

every_transform = pytest.mark.parametrize("transform", WINOGRAD_TRANSFORMS, ids=lambda transform: transform.name)


def standard_normal(*shape):
    return np.random.RandomState(0).standard_normal(shape).astype(np.float32)


def peak_bytes(function, *arguments):
    """Return how much memory a call has at most, beside its arguments."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@every_transform
@pytest.mark.parametrize(("groups", "outs", "ins"), [(1, 32, 16), (1, 16, 112), (2, 32, 64)])
def test_transformed_weights_lie_by_element_group_panel_product_and_input(transform, groups, outs, ins):
    kernel = standard_normal(groups, outs, ins, 3, 3)
    packed = pack_conv_weights(kernel, groups * ins, groups * outs)
    out = np.full(transform.num_products * kernel.size // 9, np.nan, np.float32)
    pack_winograd_weights(packed, transform, out)
    G = np.array(transform.G)
    expected = np.einsum("yi,xj,gouij->yxgou", G, G, kernel)  # u: input
    start = 0
    for products in transform.products:
        for index, (y, x) in enumerate(products):
            u = out[start : start + len(products) * kernel.size // 9].reshape(groups, -1, len(products), ins, NR)
            one = expected[y, x].reshape(groups, -1, NR, ins).swapaxes(2, 3)
            assert np.allclose(u[:, :, index], one, rtol=0, atol=1e-5)
        start += len(products) * kernel.size // 9
    assert start == len(out)


@every_transform
def test_transforming_the_weights_of_a_layer_takes_no_copy_of_them(transform):
    kernel = standard_normal(1, 192, 192, 3, 3)
    packed = pack_conv_weights(kernel, 192, 192)
    out = np.empty(transform.num_products * kernel.size // 9, np.float32)
    assert peak_bytes(pack_winograd_weights, packed, transform, out) < kernel.nbytes / 4


def test_linear_weights_are_zero_beyond_outputs_and_inputs():
    weight = standard_normal(NR + 3, 20)
    out = np.full((2, 24, NR), np.nan, np.float32)
    pack_linear_weights(weight, out)
    assert np.array_equal(out[0, :20], weight[:NR].T)
    assert np.array_equal(out[1, :20, :3], weight[NR:].T)
    assert not out[1, :, 3:].any()
    assert not out[:, 20:].any()


def test_packing_linear_weights_takes_no_copy_of_them():
    weight, out = standard_normal(1000, 128), aligned_zeros((63, 128, NR))
    assert peak_bytes(pack_linear_weights, weight, out) < weight.nbytes / 4
