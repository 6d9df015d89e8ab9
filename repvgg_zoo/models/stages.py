"""The stages of the networks as data: how far each moves over the image, and the feature maps that come out."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

from ..errors import ArgumentError

OUTPUT_STRIDES = (8, 16, 32)
MAX_OUTPUT_STRIDE = OUTPUT_STRIDES[-1]
STAGES = 5  # with the stem


class StageGeometry(NamedTuple):
    """Of one stage: the stride and dilation of its first block, and the dilation of the others."""

    stride: int
    first_dilation: int
    dilation: int


def stage_geometries(output_stride: Any = MAX_OUTPUT_STRIDE) -> Tuple[StageGeometry, ...]:
    """Return the geometry of each stage, the stem first, for maps that are ``output_stride`` times smaller at the end.

    A stage that would make them smaller moves by one pixel instead, and its blocks are dilated. The first block still
    sees the map of the stage before, so it has that stage's dilation. Every pixel of the usual maps is then a pixel
    of the larger ones, with the same weights. Raises ArgumentError for another number than 8, 16 or 32.
    """
    if not isinstance(output_stride, numbers.Integral) or output_stride not in OUTPUT_STRIDES:
        raise ArgumentError(
            f"output_stride is {output_stride!r}", expected="8, 16 or 32", actual=output_stride, hint="pass 8, 16 or 32"
        )
    geometries: List[StageGeometry] = []
    reached, dilation = 1, 1
    for _ in range(STAGES):
        before = dilation
        stride = 2 if reached < int(output_stride) else 1
        reached *= stride
        dilation *= 2 // stride
        geometries.append(StageGeometry(stride, before, dilation))
    return tuple(geometries)


@dataclass(frozen=True)
class FeatureInfo:
    """One feature map: its stage (0 is the stem), its key in ``extract_features``, its channels, and its reduction.

    ``reduction`` is the size of the input over the size of the map, along each side.
    """

    index: int
    name: str
    channels: int
    reduction: int


def feature_info(
    widths: Sequence[int],
    features_only: bool,
    out_indices: Optional[Sequence[int]],
    output_stride: int = MAX_OUTPUT_STRIDE,
) -> Tuple[FeatureInfo, ...]:
    """Return the feature maps that a network returns, in order; raise ArgumentError for stages that do not exist."""
    stages = range(len(widths))
    if out_indices is None:
        indices = list(stages)
    elif not features_only:
        raise ArgumentError("out_indices is for networks without a head", hint="add features_only=True")
    else:
        indices = sorted(set(out_indices))
        if not indices or not set(indices) <= set(stages):
            raise ArgumentError(
                f"out_indices={list(out_indices)} names stages that do not exist",
                expected=f"some of {list(stages)} (0 is the stem)",
                actual=list(out_indices),
                hint=f"choose from {list(stages)}; 0 is the stem",
            )
    return tuple(
        FeatureInfo(index, f"stage{index}", widths[index], min(2 ** (index + 1), output_stride)) for index in indices
    )
