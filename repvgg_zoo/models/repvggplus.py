"""RepVGGplus: RepVGG with SE after ReLU and auxiliary heads while training (official code, RepVGGplus-L2pse)."""

from __future__ import annotations

from collections import OrderedDict
from types import MappingProxyType
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import megengine.module as M
from megengine import Tensor

from ..checkpoints.layouts import AUXILIARY_HEADS
from ..registry.architecture import stage_channels
from ..registry.specs import SESpec
from .layers import GlobalAvgPool2d, conv2d, global_avg_pool, linear
from .network import Network
from .repvgg import RepVGGBlock
from .stages import MAX_OUTPUT_STRIDE, feature_info, stage_geometries

# Stage 3 is split in halves, with an auxiliary head between them.
STAGES = (("stage0",), ("stage1",), ("stage2",), ("stage3_first", "stage3_second"), ("stage4",))


class RepVGGplus(Network):
    """Maps (N, in_chans, H, W) to logits (N, num_classes) in eval mode and in the deploy form, for any H and W.

    In training mode it returns a dict as the official code does: ``main`` and the logits of the three auxiliary heads,
    ``stage1_aux``, ``stage2_aux``, ``stage3_first_aux``. Arguments and ``extract_features`` are those of RepVGG.
    """

    def __init__(
        self,
        num_blocks: Sequence[int],
        width_multiplier: Sequence[float],
        *,
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
        half = num_blocks[2] // 2
        depths = {"stage1": num_blocks[0], "stage2": num_blocks[1], "stage3_first": half, "stage4": num_blocks[3]}
        self.stage0 = RepVGGBlock(in_chans, widths[0], stride=2, **options)
        for index in range(1, self.feature_info[-1].index + 1):
            (first, *rest), (stride, first_dilation, dilation) = STAGES[index], geometries[index]
            options["dilation"] = dilation
            head = {"stride": stride, "dilation": first_dilation, "identity": False}
            setattr(self, first, PlusStage(widths[index - 1], widths[index], depths[first], first=head, **options))
            for name in rest:
                setattr(self, name, PlusStage(widths[index], widths[index], num_blocks[2] - half, **options))

        self.quant, self.dequant = M.QuantStub(), M.DequantStub()
        self.quant_linear: Any = None
        self.linear: Optional[M.Module] = None
        self.stage1_aux: Optional[M.Module] = None
        self.stage2_aux: Optional[M.Module] = None
        self.stage3_first_aux: Optional[M.Module] = None
        if num_classes > 0 and not features_only:
            self.quant_linear = M.QuantStub()
            self.linear = linear(widths[-1], num_classes, init_weights=init_weights)
            if not deploy:
                self.stage1_aux = _auxiliary_head(widths[1], num_classes, init_weights)
                self.stage2_aux = _auxiliary_head(widths[2], num_classes, init_weights)
                self.stage3_first_aux = _auxiliary_head(widths[3], num_classes, init_weights)

    def forward(self, x: Tensor) -> Union[Tensor, Dict[str, Tensor]]:
        if self.features_only:
            return self.extract_features(x)
        auxiliary = {}
        x = self.quant(x)
        for names in STAGES:
            for name in names:
                x = getattr(self, name)(x)
                head = f"{name}_aux"
                if self.training and head in AUXILIARY_HEADS and getattr(self, head) is not None:
                    auxiliary[head] = getattr(self, head)(self.dequant(x))
        x = global_avg_pool(self.dequant(x))
        if self.linear is None:
            return x
        logits = self.dequant(self.linear(self.quant_linear(x)))
        return {"main": logits, **auxiliary} if auxiliary else logits

    def extract_features(self, x: Tensor) -> Dict[str, Tensor]:
        """Return the feature maps that ``feature_info`` lists, as ``RepVGG.extract_features`` does."""
        names_by_stage = {info.index: info.name for info in self.feature_info}
        features = {}
        x = self.quant(x)
        for index, names in enumerate(STAGES[: self.feature_info[-1].index + 1]):
            for name in names:
                x = getattr(self, name)(x)
            if index in names_by_stage:
                features[names_by_stage[index]] = self.dequant(x)
        return features

    def switch_to_deploy(self) -> None:
        """Drop the auxiliary heads, which only training needs; ``to_deploy`` calls it after fusing the blocks."""
        self.stage1_aux = self.stage2_aux = self.stage3_first_aux = None


class PlusStage(M.Module):
    """A sequence of blocks; the list is called ``blocks`` because the published keys have that name.

    ``options`` are those of the blocks; ``first`` replaces some of them for the first one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int,
        *,
        first: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        super().__init__()
        self.blocks: List[RepVGGBlock] = [RepVGGBlock(in_channels, out_channels, **{**options, **first})]
        self.blocks += [RepVGGBlock(out_channels, out_channels, **options) for _ in range(depth - 1)]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def _auxiliary_head(channels: int, num_classes: int, init: bool) -> M.Module:
    downsample = M.Sequential(
        OrderedDict(
            conv=conv2d(channels, channels, 3, stride=2, padding=1, bias=False, init_weights=init),
            bn=M.BatchNorm2d(channels),
            relu=M.ReLU(),
        )
    )
    # The official head's Sequential has pooling and flattening at 1 and 2, so the linear layer's key is 3.
    head = M.Sequential(downsample, GlobalAvgPool2d(), M.Identity(), linear(channels, num_classes, init_weights=init))
    head.disable_quantize()  # only training uses it
    return head
