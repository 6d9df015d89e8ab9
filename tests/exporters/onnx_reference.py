"""The operators of our ONNX graphs in NumPy, as their specification says, for small networks."""

from __future__ import annotations

from typing import Any, Dict

import numpy as np

from repvgg_zoo.exporters.graph import Graph


def run(graph: Graph, x: np.ndarray) -> Dict[str, np.ndarray]:
    """The outputs for an input; each operator's inputs must have been computed before it."""
    tensors: Dict[str, Any] = {graph.inputs[0].name: x, **graph.initializers}
    for node in graph.nodes:
        assert node.output not in tensors
        tensors[node.output] = OPERATORS[node.op_type](*(tensors[name] for name in node.inputs), **node.attributes)
    return {output.name: tensors[output.name] for output in graph.outputs}


def conv(x, weight, bias=0.0, *, dilations, group, kernel_shape, pads, strides):
    assert weight.shape[2:] == kernel_shape and pads[:2] == pads[2:]
    height, width = (
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(x.shape[2:], pads, dilations, kernel_shape, strides)
    )
    x = np.pad(x, ((0, 0), (0, 0), (pads[0],) * 2, (pads[1],) * 2)).astype(np.float64)
    weight = weight.reshape(group, -1, *weight.shape[1:])
    x = x.reshape(len(x), group, -1, *x.shape[2:])
    total = 0.0
    for i in range(kernel_shape[0]):
        for j in range(kernel_shape[1]):
            top, left = i * dilations[0], j * dilations[1]
            pixels = x[..., top : top + height * strides[0] : strides[0], left : left + width * strides[1] : strides[1]]
            pixels = pixels[..., :height, :width]
            total = total + np.einsum("ngihw,goi->ngohw", pixels, weight[..., i, j])
    total = total.reshape(len(x), -1, height, width)
    return (total + np.reshape(bias, (-1, 1, 1))).astype(np.float32)


def batch_normalization(x, scale, bias, mean, var, *, epsilon):
    factor = scale / np.sqrt(var + epsilon)
    return x * factor[:, None, None] + (bias - mean * factor)[:, None, None]


def gemm(x, weight, bias, *, transB):
    return x @ (weight.T if transB else weight) + bias


def softmax(x, *, axis):
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def quantize_linear(x, scale, zero_point):
    limits = np.iinfo(zero_point.dtype)
    return np.clip(np.rint(x / scale) + zero_point, limits.min, limits.max).astype(zero_point.dtype)


def dequantize_linear(x, scale, zero_point, *, axis=1):
    shape = [-1 if index == axis else 1 for index in range(x.ndim)] if scale.ndim else []
    return (x.astype(np.float32) - zero_point.reshape(shape)) * scale.reshape(shape)


OPERATORS = {
    "Add": np.add,
    "BatchNormalization": batch_normalization,
    "Cast": lambda x, *, to: x.astype({1: np.float32}[to]),
    "Conv": conv,
    "DequantizeLinear": dequantize_linear,
    "Div": np.divide,
    "Flatten": lambda x, *, axis: x.reshape(int(np.prod(x.shape[:axis])), -1),
    "Gather": lambda x, indices, *, axis: np.take(x, indices, axis=axis),
    "Gemm": gemm,
    "GlobalAveragePool": lambda x: x.mean(axis=(2, 3), keepdims=True),
    "Mul": np.multiply,
    "QuantizeLinear": quantize_linear,
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Softmax": softmax,
    "Sub": np.subtract,
    "Transpose": lambda x, *, perm: x.transpose(perm),
}
