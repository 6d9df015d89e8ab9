"""A reference implementation in float64, written as the definition, and random weights for it."""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Sequence, Union

import numpy as np

from repvgg_zoo.inference.ir import ConvLayer, LinearWeights, NetworkWeights, SEWeights
from repvgg_zoo.inference.quantized import QuantizedConvLayer, QuantizedWeights


class Layer(NamedTuple):
    """A layer of random weights: ``se`` is None, "before" or "after" ReLU."""

    channels: int
    stride: int = 1
    groups: int = 1
    se: Optional[str] = None
    feature: bool = False


def random_weights(
    channels: int, layers: Sequence[Layer], classes: Optional[int] = None, seed: int = 0
) -> NetworkWeights:
    """Return weights that keep the scale of images of scale 1, layer by layer, so that errors can be judged by it."""
    random = np.random.RandomState(seed)

    def normal(*shape, scale=1.0):
        return (scale * random.standard_normal(shape)).astype(np.float32)

    def linear(outs, ins):
        return LinearWeights(normal(outs, ins, scale=ins**-0.5), normal(outs))

    convolutions = []
    for index, layer in enumerate(layers):
        wide, deep = layer.channels // layer.groups, channels // layer.groups
        assert (wide * layer.groups, deep * layer.groups) == (layer.channels, channels)
        kernel = normal(layer.groups, wide, deep, 3, 3, scale=(2 / (9 * deep)) ** 0.5)
        squeezed = max(1, layer.channels // 4)
        se = None
        if layer.se is not None:
            down, up = linear(squeezed, layer.channels), linear(layer.channels, squeezed)
            se = SEWeights(down, up, after_relu=layer.se == "after")
        feature = f"layer{index}" if layer.feature else None
        convolutions.append(ConvLayer(kernel, normal(layer.channels, scale=0.1), layer.stride, se, feature))
        channels = layer.channels
    return NetworkWeights(tuple(convolutions), None if classes is None else linear(classes, channels))


def compute(weights: Union[NetworkWeights, QuantizedWeights], x: np.ndarray) -> Dict[str, np.ndarray]:
    """The outputs for images (N, C, H, W): features (N, C, H, W) by name, logits (N, classes) by "".

    Sums of quantized layers are exact integers.
    """
    outputs = {}
    x = x.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # for images that are not finite
        for layer in weights.layers:
            if isinstance(layer, QuantizedConvLayer):
                x = _quantized_convolution(np.minimum(np.rint(x / layer.input_scale), 255), layer)
            else:
                x = _convolution(x, layer.kernel, layer.bias, layer.stride)
            if layer.se is not None and not layer.se.after_relu:
                x = x * _scales(layer.se, x)
            x = np.maximum(x, 0)
            if layer.se is not None and layer.se.after_relu:
                x = x * _scales(layer.se, x)
            if layer.feature is not None:
                outputs[layer.feature] = x
        if weights.head is not None:
            outputs[""] = _linear(weights.head, x.mean(axis=(2, 3)))
        elif not outputs:
            outputs[""] = x.mean(axis=(2, 3))
    return outputs


def _quantized_convolution(q, layer):
    """A layer's output for its input as whole numbers, before ReLU; float64 holds them exactly."""
    zeros = np.zeros(layer.out_channels)
    center = np.zeros(layer.kernel.shape, np.int8)
    center[..., 1, 1] = layer.kernel[..., 1, 1]
    sums = _convolution(q, layer.kernel - center, zeros, layer.stride)
    sums += _convolution(q, center, zeros, layer.stride) * 2.0 ** layer.center_shift[:, None, None]
    y = sums * (layer.kernel_scale.astype(np.float64) * layer.input_scale)[:, None, None]
    if layer.identity is not None:
        y += q * (layer.identity * layer.input_scale)[:, None, None]
    return y + layer.bias[:, None, None]


def _convolution(x, kernel, bias, stride):
    groups, wide, deep = kernel.shape[:3]
    images, _, height, width = x.shape
    padded = np.pad(x.reshape(images, groups, deep, height, width), [(0, 0)] * 3 + [(1, 1)] * 2)
    rows, columns = -(-height // stride), -(-width // stride)
    out = np.zeros((images, groups, wide, rows, columns))
    for i in range(3):
        for j in range(3):
            pixels = padded[..., i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
            products = kernel[..., i, j].astype(np.float64) @ pixels.reshape(images, groups, deep, rows * columns)
            out += products.reshape(out.shape)
    return out.reshape(images, groups * wide, rows, columns) + bias.astype(np.float64)[:, None, None]


def _scales(se, x):
    squeezed = np.maximum(_linear(se.down, x.mean(axis=(2, 3))), 0)
    return 1 / (1 + np.exp(-_linear(se.up, squeezed)))[:, :, None, None]


def _linear(linear: LinearWeights, x: np.ndarray) -> np.ndarray:
    weight, bias = (array.astype(np.float64) for array in linear)
    return x @ weight.T + bias


def images(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
