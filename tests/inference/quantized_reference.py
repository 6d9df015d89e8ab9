"""Quantized layers as their definition says, in 64-bit integers, and random weights for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional, Sequence

import numpy as np

from repvgg_zoo.inference.ir import ConvLayer
from repvgg_zoo.inference.quantized import QuantizedConvLayer, QuantizedWeights
from tests.inference.reference import Layer, random_weights

STEP = 0.02  # the scale of all activations: with 255 of them, few activations of scale 1 are cut off


def quantized_weights(
    channels: int,
    layers: Sequence[Layer],
    classes: Optional[int] = None,
    *,
    stay_float: Sequence[int] = (0,),
    dilation: int = 1,
    seed: int = 0,
) -> QuantizedWeights:
    """Return random weights; the layers whose index is in ``stay_float`` are float ones."""
    weights = random_weights(channels, layers, classes, seed)
    random = np.random.RandomState(seed)
    return QuantizedWeights(
        tuple(
            layer if index in stay_float else replace(rounded(layer, random), dilation=dilation)
            for index, layer in enumerate(weights.layers)
        ),
        weights.head,
    )


def rounded(layer: ConvLayer, random: np.random.RandomState) -> QuantizedConvLayer:
    """Round a layer's weights; where it can have an identity, it gets one. Shifts are random."""
    outs = layer.out_channels
    shift = random.randint(0, 4, outs).astype(np.uint8)
    scale = (np.abs(layer.kernel).reshape(outs, -1).max(axis=1) / 127 * random.uniform(0.5, 1, outs)).astype(np.float32)
    kernel = np.clip(np.rint(layer.kernel / scale.reshape(*layer.kernel.shape[:2], 1, 1, 1)), -127, 127).astype(np.int8)
    identity = None
    if layer.stride == 1 and layer.in_channels == outs:
        identity = random.uniform(-1, 1, outs).astype(np.float32)
        diagonal = np.arange(kernel.shape[1])
        kernel[:, diagonal, diagonal, 1, 1] = 0
    return QuantizedConvLayer(
        kernel, scale, shift, identity, layer.bias, STEP, layer.stride, layer.se, layer.feature, layer.dilation
    )


def exact_output(layer: QuantizedConvLayer, x: np.ndarray) -> np.ndarray:
    """Return the convolution of whole numbers (N, H, W, C), before ReLU and SE, float64."""
    images, height, width, _ = x.shape
    groups, wide, deep = layer.kernel.shape[:3]
    space, stride = layer.dilation, layer.stride
    padded = np.pad(x.astype(np.int64), [(0, 0), (space, space), (space, space), (0, 0)])
    rows, columns = -(-height // stride), -(-width // stride)
    outer, center = np.zeros((2, images, rows, columns, groups * wide), np.int64)
    for i in range(3):
        for j in range(3):
            ys = slice(i * space, i * space + stride * (rows - 1) + 1, stride)
            xs = slice(j * space, j * space + stride * (columns - 1) + 1, stride)
            sums = center if i == j == 1 else outer
            for group in range(groups):
                pixels = padded[:, ys, xs, group * deep : (group + 1) * deep]
                weights = layer.kernel[group, :, :, i, j].astype(np.int64)
                sums[..., group * wide : (group + 1) * wide] += pixels @ weights.T
    total = outer + (center << layer.center_shift.astype(np.int64))
    assert np.abs(total).max() < 2**31
    y = total * (layer.kernel_scale.astype(np.float64) * layer.input_scale) + layer.bias
    return y if layer.identity is None else y + x * (layer.identity.astype(np.float64) * layer.input_scale)
