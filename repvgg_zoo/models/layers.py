"""The RepVGG block: three branches while training, one 3x3 convolution when deployed (paper, sections 3.2 and 3.3)."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from typing import Any, Callable, Dict, Optional, Tuple

import megengine.functional as F
import megengine.module as M
import numpy as np
from megengine import Parameter, Tensor
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..registry.specs import SESpec
from .module import Module, twin


class RepVGGBlock(Module):
    """A 3x3 convolution with BN, a 1x1 convolution with BN and, where the shape allows it, an identity BN, summed.

    Maps (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)), float32 unless converted.
    ``se`` with position ``before_relu`` gates the sum of the branches (RepVGG-D2se); ``after_relu`` gates the block's
    output (RepVGGplus). In the deploy form ``rbr_reparam`` is set and the three branches are None; in the train form it
    is the other way round. ``init_weights=False`` leaves zeros, for a caller who is about to load weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        groups: int = 1,
        se: Optional[SESpec] = None,
        deploy: bool = False,
        init_weights: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.groups = groups

        self.rbr_reparam: Any = None
        self.rbr_dense: Any = None
        self.rbr_1x1: Any = None
        self.rbr_identity: Any = None
        if deploy:
            self.rbr_reparam = Conv2d(
                in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, init_weights=init_weights
            )
        else:
            self.rbr_dense = _conv_bn(in_channels, out_channels, 3, stride, groups, init_weights)
            self.rbr_1x1 = _conv_bn(in_channels, out_channels, 1, stride, groups, init_weights)
            if in_channels == out_channels and stride == 1:
                self.rbr_identity = M.BatchNorm2d(out_channels)

        # Two names for two places, because the published state keys tell them apart.
        gate = SEBlock(out_channels, out_channels // se.reduction, init_weights=init_weights) if se else None
        self.se = gate if se and se.position == "before_relu" else None
        self.post_se = gate if se and se.position == "after_relu" else None

    @property
    def deploy(self) -> bool:
        """Whether this block is in the deploy form."""
        return self.rbr_reparam is not None

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear_part(x)
        if self.se is not None:
            out = self.se(out)
        out = F.relu(out)
        return out if self.post_se is None else self.post_se(out)

    def linear_part(self, x: Tensor) -> Tensor:
        """What comes before SE and ReLU: the sum of the branches, or the one convolution."""
        if self.rbr_reparam is not None:
            return self.rbr_reparam(x)
        out = self.rbr_dense(x) + self.rbr_1x1(x)
        return out if self.rbr_identity is None else out + self.rbr_identity(x)

    def get_equivalent_kernel_bias(self) -> Tuple[Tensor, Tensor]:
        """The 3x3 kernel and bias that this block amounts to, differentiable in every branch's parameters.

        Shapes are those of ``rbr_reparam``: (out, in, 3, 3), or (groups, out / groups, in / groups, 3, 3), and
        (1, out, 1, 1). Running statistics are taken as constants (paper, section 3.3). To convert, use ``to_deploy``,
        which fuses in float64.
        """
        if self.rbr_reparam is not None:
            return self.rbr_reparam.weight, self.rbr_reparam.bias
        kernel, bias = _fold(self.rbr_dense.conv.weight, self.rbr_dense.bn)
        kernel_1x1, bias_1x1 = _fold(self.rbr_1x1.conv.weight, self.rbr_1x1.bn)
        kernel, bias = kernel + _pad_to_3x3(kernel_1x1), bias + bias_1x1
        if self.rbr_identity is not None:
            unit = Tensor(identity_kernel(self.out_channels, self.groups), dtype=kernel.dtype, device=kernel.device)
            kernel_id, bias_id = _fold(unit, self.rbr_identity)
            kernel, bias = kernel + _pad_to_3x3(kernel_id), bias + bias_id
        return kernel, bias

    def get_custom_L2(self) -> Tensor:
        """The weight decay term of the official code for this block: a scalar, train form only.

        Plain L2 on the eight outer positions of the 3x3 kernel; on its centre, L2 of the equivalent kernel, normalised
        by the BN scales so that one coefficient suits both. Use it in place of weight decay on both kernels, as
        ``0.5 * weight_decay * block.get_custom_L2()`` (official README, "custom weight decay").
        """
        assert self.rbr_dense is not None, "the deploy form has no branches to regularise"
        kernel_3x3 = self.rbr_dense.conv.weight
        centre = kernel_3x3[..., 1:2, 1:2]
        scale_3x3 = _scale(centre, self.rbr_dense.bn).detach()
        scale_1x1 = _scale(centre, self.rbr_1x1.bn).detach()
        outer = (kernel_3x3**2).sum() - (centre**2).sum()
        equivalent = centre * scale_3x3 + self.rbr_1x1.conv.weight * scale_1x1
        return outer + (equivalent**2 / (scale_3x3**2 + scale_1x1**2)).sum()

    def install_fused(self, weight: Parameter, bias: Parameter) -> None:
        """Switches to the deploy form with these parameters, which must have ``rbr_reparam``'s shapes."""
        conv = Conv2d(
            self.in_channels,
            self.out_channels,
            3,
            stride=self.stride,
            padding=1,
            groups=self.groups,
            init_weights=False,
        )
        conv.weight, conv.bias = weight, bias
        conv.training = self.training
        self.rbr_dense = self.rbr_1x1 = self.rbr_identity = None
        self.rbr_reparam = conv


class SEBlock(Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018): each channel is scaled by a gate computed from all channel means.

    Maps (N, channels, H, W) to the same shape, for any H and W; ``width`` is the number of channels between the two
    1x1 convolutions.
    """

    def __init__(self, channels: int, width: int, *, init_weights: bool = True) -> None:
        super().__init__()
        self.down = Conv2d(channels, width, 1, init_weights=init_weights)
        self.up = Conv2d(width, channels, 1, init_weights=init_weights)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.mean(x, axis=[2, 3], keepdims=True)
        return x * F.sigmoid(self.up(F.relu(self.down(gate))))


def block_builder(*, se: Optional[SESpec], deploy: bool, init_weights: bool) -> Callable[..., RepVGGBlock]:
    """What builds the blocks of a network; those of one shape are twins, unless each draws weights of its own."""
    build = functools.partial(RepVGGBlock, se=se, deploy=deploy, init_weights=init_weights)
    built: Dict[Tuple[int, int, int, int], RepVGGBlock] = {}

    def block(in_channels: int, out_channels: int, *, stride: int = 1, groups: int = 1) -> RepVGGBlock:
        shape = (in_channels, out_channels, stride, groups)
        if shape in built:
            return twin(built[shape])
        built[shape] = build(in_channels, out_channels, stride=stride, groups=groups)
        return built[shape]

    return build if init_weights else block


def identity_kernel(channels: int, groups: int) -> NDArray[Any]:
    """The 1x1 kernel that changes nothing, float32: (channels, channels, 1, 1), or 5-D when grouped."""
    per_group = channels // groups
    unit = np.eye(per_group, dtype=np.float32)[:, :, None, None]
    return unit if groups == 1 else np.tile(unit, (groups, 1, 1, 1, 1))


class _TorchInit(Module):
    """Torch's default initialisation, which the official code relies on, for MegEngine's layers."""

    weight: Tensor
    bias: Optional[Tensor]

    def reset_parameters(self) -> None:
        """MegEngine's constructors call this; the ones below draw numbers once the parameters have their shapes."""

    def initialise(self) -> None:
        """Draws weight and bias uniformly from +-1/sqrt(fan in)."""
        fan_in, _ = M.init.calculate_fan_in_and_fan_out(self.weight)
        bound = 1 / math.sqrt(fan_in)
        M.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            M.init.uniform_(self.bias, -bound, bound)


class Conv2d(_TorchInit, M.Conv2d):
    """MegEngine's convolution, initialised as torch initialises its own.

    ``init_weights=False`` leaves zeros that take no memory, for a caller who is about to load weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        groups: int = 1,
        bias: bool = True,
        init_weights: bool = True,
        **options: Any,
    ) -> None:
        if in_channels % groups or out_channels % groups:
            raise ArgumentError(
                f"{in_channels} channels to {out_channels} cannot be cut into {groups} groups",
                actual=groups,
                hint="take a number of groups that divides both",
            )
        super().__init__(in_channels, out_channels, kernel_size, groups=groups, bias=False, **options)
        zero, kernel = self.weight, (out_channels // groups, in_channels // groups, kernel_size, kernel_size)
        self.weight = spread(zero, kernel if groups == 1 else (groups, *kernel))
        if bias:
            self.bias = spread(zero, (1, out_channels, 1, 1))
        if init_weights:
            self.initialise()

    def _infer_weight_shape(self) -> Tuple[int, ...]:
        """The shape of the kernel that MegEngine makes: one number, since to fill all takes longer than to load B3."""
        return ()


class Linear(_TorchInit, M.Linear):
    """MegEngine's linear layer, initialised as torch initialises its own; ``init_weights`` is that of Conv2d."""

    def __init__(self, in_features: int, out_features: int, *, init_weights: bool = True) -> None:
        super().__init__(1, 1)
        self.in_features, self.out_features = in_features, out_features
        self.weight, self.bias = spread(self.weight, (out_features, in_features)), spread(self.bias, (out_features,))
        if init_weights:
            self.initialise()


def spread(number: Tensor, shape: Tuple[int, ...]) -> Parameter:
    """A parameter full of one number, which takes memory only once it is written to."""
    return Parameter(F.broadcast_to(number, shape))


def _conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int, groups: int, init: bool) -> M.Module:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
        bias=False,
        init_weights=init,
    )
    return M.Sequential(OrderedDict(conv=conv, bn=M.BatchNorm2d(out_channels)))


def _scale(kernel: Tensor, bn: M.BatchNorm2d) -> Tensor:
    """BN's multiplier for each output channel, shaped to multiply ``kernel`` (4-D, or 5-D when grouped)."""
    per_channel = bn.weight / F.sqrt(bn.running_var + bn.eps)
    return per_channel.reshape(*kernel.shape[:-3], 1, 1, 1)


def _fold(kernel: Tensor, bn: M.BatchNorm2d) -> Tuple[Tensor, Tensor]:
    bias = bn.bias - bn.running_mean * bn.weight / F.sqrt(bn.running_var + bn.eps)
    return kernel * _scale(kernel, bn), bias


def _pad_to_3x3(kernel: Tensor) -> Tensor:
    return F.nn.pad(kernel, [(0, 0)] * (kernel.ndim - 2) + [(1, 1), (1, 1)])
