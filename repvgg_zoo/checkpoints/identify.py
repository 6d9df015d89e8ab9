"""Which variant a checkpoint file is of, told from its arrays."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, Tuple

from ..errors import LayoutError
from ..registry.api import full_registry
from ..registry.specs import ModelSpec
from . import Checkpoint
from .block_keys import BLOCK

_STAGE = re.compile(r"(stage\d)")
_KERNELS = ("rbr_dense.conv.weight", "rbr_reparam.weight")
_WIDTHS = (64, 128, 256, 512)  # of stages 1 to 4 at a multiplier of 1 (paper, table 2)


def variant_of(checkpoint: Checkpoint) -> ModelSpec:
    """The variant whose blocks, widths, groups and SE are the file's; raises LayoutError if there is none."""
    found = shape_of(checkpoint.arrays)
    for model in full_registry().models:
        if wanted(model) == found:
            return model
    _, blocks, widths, groups, has_se = found
    raise LayoutError(
        f"{checkpoint.path} fits no variant of the registry: stages of {', '.join(map(str, blocks))} blocks that end "
        f"in {', '.join(map(str, widths))} channels, {groups} groups, {'with' if has_se else 'without'} SE",
        path=checkpoint.path,
        actual=found,
        hint="a registry of your own can describe it; see repvgg_zoo.register",
    )


Shape = Tuple[str, Tuple[int, ...], Tuple[int, ...], int, bool]


def wanted(model: ModelSpec) -> Shape:
    """A variant's builder, blocks in each stage, the channels that leave it, groups, and whether it has SE."""
    built = model.architecture
    widths = tuple(int(base * factor) for base, factor in zip(_WIDTHS, built.width_multiplier))
    return built.builder, tuple(built.num_blocks), widths, built.groups, built.se is not None


def shape_of(arrays: Mapping[str, Any]) -> Shape:
    """The same of a file's arrays."""
    stages: Dict[str, List[int]] = {}
    builder, groups, has_se = "repvgg", 1, False
    for key, array in arrays.items():
        match = BLOCK.match(key)
        if match is None:
            continue
        has_se = has_se or key[match.end() :].startswith("se.") or "post_se" in key
        builder = "repvggplus" if ".blocks." in key else builder
        stage = _STAGE.match(key)
        if key[match.end() :] in _KERNELS and stage is not None and array.ndim in (4, 5):
            groups = max(groups, array.shape[0] if array.ndim == 5 else 1)
            stages.setdefault(stage.group(1), []).append(int(array[..., 0, 0, 0].size))
    named = [stages.get(f"stage{number}", []) for number in range(1, 5)]
    return builder, tuple(map(len, named)), tuple(max(widths, default=0) for widths in named), groups, has_se
