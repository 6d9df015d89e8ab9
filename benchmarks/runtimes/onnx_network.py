"""The deploy network as an ONNX model, for ONNX Runtime and OpenVINO: Conv, Relu, pooling, Gemm, and SE's parts."""

from __future__ import annotations

from typing import Any, List, Sequence

from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from .networks import Layer

OPSET, IR_VERSION = 17, 8  # supported by every runtime of the last years


def onnx_network(network: List[Layer], shape: Sequence[int]) -> ModelProto:
    """Return a model from ``images`` of this shape to ``logits``; the weights are arrays."""
    nodes: List[Any] = []
    weights: List[Any] = []

    def add(kind: str, name: str, inputs: List[str], pair: Sequence[Any] = (), **attributes: Any) -> str:
        for suffix, array in zip(("weight", "bias"), pair):
            weights.append(numpy_helper.from_array(array, f"{name}.{suffix}"))
            inputs = [*inputs, f"{name}.{suffix}"]
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    x = "images"
    for layer in network[:-1]:
        name, strides = layer.name, [layer.stride] * 2
        same = {"kernel_shape": [3, 3], "strides": strides, "pads": [1, 1, 1, 1], "group": layer.groups}
        x = add("Conv", f"{name}.conv", [x], (layer.weight, layer.bias), **same)
        if layer.se:
            gate = add("GlobalAveragePool", f"{name}.pool", [x])
            gate = add("Relu", f"{name}.down.relu", [add("Conv", f"{name}.down", [gate], layer.se[0])])
            gate = add("Sigmoid", f"{name}.gate", [add("Conv", f"{name}.up", [gate], layer.se[1])])
            x = add("Mul", f"{name}.scaled", [x, gate])
        x = add("Relu", f"{name}.relu", [x])
    head = network[-1]
    x = add("Flatten", "features", [add("GlobalAveragePool", "pool", [x])])
    add("Gemm", "logits", [x], (head.weight, head.bias), transB=1)
    graph = helper.make_graph(
        nodes,
        "RepVGG",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], head.weight.shape[0]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    checker.check_model(model)
    return model
