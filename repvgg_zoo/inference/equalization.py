"""equalize: the same network with channels of more equal ranges, as one scale has to suit all of an activation.

ReLU and SE's gate do not change when a channel is divided by a positive number, so a block's output channel can be
divided by one if the next block's weights for it are multiplied by the same (cross-layer equalization, Nagel et al.,
2019). The numbers are powers of two, which change no result's bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray

from .ir import ConvLayer, LinearWeights, NetworkWeights

SHARE = 0.5  # of a channel's range, in powers; the rest would make the ranges of the weights too unequal
MAX_EXPONENT = 6


def equalize(weights: NetworkWeights, peaks: Sequence[NDArray[Any]]) -> NetworkWeights:
    """Return a network with the same outputs; ``peaks`` has the largest value of each layer's output channels (O,).

    Feature maps that the network returns, and the last layer's output, stay as they are.
    """
    layers = list(weights.layers)
    for index, peak in enumerate(peaks[:-1]):
        if layers[index].feature is None:
            factors = _factors(peak)
            layers[index] = _divide_outputs(layers[index], factors)
            layers[index + 1] = _multiply_inputs(layers[index + 1], factors)
    return replace(weights, layers=tuple(layers))


def _factors(peak: NDArray[Any]) -> NDArray[Any]:
    """Return the powers of two by which channels are divided, float32; 1 for channels that were always zero."""
    logarithms = np.zeros(len(peak))
    used = np.isfinite(peak) & (peak > 0)
    logarithms[used] = np.log2(peak[used].astype(np.float64))
    logarithms[used] -= logarithms[used].mean() if used.any() else 0
    exponents = np.clip(np.rint(SHARE * logarithms), -MAX_EXPONENT, MAX_EXPONENT)
    result: NDArray[Any] = np.exp2(exponents).astype(np.float32)
    return result


def _divide_outputs(layer: ConvLayer, factors: NDArray[Any]) -> ConvLayer:
    groups, outs = layer.kernel.shape[:2]
    se = layer.se
    if se is not None:  # its gate sees the block's output as it was
        se = replace(se, down=LinearWeights(se.down.weight * factors, se.down.bias))
    kernel = layer.kernel / factors.reshape(groups, outs, 1, 1, 1)
    return replace(layer, kernel=kernel, bias=layer.bias / factors, se=se)


def _multiply_inputs(layer: ConvLayer, factors: NDArray[Any]) -> ConvLayer:
    return replace(layer, kernel=layer.kernel * factors.reshape(layer.groups, 1, -1, 1, 1))
