"""The integers of RepVGG's kernels: what the identity and the 1x1 branch add does not cost the 3x3 kernel its accuracy.

The kind of fault: one large weight of a channel makes the steps of all others coarse.
"""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_zoo.inference.ir import ConvLayer
from repvgg_zoo.inference.quantized import QuantizedWeights, check_quantized_layers, float_kernel
from repvgg_zoo.inference.weight_rounding import round_weights


def conv(channels=16, groups=1, stride=1, diagonal=0.0, center=0.0, seed=0):
    """A block like a re-parameterized one: what the identity and the 1x1 branch add, relative to the 3x3 kernel."""
    random = np.random.RandomState(seed)
    size = channels // groups
    kernel = random.standard_normal((groups, size, size, 3, 3)).astype(np.float32)
    kernel[..., 1, 1] += center * random.standard_normal(kernel.shape[:3]).astype(np.float32)
    kernel[:, range(size), range(size), 1, 1] += diagonal
    return ConvLayer(kernel, np.zeros(channels, np.float32), stride)


def rounded(layer, bits=8):
    return round_weights(layer, input_scale=0.1, tap_means=np.ones((layer.in_channels, 3, 3)), bits=bits)


def error(layer, bits, one_scale=False):
    """The error of the weights relative to the outer taps' size; ``one_scale`` for each channel is the usual way."""
    expected = layer.kernel.astype(np.float64)
    if one_scale:
        scale = abs(expected).max(axis=(2, 3, 4), keepdims=True) / (2 ** (bits - 1) - 1)
        actual = np.rint(expected / scale) * scale
    else:
        actual = float_kernel(rounded(layer, bits))
    return ((actual - expected) ** 2).sum() / (expected[..., 0, 0] ** 2).sum()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_large_identity_does_not_cost_accuracy(bits, groups):
    plain, with_identity = conv(groups=groups), conv(groups=groups, diagonal=30.0)
    assert error(with_identity, bits, one_scale=True) > 30 * error(with_identity, bits)
    assert error(with_identity, bits) < 1.2 * error(plain, bits)
    identity = rounded(with_identity, bits).identity
    expected = np.diagonal(with_identity.kernel[..., 1, 1], axis1=1, axis2=2).reshape(-1)
    np.testing.assert_array_equal(identity, expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_large_1x1_branch_costs_only_the_center_tap_accuracy(stride):
    layer = conv(center=16.0, stride=stride)
    assert error(layer, 4, one_scale=True) > 4 * error(layer, 4)
    assert 2 <= rounded(layer).center_shift.mean() <= 7


def test_plain_kernels_and_strided_ones_have_no_identity():
    assert rounded(conv()).identity is None
    assert rounded(conv(diagonal=30.0, stride=2)).identity is None


def test_the_bias_makes_up_for_what_rounding_changes_in_the_mean():
    layer = conv(diagonal=3.0)
    means = np.random.RandomState(1).uniform(0, 5, (16, 3, 3))
    result = round_weights(layer, input_scale=0.1, tap_means=means, bits=4)
    expected = np.einsum("goikl,ikl->go", layer.kernel, means)[0] + layer.bias
    actual = np.einsum("goikl,ikl->go", float_kernel(result), means)[0]
    np.testing.assert_allclose(actual + result.bias, expected, rtol=1e-5, atol=1e-4)
    assert abs(actual - expected).max() > 0.1


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_channels_of_zeros_and_of_extreme_weights_are_rounded(value):
    layer = conv()
    layer.kernel[0, 3] = value
    result = rounded(layer)
    assert np.isfinite(result.kernel_scale).all() and result.center_shift.max() <= 7
    np.testing.assert_allclose(float_kernel(result)[0, 3], value, rtol=0.01)


def test_sums_that_would_leave_32_bits_get_a_smaller_shift():
    kernel = np.ones((1, 4, 2048, 3, 3), np.float32)
    kernel[..., 1, 1] = 100.0  # alone it would be shifted by 7 bits: 127 << 7, times 255, times 2048
    result = rounded(ConvLayer(kernel, np.zeros(4, np.float32), 2))
    assert result.center_shift.max() < 6
    stem = ConvLayer(np.ones((1, 2048, 3, 3, 3), np.float32), np.zeros(2048, np.float32), 2)
    check_quantized_layers(QuantizedWeights((stem, result), None))
