"""Graph: a network as ONNX operators on named tensors, before it is encoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.metadata import DEFAULT_BN_EPS
from ..inference.ir import conv_output_size
from ..inference.quantized import MAX_ACTIVATION, MAX_WEIGHT, QuantizedConvLayer
from ..registry.specs import Preprocessing
from .report import TensorInfo
from .source import ExportSource

Attribute = Union[int, float, Tuple[int, ...]]
Dim = Union[int, str]  # a text is the name of a size that is not fixed

INPUT, LOGITS, PROBABILITIES, POOLED = "input", "logits", "probabilities", "features"


class Node(NamedTuple):
    """One operator; its first output is also its name."""

    op_type: str
    inputs: Tuple[str, ...]
    output: str
    attributes: Mapping[str, Attribute]


@dataclass
class Graph:
    """Operators in order, with the arrays that they take by name; ``initializers`` are written as they are."""

    name: str
    inputs: List[TensorInfo] = field(default_factory=list)
    outputs: List[TensorInfo] = field(default_factory=list)
    nodes: List[Node] = field(default_factory=list)
    initializers: Dict[str, Any] = field(default_factory=dict)

    def add(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Attribute) -> str:
        """Append an operator and return the name of its output."""
        self.nodes.append(Node(op_type, tuple(inputs), output, attributes))
        return output

    def constant(self, name: str, array: Any) -> str:
        """Keep an array under a name, and return that."""
        self.initializers[name] = array
        return name


def build_graph(
    source: ExportSource,
    *,
    batch: Optional[int],
    image_size: Optional[Tuple[int, int]],
    uint8_input: Optional[Preprocessing],
    softmax: bool,
    signed: bool = False,
) -> Graph:
    """Return the network's graph; without ``batch`` or ``image_size``, those sizes have names instead.

    With ``uint8_input`` the images are uint8 (N, H, W, C) in RGB order, and that preprocessing's color order and
    normalization are a part of the graph. ``signed`` activations of quantized layers are int8 instead of uint8.
    """
    graph = Graph("RepVGG" if source.spec is None else source.spec.name)
    n: Dim = "batch" if batch is None else batch
    sizes: Tuple[Dim, ...] = ("height", "width") if image_size is None else image_size
    if uint8_input is None:
        graph.inputs.append(TensorInfo(INPUT, "float32", (n, source.in_chans, *sizes)))
        x = INPUT
    else:
        graph.inputs.append(TensorInfo(INPUT, "uint8", (n, *sizes, source.in_chans)))
        x = _add_preprocessing(graph, uint8_input)
    for layer in source.weights.layers:
        sizes = tuple(size if isinstance(size, str) else conv_output_size(size, layer.stride) for size in sizes)
        if isinstance(layer, QuantizedConvLayer):
            x = _add_rounding(graph, f"{layer.name}.rbr_reparam", x, source.state_dict, signed)
        x = _add_block(graph, source, layer.name, x, layer.stride, layer.dilation, layer.feature)
        if layer.feature is not None:
            names = tuple(f"{layer.feature}_{size}" if isinstance(size, str) else size for size in sizes)
            graph.outputs.append(TensorInfo(layer.feature, "float32", (n, layer.out_channels, *names)))
    if not source.weights.returns_features:
        _add_head(graph, source, x, n, softmax)
    return graph


def channel_order(preprocessing: Preprocessing) -> List[int]:
    """Return for each channel of the network's input its index in an image in RGB order."""
    order = list(range(len(preprocessing.mean)))
    return order[::-1] if preprocessing.color_order == "BGR" else order


def _add_preprocessing(graph: Graph, preprocessing: Preprocessing) -> str:
    """Add the operations of ``preprocess`` after resizing and cropping, in its order, so that the results are equal."""
    x = graph.add("Cast", [INPUT], "preprocessing.cast", to=1)
    order = channel_order(preprocessing)
    if order != sorted(order):
        indices = graph.constant("preprocessing.color_order", np.array(order, np.int64))
        x = graph.add("Gather", [x, indices], "preprocessing.reordered", axis=3)
    scale = graph.constant("preprocessing.scale", np.array(255, np.float32))
    mean = graph.constant("preprocessing.mean", np.array(preprocessing.mean, np.float32))
    std = graph.constant("preprocessing.std", np.array(preprocessing.std, np.float32))
    x = graph.add("Div", [x, scale], "preprocessing.scaled")
    x = graph.add("Div", [graph.add("Sub", [x, mean], "preprocessing.centered"), std], "preprocessing.normalized")
    return graph.add("Transpose", [x], "preprocessing.transposed", perm=(0, 3, 1, 2))


def _add_block(
    graph: Graph, source: ExportSource, block: str, x: str, stride: int, dilation: int, feature: Optional[str]
) -> str:
    if f"{block}.rbr_reparam.scale" in source.state_dict:
        x = _add_quantized_conv(graph, source.state_dict, f"{block}.rbr_reparam", x, stride, dilation)
    elif source.form == "deploy":
        x = _add_conv(graph, source, f"{block}.rbr_reparam", x, stride, dilation)
    else:
        total = _add_branch(graph, source, f"{block}.rbr_dense", x, stride, dilation)
        total = graph.add(
            "Add", [total, _add_branch(graph, source, f"{block}.rbr_1x1", x, stride, dilation)], f"{block}.add"
        )
        if f"{block}.rbr_identity.weight" in source.state_dict:
            identity = _add_bn(graph, source, f"{block}.rbr_identity", x)
            total = graph.add("Add", [total, identity], f"{block}.add_identity")
        x = total
    last = feature or f"{block}.relu"
    if f"{block}.se.down.weight" in source.state_dict:
        return graph.add("Relu", [_add_se(graph, source, f"{block}.se", x, f"{block}.se")], last)
    if f"{block}.post_se.down.weight" in source.state_dict:
        x = graph.add("Relu", [x], f"{block}.relu")
        return _add_se(graph, source, f"{block}.post_se", x, feature or f"{block}.post_se")
    return graph.add("Relu", [x], last)


def _add_branch(graph: Graph, source: ExportSource, branch: str, x: str, stride: int, dilation: int) -> str:
    x = _add_conv(graph, source, f"{branch}.conv", x, stride, dilation)
    return _add_bn(graph, source, f"{branch}.bn", x)


def _add_conv(graph: Graph, source: ExportSource, name: str, x: str, stride: int = 1, dilation: int = 1) -> str:
    array = source.state_dict[f"{name}.weight"]
    groups = array.shape[0] if array.ndim == 5 else 1
    weight = graph.constant(f"{name}.weight", array.reshape(-1, *array.shape[-3:]))
    inputs = [x, weight]
    bias = source.state_dict.get(f"{name}.bias")
    if bias is not None:
        inputs.append(graph.constant(f"{name}.bias", bias.reshape(-1)))
    return graph.add("Conv", inputs, name, **_geometry(array.shape[-1], groups, stride, dilation))


def _geometry(kernel_size: int, groups: int, stride: int, dilation: int) -> Dict[str, Attribute]:
    return {
        "dilations": (dilation,) * 2 if kernel_size > 1 else (1, 1),
        "group": groups,
        "kernel_shape": (kernel_size, kernel_size),
        "pads": (dilation * (kernel_size // 2),) * 4,
        "strides": (stride, stride),
    }


def _add_quantized_conv(
    graph: Graph, arrays: Mapping[str, NDArray[Any]], name: str, x: str, stride: int, dilation: int
) -> str:
    """Add what a QuantizedConvLayer is: QDQ around the kernel, and the two exact parts of RepVGG's.

    A center tap with scales of its own is a 1x1 convolution, and the identity in float a product with the input.
    """
    kernel, scale = arrays[f"{name}.weight"], arrays[f"{name}.scale"]
    shift, identity = arrays[f"{name}.center_shift"], arrays.get(f"{name}.identity")
    groups = kernel.shape[0] if kernel.ndim == 5 else 1
    kernel = kernel.reshape(-1, *kernel.shape[-3:])
    bias = graph.constant(f"{name}.bias", arrays[f"{name}.bias"])
    has_center = bool(shift.any())
    outer = np.where(np.arange(9).reshape(3, 3) == 4, np.int8(0), kernel) if has_center else kernel
    weight = _add_kernel(graph, f"{name}.weight", outer, scale)
    total = graph.add("Conv", [x, weight, bias], name, **_geometry(3, groups, stride, dilation))
    if has_center:
        weight = _add_kernel(graph, f"{name}.center", kernel[..., 1:2, 1:2], scale * np.exp2(shift, dtype=np.float32))
        center = graph.add("Conv", [x, weight], f"{name}.center_conv", **_geometry(1, groups, stride, dilation))
        total = graph.add("Add", [total, center], f"{name}.add_center")
    if identity is not None:
        factors = graph.constant(f"{name}.identity", identity.reshape(1, -1, 1, 1))
        product = graph.add("Mul", [x, factors], f"{name}.identity_product")
        total = graph.add("Add", [total, product], f"{name}.add_identity")
    return total


def _add_rounding(graph: Graph, name: str, x: str, arrays: Mapping[str, NDArray[Any]], signed: bool) -> str:
    """Add the QDQ of a quantized layer's input, which is never negative, so int8 has half as many steps of use."""
    scale, zero = arrays[f"{name}.input_scale"], np.array(0, np.uint8)
    if signed:
        scale, zero = scale * np.float32(MAX_ACTIVATION / MAX_WEIGHT), np.array(0, np.int8)
    step = graph.constant(f"{name}.input_scale", np.asarray(scale, np.float32))
    zero_point = graph.constant(f"{name}.input_zero_point", zero)
    x = graph.add("QuantizeLinear", [x, step, zero_point], f"{name}.input_quantized")
    return graph.add("DequantizeLinear", [x, step, zero_point], f"{name}.input")


def _add_kernel(graph: Graph, name: str, kernel: NDArray[Any], scale: NDArray[Any]) -> str:
    """Add int8 weights with a scale for each output channel; return the float tensor that they stand for."""
    weight, scales = graph.constant(name, np.ascontiguousarray(kernel)), graph.constant(f"{name}_scale", scale)
    zeros = graph.constant(f"{name}_zero_point", np.zeros(len(scale), np.int8))
    return graph.add("DequantizeLinear", [weight, scales, zeros], f"{name}_dequantized", axis=0)


def _add_bn(graph: Graph, source: ExportSource, name: str, x: str) -> str:
    inputs = [x]
    for part in ("weight", "bias", "running_mean", "running_var"):
        inputs.append(graph.constant(f"{name}.{part}", source.state_dict[f"{name}.{part}"].reshape(-1)))
    return graph.add("BatchNormalization", inputs, name, epsilon=source.metadata.bn_eps.get(name, DEFAULT_BN_EPS))


def _add_se(graph: Graph, source: ExportSource, name: str, x: str, output: str) -> str:
    gate = graph.add("GlobalAveragePool", [x], f"{name}.pool")
    gate = graph.add("Relu", [_add_conv(graph, source, f"{name}.down", gate)], f"{name}.relu")
    gate = graph.add("Sigmoid", [_add_conv(graph, source, f"{name}.up", gate)], f"{name}.sigmoid")
    return graph.add("Mul", [x, gate], output)


def _add_head(graph: Graph, source: ExportSource, x: str, batch: Dim, softmax: bool) -> None:
    weight: Optional[NDArray[Any]] = source.state_dict.get("linear.weight")
    pool = graph.add("GlobalAveragePool", [x], "pool")
    if weight is None:
        channels = source.weights.layers[-1].out_channels
        graph.outputs.append(TensorInfo(graph.add("Flatten", [pool], POOLED, axis=1), "float32", (batch, channels)))
        return
    inputs = [graph.add("Flatten", [pool], "flatten", axis=1), graph.constant("linear.weight", weight)]
    inputs.append(graph.constant("linear.bias", source.state_dict["linear.bias"].reshape(-1)))
    output = graph.add("Gemm", inputs, LOGITS, transB=1)
    if softmax:
        output = graph.add("Softmax", [output], PROBABILITIES, axis=1)
    graph.outputs.append(TensorInfo(output, "float32", (batch, len(weight))))
