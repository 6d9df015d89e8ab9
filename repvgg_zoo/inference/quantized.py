"""The weights of a quantized network, layer by layer: int8 kernels, float32 scales, and blocks that stayed float.

Activations are unsigned: every block's input has passed a ReLU, so zero is 0 and all 256 values are used. The first
layer's input, an image, has not, so the first layer is a float one.

What is peculiar to RepVGG: the identity branch makes the diagonal of the center tap the largest weight of nearly every
channel, and the 1x1 branch enlarges the rest of that tap. So a layer may keep the diagonal in float32, and the center
tap may have a scale of its own, a power of two times the other taps' scale. Both leave the products exact integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Tuple, Union

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import PathLike
from .ir import (
    ConvLayer,
    KernelShape,
    LinearWeights,
    SEWeights,
    array_problems,
    layer_problems,
    linear_problems,
    state_error,
)

MAX_WEIGHT = 127
MAX_ACTIVATION = 255
MAX_SHIFT = 7


@dataclass(frozen=True, eq=False)
class QuantizedConvLayer(KernelShape):
    """A block with an int8 kernel (groups, O / groups, I / groups, 3, 3), values of -127 to 127.

    Its input is ``input_scale * q`` with q of 0 to 255. With 32-bit sums, one channel's output is
    ``kernel_scale * input_scale * (sum of the outer taps + (sum of the center tap << center_shift)) + bias``, and
    ``identity * input_scale * q`` of the same channel and pixel if ``identity`` (O,) is given, which takes the place of
    the kernel's diagonal at the center tap. Then follow ReLU and SE, as in a ConvLayer. ``kernel_scale`` and ``bias``
    are float32 (O,), ``center_shift`` is uint8 (O,), at most 7.

    If the next layer is a quantized one too, the output is divided by that one's ``input_scale``, rounded half to even,
    and limited to 255; otherwise it stays float32.
    """

    kernel: NDArray[Any]
    kernel_scale: NDArray[Any]
    center_shift: NDArray[Any]
    identity: Optional[NDArray[Any]]
    bias: NDArray[Any]
    input_scale: float
    stride: int
    se: Optional[SEWeights] = None
    feature: Optional[str] = None
    dilation: int = 1
    name: str = ""


@dataclass(frozen=True, eq=False)
class QuantizedWeights:
    """A network of quantized and float layers in a row, then its float head, as in NetworkWeights."""

    layers: Tuple[Union[ConvLayer, QuantizedConvLayer], ...]
    head: Optional[LinearWeights]

    @property
    def returns_features(self) -> bool:
        """Whether the outputs are named feature maps."""
        return any(layer.feature is not None for layer in self.layers)


def largest_sums(kernel: NDArray[Any], center_shift: NDArray[Any]) -> NDArray[Any]:
    """Return the largest magnitude that each output channel's integer sums can have, int64 (O,)."""
    magnitudes = np.abs(kernel, dtype=np.int16).sum(axis=2, dtype=np.int64)  # (groups, O / groups, 3, 3)
    magnitudes = magnitudes.reshape(-1, 3, 3)
    center = magnitudes[:, 1, 1]
    sums: NDArray[Any] = magnitudes.sum(axis=(1, 2)) - center + (center << center_shift.astype(np.int64))
    return sums * MAX_ACTIVATION


def float_kernel(layer: QuantizedConvLayer, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return the kernel that a quantized layer stands for (groups, O / groups, I / groups, 3, 3)."""
    groups, outs, ins = layer.kernel.shape[:3]
    kernel: NDArray[Any] = layer.kernel * layer.kernel_scale.astype(dtype).reshape(groups, outs, 1, 1, 1)
    kernel[..., 1, 1] *= np.exp2(layer.center_shift, dtype=dtype).reshape(groups, outs, 1)
    if layer.identity is not None:
        kernel[:, range(outs), range(ins), 1, 1] = layer.identity.reshape(groups, outs)
    return kernel


def integer_layer(layer: QuantizedConvLayer, output_scale: float = 1.0) -> ConvLayer:
    """Return the float64 convolution that a layer is for whole numbers, which it takes without their scale.

    Its outputs are divided by ``output_scale``.
    """
    kernel = float_kernel(layer, np.float64) * (layer.input_scale / output_scale)
    bias = layer.bias.astype(np.float64) / output_scale
    return ConvLayer(kernel, bias, layer.stride, layer.se, layer.feature, layer.dilation)


def check_quantized_layers(
    weights: QuantizedWeights, channels: Optional[int] = None, path: Optional[PathLike] = None
) -> None:
    """Raise StateError unless each layer fits the output of the previous one and all arrays have their dtypes.

    All numbers must be finite and in their ranges, and no sum can leave 32 bits. ``channels`` is the number of channels
    of the images, by default that of the first layer, and ``path`` the file that they come from, for the error.
    """
    problems = [] if weights.layers else ["there are no layers"]
    for index, layer in enumerate(weights.layers):
        name = f"layer {index}"
        if isinstance(layer, QuantizedConvLayer):
            problems += [f"{name}, whose input is an image, is quantized"] if index == 0 else []
            problems += _quantized_layer_problems(name, layer, channels)
        else:
            problems += layer_problems(name, layer, channels)
        channels = layer.bias.size
    if weights.head is not None:
        problems += linear_problems("the head", weights.head, inputs=channels)
    if problems:
        raise state_error(problems, path=path)


def _quantized_layer_problems(name: str, layer: QuantizedConvLayer, channels: Optional[int]) -> List[str]:
    per_channel = (layer.bias.size,)
    problems = [
        *layer_problems(name, layer, channels, np.int8),
        *array_problems(f"{name}'s kernel_scale", layer.kernel_scale, per_channel),
        *array_problems(f"{name}'s center_shift", layer.center_shift, per_channel, np.uint8),
    ]
    if layer.identity is not None:
        problems += array_problems(f"{name}'s identity", layer.identity, per_channel)
        if not problems and (layer.stride != 1 or layer.in_channels != layer.out_channels):
            problems.append(f"{name} has an identity, but its output is not of its input's shape")
    return problems or _value_problems(name, layer)


def _value_problems(name: str, layer: QuantizedConvLayer) -> List[str]:
    problems = []
    numbers = {"bias": layer.bias, "kernel_scale": layer.kernel_scale, "identity": layer.identity}
    for part, values in numbers.items():
        if values is not None and not np.isfinite(values).all():
            problems.append(f"{name}'s {part} is not finite")
    if not (np.isfinite(layer.input_scale) and layer.input_scale > 0):
        problems.append(f"{name}'s input_scale is {layer.input_scale}, not above 0")
    if (layer.kernel_scale < 0).any():
        problems.append(f"{name}'s kernel_scale is below 0")
    if (layer.kernel == -128).any():
        problems.append(f"{name}'s kernel has values below -{MAX_WEIGHT}")
    if layer.center_shift.max() > MAX_SHIFT:
        problems.append(f"{name}'s center_shift is above {MAX_SHIFT}")
    elif largest_sums(layer.kernel, layer.center_shift).max() >= 2**31:
        problems.append(f"{name}'s sums do not fit into 32 bits")
    if layer.identity is not None and _diagonal(layer.kernel).any():
        problems.append(f"{name} has an identity and the kernel's diagonal as well")
    return problems


def _diagonal(kernel: NDArray[Any]) -> NDArray[Any]:
    """Return the weights of the center tap from each channel to itself, (groups, O / groups)."""
    return np.diagonal(kernel[:, :, :, 1, 1], axis1=1, axis2=2)
