"""RepVGG: a stem, four stages of blocks, and a linear head (paper, section 3.4 and table 2).

A block has three branches in the train form and one 3x3 convolution in the deploy form (paper, sections 3.2 and 3.3).
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, Optional, Sequence, Tuple, Union

import megengine.functional as F
import megengine.module as M
import numpy as np
from megengine import Parameter, Tensor
from numpy.typing import NDArray

from ..registry.architecture import stage_channels
from ..registry.specs import SESpec
from .layers import SEBlock, conv2d, global_avg_pool, linear
from .network import Network
from .stages import MAX_OUTPUT_STRIDE, feature_info, stage_geometries


class RepVGG(Network):
    """The paper's network: maps (N, in_chans, H, W) to logits (N, num_classes), for any H and W.

    Stage s of 1 to 4 has ``num_blocks[s - 1]`` blocks of 64, 128, 256 or 512 times ``width_multiplier[s - 1]``
    channels, the first of stride 2. ``groups`` applies to the layers of even index before stage 4, where the stem is
    layer 0 and the count runs on through the stages (paper, section 3.4). With ``num_classes=0`` there is no head and
    the pooled features (N, channels) are returned; with ``features_only`` there is none either, and
    ``extract_features`` is returned; ``out_indices`` picks stages (0 is the stem), and none beyond them
    is built. ``output_stride`` of 16 or 8 instead of 32 dilates the last one or two stages in place of their strides.
    ``init_weights=False`` leaves zeros, for a caller who is about to load weights. Raises ArgumentError for stages that
    do not exist, and for another ``output_stride``.

    ``megengine.quantization`` converts both forms: stubs stand where values change between int8 and float, which is
    around the global average, SE and the identity branch's BN. In a float network they do nothing.
    """

    def __init__(
        self,
        num_blocks: Sequence[int],
        width_multiplier: Sequence[float],
        *,
        groups: int = 1,
        se: Optional[SESpec] = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        features_only: bool = False,
        out_indices: Optional[Sequence[int]] = None,
        output_stride: int = MAX_OUTPUT_STRIDE,
        deploy: bool = False,
        init_weights: bool = True,
    ) -> None:
        super().__init__()
        geometries = stage_geometries(output_stride)
        widths = stage_channels(width_multiplier)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.features_only = features_only
        self.feature_info = feature_info(widths, features_only, out_indices, output_stride)

        options: Dict[str, Any] = {"se": se, "deploy": deploy, "init_weights": init_weights}
        self.stage0 = RepVGGBlock(in_chans, widths[0], stride=2, **options)
        layer = 1
        for stage in range(1, self.feature_info[-1].index + 1):
            blocks = M.Sequential()
            setattr(self, f"stage{stage}", blocks)  # while it is empty: MegEngine names all that is in what is set
            for index in range(num_blocks[stage - 1]):
                first, geometry = index == 0, geometries[stage]
                block = RepVGGBlock(
                    widths[stage - 1] if first else widths[stage],
                    widths[stage],
                    stride=geometry.stride if first else 1,
                    dilation=geometry.first_dilation if first else geometry.dilation,
                    identity=not first,
                    groups=groups if layer % 2 == 0 and stage < 4 else 1,
                    **options,
                )
                setattr(blocks, str(index), block)
                blocks.layer_keys.append(str(index))
                layer += 1
        has_head = num_classes > 0 and not features_only
        self.linear = linear(widths[-1], num_classes, init_weights=init_weights) if has_head else None
        self.quant, self.dequant = M.QuantStub(), M.DequantStub()
        self.quant_linear: Any = M.QuantStub() if has_head else None

    def forward(self, x: Tensor) -> Union[Tensor, Dict[str, Tensor]]:
        if self.features_only:
            return self.extract_features(x)
        x = self.quant(x)
        for stage in self._stages():
            x = stage(x)
        x = global_avg_pool(self.dequant(x))
        return x if self.linear is None else self.dequant(self.linear(self.quant_linear(x)))

    def extract_features(self, x: Tensor) -> Dict[str, Tensor]:
        """Return the feature maps that ``feature_info`` lists: name to (N, channels, ~H / reduction, ~W / reduction).

        Where a side is not a multiple of ``reduction``, its length is rounded up.
        """
        names = {info.index: info.name for info in self.feature_info}
        features = {}
        x = self.quant(x)
        for index, stage in enumerate(self._stages()):
            x = stage(x)
            if index in names:
                features[names[index]] = self.dequant(x)
        return features

    def _stages(self) -> Iterator[M.Module]:
        return (getattr(self, f"stage{index}") for index in range(self.feature_info[-1].index + 1))


class RepVGGBlock(M.Module):
    """A 3x3 convolution with BN, a 1x1 convolution with BN and, where the shape allows it, an identity BN, summed.

    Maps (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)), float32 unless converted.
    ``se`` with position ``before_relu`` gates the sum of the branches (RepVGG-D2se); ``after_relu`` gates the block's
    output (RepVGGplus). In the deploy form ``rbr_reparam`` is set and the three branches are None; in the train form it
    is the other way round. ``identity=False`` leaves that branch out, as in the first block of a stage.
    ``init_weights=False`` leaves zeros, for a caller who is about to load weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        identity: bool = True,
        se: Optional[SESpec] = None,
        deploy: bool = False,
        init_weights: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        options: Dict[str, Any] = {"stride": stride, "groups": groups, "init_weights": init_weights}
        self.rbr_reparam: Any = None
        self.rbr_dense: Any = None
        self.rbr_1x1: Any = None
        self.rbr_identity: Any = None
        if deploy:
            self.rbr_reparam = conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, **options)
        else:
            self.rbr_dense, self.rbr_1x1 = _empty_conv_bn(), _empty_conv_bn()  # set while empty, as the stages are
            _fill_conv_bn(self.rbr_dense, in_channels, out_channels, 3, padding=dilation, dilation=dilation, **options)
            _fill_conv_bn(self.rbr_1x1, in_channels, out_channels, 1, **options)
            if identity and in_channels == out_channels and stride == 1:
                self.rbr_identity = M.BatchNorm2d(out_channels)
        self.add: Any = None if deploy else M.Elemwise("add")
        self.relu = M.Elemwise("relu")

        # One attribute for each position, because the published state keys tell them apart.
        se_block = SEBlock(out_channels, out_channels // se.reduction, init_weights=init_weights) if se else None
        self.se = se_block if se and se.position == "before_relu" else None
        self.post_se = se_block if se and se.position == "after_relu" else None
        self.quant_identity: Any = None if self.rbr_identity is None else M.QuantStub()
        self.quant_se: Any = None if se_block is None else M.QuantStub()
        self.dequant = M.DequantStub()

    @property
    def deploy(self) -> bool:
        """Whether this block is in the deploy form."""
        return self.rbr_reparam is not None

    @property
    def convolution(self) -> M.Conv2d:
        """The 3x3 convolution: that of the deploy form, or of the 3x3 branch."""
        return self.rbr_reparam if self.deploy else self.rbr_dense.conv

    @property
    def stride(self) -> int:
        """How many pixels the 3x3 kernel moves at once, down the image."""
        return as_pair(self.convolution.stride)[0]

    @property
    def groups(self) -> int:
        """The number of groups of the convolutions."""
        return int(self.convolution.groups)

    def forward(self, x: Tensor) -> Tensor:
        out = self.forward_branches(x)
        if self.se is not None:
            out = self.quant_se(self.se(self.dequant(out)))
        out = self.relu(out)
        return out if self.post_se is None else self.quant_se(self.post_se(self.dequant(out)))

    def forward_branches(self, x: Tensor) -> Tensor:
        """Return the sum of the branches, or the output of the one convolution: what comes before SE and ReLU."""
        if self.rbr_reparam is not None:
            return self.rbr_reparam(x)
        out = self.add(self.rbr_dense(x), self.rbr_1x1(x))
        if self.rbr_identity is None:
            return out
        return self.add(out, self.quant_identity(self.rbr_identity(self.dequant(x))))

    def switch_to_deploy(self, convolution: M.Conv2d) -> None:
        """Replace the branches by one convolution, such as ``equivalent_convolution`` returns."""
        convolution.training = self.training
        self.rbr_dense = self.rbr_1x1 = self.rbr_identity = self.quant_identity = self.add = None
        self.rbr_reparam = convolution

    def equivalent_convolution(self, kernel: Parameter, bias: Parameter) -> M.Conv2d:
        """Return the deploy form's convolution with these parameters: it moves over the image as ``rbr_dense`` does."""
        dense = self.rbr_dense.conv
        options = {name: getattr(dense, name) for name in ("stride", "padding", "dilation", "padding_mode", "groups")}
        conv = conv2d(dense.in_channels, dense.out_channels, 3, init_weights=False, **options)
        conv.weight, conv.bias = kernel, bias
        return conv

    def get_equivalent_kernel_bias(self) -> Tuple[Tensor, Tensor]:
        """Return the 3x3 kernel and the bias that this block amounts to, differentiable in every branch's parameters.

        Shapes are those of ``rbr_reparam``: (out, in, 3, 3), or (groups, out / groups, in / groups, 3, 3), and
        (1, out, 1, 1). Running statistics are taken as constants (paper, section 3.3). To convert, use ``to_deploy``,
        which fuses in float64.
        """
        if self.rbr_reparam is not None:
            return self.rbr_reparam.weight, self.rbr_reparam.bias
        kernel, bias = _fuse_bn(self.rbr_dense.conv.weight, self.rbr_dense.bn, self.rbr_dense.conv.bias)
        kernel_1x1, bias_1x1 = _fuse_bn(self.rbr_1x1.conv.weight, self.rbr_1x1.bn, self.rbr_1x1.conv.bias)
        kernel, bias = kernel + _pad_to_3x3(kernel_1x1), bias + bias_1x1
        if self.rbr_identity is not None:
            identity = Tensor(identity_kernel(self.out_channels, self.groups), dtype=kernel.dtype, device=kernel.device)
            kernel_id, bias_id = _fuse_bn(identity, self.rbr_identity)
            kernel, bias = kernel + _pad_to_3x3(kernel_id), bias + bias_id
        return kernel, bias

    def get_custom_L2(self) -> Tensor:
        """Return the weight decay term of the official code for this block: a scalar, train form only.

        Plain L2 on the eight outer positions of the 3x3 kernel; on its center, L2 of the equivalent kernel, normalized
        by the BN scales so that one coefficient suits both. Use it in place of weight decay on both kernels, as
        ``0.5 * weight_decay * block.get_custom_L2()`` (official README, "custom weight decay").
        """
        assert self.rbr_dense is not None, "the deploy form has no branches to regularize"
        kernel_3x3 = self.rbr_dense.conv.weight
        center = kernel_3x3[..., 1:2, 1:2]
        scale_3x3 = _bn_scale(center, self.rbr_dense.bn).detach()
        scale_1x1 = _bn_scale(center, self.rbr_1x1.bn).detach()
        outer = (kernel_3x3**2).sum() - (center**2).sum()
        equivalent = center * scale_3x3 + self.rbr_1x1.conv.weight * scale_1x1
        return outer + (equivalent**2 / (scale_3x3**2 + scale_1x1**2)).sum()


def identity_kernel(channels: int, groups: int) -> NDArray[Any]:
    """Return the 1x1 kernel that changes nothing, float32: (channels, channels, 1, 1), or 5-D when grouped."""
    per_group = channels // groups
    kernel = np.eye(per_group, dtype=np.float32)[:, :, None, None]
    return kernel if groups == 1 else np.tile(kernel, (groups, 1, 1, 1, 1))


def _empty_conv_bn() -> M.ConvBn2d:
    layer = M.ConvBn2d.__new__(M.ConvBn2d)  # its constructor would draw weights, see layers._skip_init
    M.Module.__init__(layer)
    return layer


def _fill_conv_bn(layer: M.ConvBn2d, in_channels: int, out_channels: int, kernel_size: int, **options: Any) -> None:
    layer.conv = conv2d(in_channels, out_channels, kernel_size, bias=False, **options)
    layer.bn = M.BatchNorm2d(out_channels)


def _bn_scale(kernel: Tensor, bn: M.BatchNorm2d) -> Tensor:
    """Return BN's multiplier for each output channel, shaped to multiply ``kernel`` (4-D, or 5-D when grouped)."""
    return _bn_factor(bn).reshape(*kernel.shape[:-3], 1, 1, 1)


def _bn_factor(bn: M.BatchNorm2d) -> Tensor:
    factor = 1 / F.sqrt(bn.running_var + bn.eps)
    return factor if bn.weight is None else factor * bn.weight  # None with affine=False


def _fuse_bn(kernel: Tensor, bn: M.BatchNorm2d, conv_bias: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
    mean = bn.running_mean if conv_bias is None else bn.running_mean - conv_bias
    bias = -mean * _bn_factor(bn)
    return kernel * _bn_scale(kernel, bn), bias if bn.bias is None else bias + bn.bias


def as_pair(value: Union[int, Sequence[int]]) -> Tuple[int, int]:
    """Return (height, width) of an attribute of a convolution, which users may have set to one number."""
    height, width = (value, value) if isinstance(value, int) else value
    return height, width


def _pad_to_3x3(kernel: Tensor) -> Tensor:
    return F.nn.pad(kernel, [(0, 0)] * (kernel.ndim - 2) + [(1, 1), (1, 1)])
