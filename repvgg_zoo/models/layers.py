"""The layers of the networks: MegEngine's own, initialized as torch initializes them, or not at all."""

from __future__ import annotations

import math
from typing import Any, Tuple, Union

import megengine.functional as F
import megengine.module as M
from megengine import Parameter, Tensor

from ..errors import ArgumentError


class SEBlock(M.Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018): scale each channel by a gate computed from all channel means.

    Maps (N, channels, H, W) to the same shape, for any H and W; ``width`` is the number of channels between the two
    1x1 convolutions.
    """

    def __init__(self, channels: int, width: int, *, init_weights: bool = True) -> None:
        super().__init__()
        self.down = conv2d(channels, width, 1, init_weights=init_weights)
        self.up = conv2d(width, channels, 1, init_weights=init_weights)
        self.disable_quantize()  # it costs little, and a gate of 8 bits would be coarse

    def forward(self, x: Tensor) -> Tensor:
        gate = global_avg_pool(x, keepdims=True)
        return x * F.sigmoid(self.up(F.relu(self.down(gate))))


class GlobalAvgPool2d(M.Module):
    """The mean over height and width: (N, C, H, W) to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return global_avg_pool(x)


def global_avg_pool(x: Tensor, *, keepdims: bool = False) -> Tensor:
    """Return the mean over height and width: (N, C, H, W) to (N, C), or (N, C, 1, 1), with the dtype of ``x``."""
    mean = F.mean(x, axis=[2, 3], keepdims=keepdims)
    return mean if mean.dtype == x.dtype else mean.astype(x.dtype)  # MegEngine returns float32 for float16


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    groups: int = 1,
    bias: bool = True,
    init_weights: bool = True,
    **options: Any,
) -> M.Conv2d:
    """Build a MegEngine convolution, initialized as torch initializes its own.

    ``options`` are stride, padding and the like. ``init_weights=False`` leaves zeros that take no memory, for a caller
    who is about to load weights. Raises ArgumentError if ``groups`` does not divide both numbers of channels.
    """
    if in_channels % groups or out_channels % groups:
        raise ArgumentError(
            f"{in_channels} channels to {out_channels} cannot be cut into {groups} groups",
            actual=groups,
            hint="take a number of groups that divides both",
        )
    conv = _skip_init(M.Conv2d, groups, groups, kernel_size, groups=groups, bias=bias, **options)
    conv.in_channels, conv.out_channels = in_channels, out_channels
    kernel = (out_channels // groups, in_channels // groups, kernel_size, kernel_size)
    conv.weight = broadcast_parameter(0.0, kernel if groups == 1 else (groups, *kernel))
    if bias:
        conv.bias = broadcast_parameter(0.0, (1, out_channels, 1, 1))
    if init_weights:
        reset_parameters(conv)
    return conv


def linear(in_features: int, out_features: int, *, init_weights: bool = True) -> M.Linear:
    """Build a MegEngine linear layer, initialized as torch initializes its own; ``init_weights`` is as in conv2d."""
    layer = _skip_init(M.Linear, 1, 1)
    layer.in_features, layer.out_features = in_features, out_features
    layer.weight = broadcast_parameter(0.0, (out_features, in_features))
    layer.bias = broadcast_parameter(0.0, (out_features,))
    if init_weights:
        reset_parameters(layer)
    return layer


def reset_parameters(layer: Union[M.Conv2d, M.Linear]) -> None:
    """Draw weight and bias uniformly from +-1/sqrt(fan in), torch's default, which the official code relies on."""
    fan_in, _ = M.init.calculate_fan_in_and_fan_out(layer.weight)
    bound = 1 / math.sqrt(fan_in)
    M.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        M.init.uniform_(layer.bias, -bound, bound)


def broadcast_parameter(value: float, shape: Tuple[int, ...]) -> Parameter:
    """Return a float32 parameter filled with one number, which takes memory only once it is written to."""
    return Parameter(F.broadcast_to(Tensor(value), shape))


def _skip_init(layer_type: Any, *args: Any, **options: Any) -> Any:
    """Build a layer without drawing its initial weights, as ``torch.nn.utils.skip_init`` does.

    MegEngine's constructors fill every weight twice, which for B3 takes longer than loading it. So layers are built
    with a single channel and this method of theirs shadowed, and get parameters of the right shape afterwards.
    """
    layer = layer_type.__new__(layer_type)
    vars(layer)["reset_parameters"] = lambda: None
    layer.__init__(*args, **options)
    del vars(layer)["reset_parameters"]
    return layer
