"""Channels of very different ranges: dividing them by powers of two changes no result, and saves the small ones.

The kind of fault: one scale for all channels of an activation leaves the small channels a few of its 256 steps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from repvgg_zoo.inference.equalization import equalize
from repvgg_zoo.inference.ir import NetworkWeights
from repvgg_zoo.inference.quantize import quantize_weights
from tests.inference.reference import Layer, compute, images, random_weights

NETWORKS = {
    "plain": [Layer(16, 2), Layer(16), Layer(24, 2)],
    "grouped": [Layer(16, 2), Layer(16, groups=4), Layer(32, 2, groups=2)],
    "SE": [Layer(16, 2, se="before"), Layer(16, se="after"), Layer(16, 2, se="before")],
    "features": [Layer(16, 2, feature=True), Layer(16), Layer(24, 2, feature=True)],
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_outputs_do_not_change(kind):
    weights = random_weights(3, NETWORKS[kind], None if kind == "features" else 10)
    random = np.random.RandomState(0)
    peaks = [np.exp2(random.uniform(-8, 8, layer.out_channels)) for layer in weights.layers]
    peaks[0][3], peaks[1][5] = 0, np.inf
    equalized = equalize(weights, peaks)
    x = images(2, 3, 16, 16)
    for name, expected in compute(weights, x).items():
        np.testing.assert_allclose(compute(equalized, x)[name], expected, rtol=1e-12, atol=1e-12)
    changed = [not np.array_equal(a.bias, b.bias) for a, b in zip(weights.layers, equalized.layers)]
    assert changed == [kind != "features", True, False]


def test_channels_become_more_equal_by_powers_of_two():
    weights = random_weights(3, NETWORKS["plain"], 10)
    peaks = [np.exp2(np.arange(-8, 8).astype(float)), np.ones(16), np.ones(24)]
    first = equalize(weights, peaks).layers[0]
    factors = weights.layers[0].bias / first.bias
    np.testing.assert_array_equal(np.log2(factors), np.rint(np.log2(factors)))
    divided = np.log2(peaks[0] / factors)
    assert divided.max() - divided.min() <= 8.5


def spread(weights: NetworkWeights, exponent: float) -> NetworkWeights:
    """Return the same network with the ranges of channels spread over powers of two."""
    random = np.random.RandomState(1)
    layers = list(weights.layers)
    for index in range(len(layers) - 1):
        factors = np.exp2(random.uniform(-exponent, exponent, layers[index].out_channels)).astype(np.float32)
        first, second = layers[index], layers[index + 1]
        layers[index] = replace(
            first, kernel=first.kernel * factors.reshape(*first.kernel.shape[:2], 1, 1, 1), bias=first.bias * factors
        )
        layers[index + 1] = replace(second, kernel=second.kernel / factors.reshape(second.groups, 1, -1, 1, 1))
    return replace(weights, layers=tuple(layers))


def test_a_network_of_unequal_channels_keeps_its_accuracy_and_others_stay_as_they_are():
    weights, x = random_weights(3, [Layer(32, 2), *[Layer(32)] * 4], 10), images(20, 3, 16, 16)
    snr, changed = {}, {}
    for exponent in (0, 3):
        network = spread(weights, exponent)
        quantized, report = quantize_weights(network, x[4:], x[:4], bits=8, goals=(0, 0), threads=1)
        changed[exponent] = not np.array_equal(quantized.layers[0].kernel, network.layers[0].kernel)
        snr[exponent] = report.snr
    assert changed == {0: False, 3: True}
    assert snr[3] > snr[0] - 14  # without equalization: 20 dB less
