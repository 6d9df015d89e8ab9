"""RepVGG: a stem, four stages of blocks, and a linear head (paper, section 3.4 and table 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, Optional, Sequence, Tuple, Union

import megengine.functional as F
import megengine.module as M
from megengine import Tensor

from ..errors import ArgumentError
from ..registry.specs import SESpec
from .layers import Linear, block_builder
from .module import Module, Sequential

STAGE_WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class FeatureInfo:
    """One feature map: its stage (0 is the stem), its key in ``extract_features``, its channels, and how many input
    pixels one of its pixels stands for."""

    index: int
    name: str
    channels: int
    stride: int


class RepVGG(Module):
    """The paper's network: maps (N, in_chans, H, W) to logits (N, num_classes), for any H and W.

    Stage s of 1 to 4 has ``num_blocks[s - 1]`` blocks of ``STAGE_WIDTHS[s - 1] * width_multiplier[s - 1]`` channels,
    the first of stride 2. ``groups`` applies to the layers of even index before stage 4, where the stem is layer 0 and
    the count runs on through the stages (paper, section 3.4). With ``features_only`` there is no head and calling
    the network gives ``extract_features``; ``out_indices`` picks stages (0 is the stem), and none beyond them is built.
    Raises ArgumentError for stages that do not exist.
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
        deploy: bool = False,
        init_weights: bool = True,
    ) -> None:
        super().__init__()
        widths = stage_channels(width_multiplier)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.feature_info = feature_info(widths, features_only, out_indices)

        block = block_builder(se=se, deploy=deploy, init_weights=init_weights)
        self.stage0 = block(in_chans, widths[0], stride=2)
        layer = 1
        for stage in range(1, self.feature_info[-1].index + 1):
            blocks = Sequential()
            setattr(self, f"stage{stage}", blocks)
            for position in range(num_blocks[stage - 1]):
                first = position == 0
                grouped = layer % 2 == 0 and stage < 4
                blocks.append(
                    block(
                        widths[stage - 1] if first else widths[stage],
                        widths[stage],
                        stride=2 if first else 1,
                        groups=groups if grouped else 1,
                    )
                )
                layer += 1
        self.linear = None if features_only else Linear(widths[-1], num_classes, init_weights=init_weights)

    def forward(self, x: Tensor) -> Union[Tensor, Dict[str, Tensor]]:
        if self.linear is None:
            return self.extract_features(x)
        for stage in self._stages():
            x = stage(x)
        return self.linear(pooled(x))

    def extract_features(self, x: Tensor) -> Dict[str, Tensor]:
        """The feature maps named in ``feature_info``: a dict from name to (N, channels, ~H / stride, ~W / stride)."""
        wanted = {info.index: info.name for info in self.feature_info}
        features = {}
        for index, stage in enumerate(self._stages()):
            x = stage(x)
            if index in wanted:
                features[wanted[index]] = x
        return features

    def _stages(self) -> Iterator[M.Module]:
        return (getattr(self, f"stage{index}") for index in range(self.feature_info[-1].index + 1))


def stage_channels(width_multiplier: Sequence[float]) -> Tuple[int, ...]:
    """Output channels of the stem and of the four stages; the stem is never wider than 64 (paper, section 3.4)."""
    stages = tuple(int(width * factor) for width, factor in zip(STAGE_WIDTHS, width_multiplier))
    return (min(STAGE_WIDTHS[0], stages[0]), *stages)


def feature_info(
    widths: Sequence[int], features_only: bool, out_indices: Optional[Sequence[int]]
) -> Tuple[FeatureInfo, ...]:
    """The records of the stages that are given out, in order; raises ArgumentError for stages that do not exist."""
    every = range(len(widths))
    if out_indices is None:
        indices = list(every)
    elif not features_only:
        raise ArgumentError("out_indices is for networks without a head", hint="add features_only=True")
    else:
        indices = sorted(set(out_indices))
        if not indices or not set(indices) <= set(every):
            raise ArgumentError(
                f"out_indices={list(out_indices)} names stages that do not exist",
                expected=f"some of {list(every)} (0 is the stem)",
                actual=list(out_indices),
                hint=f"choose from {list(every)}; 0 is the stem",
            )
    return tuple(FeatureInfo(index, f"stage{index}", widths[index], 2 ** (index + 1)) for index in indices)


def pooled(x: Tensor) -> Tensor:
    """The mean over height and width: (N, C, H, W) to (N, C)."""
    return F.mean(x, axis=[2, 3])
