"""The weights of a deploy-form RepVGG as plain arrays, layer by layer in the order in which they run.

Lowering starts from this. It packs the arrays into memory that machine code reads without any check, so the shapes are
checked here: against the variant where it is known, and always against one another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.layouts import block_sort_key, same_shape
from ..errors import PathLike, StateError
from ..registry.architecture import deploy_shapes
from ..registry.specs import Architecture

KERNEL = ".rbr_reparam.weight"
MAX_LISTED = 10  # problems that an error message names


class LinearWeights(NamedTuple):
    """A linear layer: weight (outputs, inputs) and bias (outputs,)."""

    weight: NDArray[Any]
    bias: NDArray[Any]


@dataclass(frozen=True, eq=False)
class SEWeights:
    """Squeeze-and-excitation; ``after_relu`` says on which side of the block's ReLU it stands."""

    down: LinearWeights
    up: LinearWeights
    after_relu: bool


class KernelShape:
    """What the shape of a kernel (groups, O / groups, I / groups, 3, 3) says."""

    kernel: NDArray[Any]

    @property
    def groups(self) -> int:
        return len(self.kernel)

    @property
    def in_channels(self) -> int:
        return int(self.kernel.shape[2]) * self.groups

    @property
    def out_channels(self) -> int:
        return int(self.kernel.shape[1]) * self.groups


@dataclass(frozen=True, eq=False)
class ConvLayer(KernelShape):
    """A deploy-form block: kernel (groups, O / groups, I / groups, 3, 3) and bias (O,).

    It is padded by ``dilation`` zeros on each side. ``feature`` is the name under which its output is returned, or None
    if it is not. ``name`` is the block's in a state dict, such as "stage1.0".
    """

    kernel: NDArray[Any]
    bias: NDArray[Any]
    stride: int
    se: Optional[SEWeights] = None
    feature: Optional[str] = None
    dilation: int = 1
    name: str = ""


@dataclass(frozen=True, eq=False)
class NetworkWeights:
    """A network: convolutions in a row, then a head on the global average, that average itself, or feature maps."""

    layers: Tuple[ConvLayer, ...]
    head: Optional[LinearWeights]

    @property
    def returns_features(self) -> bool:
        """Whether the outputs are named feature maps."""
        return any(layer.feature is not None for layer in self.layers)


def weights_from_state_dict(
    state_dict: Mapping[str, NDArray[Any]], features: Mapping[int, str] = MappingProxyType({})
) -> NetworkWeights:
    """Return the layers of a deploy-form state dict with canonical keys.

    ``features`` maps the numbers of stages (0 is the stem) to the names under which their outputs are returned.
    """
    names = sorted((key[: -len(KERNEL)] for key in state_dict if key.endswith(KERNEL)), key=block_sort_key)
    stages = [_stage(name) for name in names]
    layers: List[ConvLayer] = []
    for index, name in enumerate(names):
        is_first = index == 0 or stages[index - 1] != stages[index]
        is_last = index == len(names) - 1 or stages[index + 1] != stages[index]
        kernel = state_dict[name + KERNEL]
        layers.append(
            ConvLayer(
                kernel if kernel.ndim == 5 else kernel[None],
                state_dict[f"{name}.rbr_reparam.bias"].reshape(-1),
                stride=2 if is_first else 1,
                se=_se(state_dict, name),
                feature=features.get(stages[index]) if is_last else None,
                name=name,
            )
        )
    return NetworkWeights(tuple(layers), _linear(state_dict, "linear") if "linear.weight" in state_dict else None)


def with_geometries(weights: NetworkWeights, geometries: Sequence[Tuple[int, int]]) -> NetworkWeights:
    """Return a network with this (stride, dilation) of each layer."""
    layers = (
        replace(layer, stride=stride, dilation=dilation)
        for layer, (stride, dilation) in zip(weights.layers, geometries)
    )
    return replace(weights, layers=tuple(layers))


def conv_output_size(size: int, stride: int) -> int:
    """Return the height or width after a 3x3 convolution with as much padding as dilation."""
    return (size - 1) // stride + 1


def check_state_dict(
    state_dict: Mapping[str, NDArray[Any]],
    architecture: Architecture,
    num_classes: Optional[int] = None,
    path: Optional[PathLike] = None,
    *,
    has_head: bool = True,
) -> None:
    """Raise StateError unless these are exactly the arrays of the variant's deploy form: keys, shapes, and float32.

    Values may be anything, NaN and infinity included. ``path`` is the file that they come from, for the error. Without
    ``has_head`` there must be no linear layer.
    """
    shapes = deploy_shapes(architecture, num_classes)
    if not has_head:
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith("linear.")}
    missing = [key for key in shapes if key not in state_dict]
    unexpected = [key for key in state_dict if key not in shapes]
    shared = [key for key in shapes if key in state_dict]
    mismatches = [
        (key, shapes[key], state_dict[key].shape)
        for key in shared
        if not same_shape(shapes[key], state_dict[key].shape)
    ]
    not_float32 = [key for key in shared if state_dict[key].dtype != np.float32]
    problems = [
        *(f"missing: {key}" for key in missing),
        *(f"unexpected: {key}" for key in unexpected),
        *(f"wrong shape: {key} is {actual} but should be {expected}" for key, expected, actual in mismatches),
        *(f"not float32: {key} ({state_dict[key].dtype})" for key in not_float32),
    ]
    if problems:
        has_no_head = problems == ["missing: linear.weight", "missing: linear.bias"]
        raise state_error(
            problems,
            missing=missing,
            unexpected=unexpected,
            shape_mismatches=mismatches,
            path=path,
            hint="compile what create returns for them with features_only=True"
            if has_no_head
            else "correct the variant or num_classes in the checkpoint's registry entry, or name another file",
        )


def check_layers(weights: NetworkWeights, channels: Optional[int] = None) -> None:
    """Raise StateError unless each layer fits the output of the previous one and all arrays are float32.

    ``channels`` is the number of channels of the images, by default that of the first layer.
    """
    problems = [] if weights.layers else ["there are no layers"]
    for index, layer in enumerate(weights.layers):
        problems += layer_problems(f"layer {index}", layer, channels)
        channels = layer.bias.size
    if weights.head is not None:
        problems += linear_problems("the head", weights.head, inputs=channels)
    if problems:
        raise state_error(problems)


def layer_problems(name: str, layer: Any, channels: Optional[int], dtype: Any = np.float32) -> List[str]:
    """Return what is wrong with a layer for an input of so many channels; ``dtype`` is that of its kernel."""
    kernel, outputs = layer.kernel, layer.bias.size
    expected = f"(groups, {outputs} / groups, {channels or 'inputs'} / groups, 3, 3)"
    problems = array_problems(f"{name}'s bias", layer.bias, (outputs,))
    if kernel.ndim != 5 or kernel.shape[3:] != (3, 3) or layer.out_channels != outputs or 0 in kernel.shape:
        return [*problems, f"{name}'s kernel is {kernel.shape} but should be {expected}"]
    if channels is not None and layer.in_channels != channels:
        problems.append(f"{name}'s kernel takes {layer.in_channels} channels, but its input has {channels}")
    problems += array_problems(f"{name}'s kernel", kernel, kernel.shape, dtype)
    if layer.se is not None:
        problems += linear_problems(f"{name}'s SE reduction", layer.se.down, inputs=outputs)
        squeezed = layer.se.down.bias.size
        problems += linear_problems(f"{name}'s SE expansion", layer.se.up, inputs=squeezed, outputs=outputs)
    return problems


def linear_problems(
    name: str, linear: LinearWeights, *, inputs: Optional[int], outputs: Optional[int] = None
) -> List[str]:
    """Return what is wrong with a linear layer."""
    outputs = linear.bias.size if outputs is None else outputs
    expected = (outputs, linear.weight.shape[-1] if inputs is None else inputs)
    return [
        *array_problems(f"{name}'s weight", linear.weight, expected),
        *array_problems(f"{name}'s bias", linear.bias, (outputs,)),
    ]


def array_problems(name: str, array: NDArray[Any], shape: Tuple[int, ...], dtype: Any = np.float32) -> List[str]:
    """Return what is wrong with an array that should have this shape and dtype."""
    problems = []
    if array.shape != shape or 0 in shape:
        problems.append(f"{name} is {array.shape} but should be {shape}")
    if array.dtype != dtype:
        problems.append(f"{name} is {array.dtype}, not {np.dtype(dtype).name}")
    return problems


def state_error(problems: List[str], **data: Any) -> StateError:
    """Return the error that lists the first problems."""
    more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    lines = ["the weights do not fit the network that is to be compiled:", *problems[:MAX_LISTED], *more]
    return StateError("\n  ".join(lines), **data)


def _stage(name: str) -> int:
    return int(name[len("stage")])


def _se(state_dict: Mapping[str, NDArray[Any]], name: str) -> Optional[SEWeights]:
    for part in ("se", "post_se"):
        if f"{name}.{part}.down.weight" in state_dict:
            down, up = (_linear(state_dict, f"{name}.{part}.{layer}") for layer in ("down", "up"))
            return SEWeights(down, up, after_relu=part == "post_se")
    return None


def _linear(state_dict: Mapping[str, NDArray[Any]], name: str) -> LinearWeights:
    weight = state_dict[f"{name}.weight"]
    return LinearWeights(weight.reshape(len(weight), -1), state_dict[f"{name}.bias"].reshape(-1))
