"""What a network's numbers compute, in float64 and by the definition, and random numbers to compute with."""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from repvgg_zoo.inference.ir import Block, Gate, Numbers


class Layer(NamedTuple):
    """A block to be drawn: ``gate`` is None, "before" or "after" ReLU."""

    channels: int
    stride: int = 1
    groups: int = 1
    gate: Optional[str] = None
    feature: bool = False


def drawn(channels: int, layers: Sequence[Layer], classes: Optional[int] = None, seed: int = 0) -> Numbers:
    """Numbers that keep the scale of images of scale 1, block by block, so that errors can be told by it."""
    random = np.random.RandomState(seed)

    def normal(*shape, scale=1.0):
        return (scale * random.standard_normal(shape)).astype(np.float32)

    def matrix(outs, ins):
        return normal(outs, ins, scale=ins**-0.5), normal(outs)

    blocks = []
    for index, layer in enumerate(layers):
        wide, deep = layer.channels // layer.groups, channels // layer.groups
        assert (wide * layer.groups, deep * layer.groups) == (layer.channels, channels)
        kernel = normal(layer.groups, wide, deep, 3, 3, scale=(2 / (9 * deep)) ** 0.5)
        squeezed = max(1, layer.channels // 4)
        gate = None
        if layer.gate is not None:
            down, up = matrix(squeezed, layer.channels), matrix(layer.channels, squeezed)
            gate = Gate(down, up, after_relu=layer.gate == "after")
        feature = f"block{index}" if layer.feature else None
        blocks.append(Block(kernel, normal(layer.channels, scale=0.1), layer.stride, gate, feature))
        channels = layer.channels
    return Numbers(tuple(blocks), None if classes is None else matrix(classes, channels))


def computed(numbers: Numbers, x: np.ndarray) -> Dict[str, np.ndarray]:
    """The outputs for images (N, C, H, W): features (N, C, H, W) by name, logits (N, classes) by ""."""
    outputs = {}
    x = x.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # for images that are not finite
        for block in numbers.blocks:
            x = _convolution(x, block.kernel, block.bias, block.stride)
            if block.gate is not None and not block.gate.after_relu:
                x = x * _factors(block.gate, x)
            x = np.maximum(x, 0)
            if block.gate is not None and block.gate.after_relu:
                x = x * _factors(block.gate, x)
            if block.feature is not None:
                outputs[block.feature] = x
        if numbers.head is not None:
            outputs[""] = _linear(numbers.head, x.mean(axis=(2, 3)))
    return outputs


def _convolution(x, kernel, bias, stride):
    groups, wide, deep = kernel.shape[:3]
    images, _, height, width = x.shape
    padded = np.pad(x.reshape(images, groups, deep, height, width), [(0, 0)] * 3 + [(1, 1)] * 2)
    rows, columns = -(-height // stride), -(-width // stride)
    out = np.zeros((images, groups, wide, rows, columns))
    for i in range(3):
        for j in range(3):
            pixels = padded[..., i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
            out += np.einsum("goi,ngihw->ngohw", kernel[..., i, j].astype(np.float64), pixels)
    return out.reshape(images, groups * wide, rows, columns) + bias.astype(np.float64)[:, None, None]


def _factors(gate, x):
    squeezed = np.maximum(_linear(gate.down, x.mean(axis=(2, 3))), 0)
    return 1 / (1 + np.exp(-_linear(gate.up, squeezed)))[:, :, None, None]


def _linear(matrix: Tuple[np.ndarray, np.ndarray], x: np.ndarray) -> np.ndarray:
    weight, bias = (array.astype(np.float64) for array in matrix)
    return x @ weight.T + bias


def images(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
