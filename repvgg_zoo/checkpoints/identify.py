"""identify_variant: which variant of the registry a checkpoint is of, detected from its arrays."""

from __future__ import annotations

import math
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

from ..errors import LayoutError
from ..registry.api import full_registry
from ..registry.architecture import stage_channels
from ..registry.specs import Architecture, ModelSpec
from .layouts import BLOCK
from .state_dict import Checkpoint

_STAGE = re.compile(r"(stage\d)")
_KERNELS = ("rbr_dense.conv.weight", "rbr_reparam.weight")


class Signature(NamedTuple):
    """What tells variants apart: the builder, the depth and output channels of stages 1 to 4, groups, SE."""

    builder: str
    num_blocks: Tuple[int, ...]
    channels: Tuple[int, ...]
    groups: int
    has_se: bool


def identify_variant(checkpoint: Checkpoint) -> ModelSpec:
    """Return the variant with the checkpoint's blocks, widths, groups and SE; raise LayoutError if there is none."""
    signature = state_dict_signature(checkpoint.state_dict)
    for model in full_registry().models:
        if architecture_signature(model.architecture) == signature:
            return model
    raise LayoutError(
        f"{checkpoint.path} fits no variant of the registry: stages of {', '.join(map(str, signature.num_blocks))} "
        f"blocks with {', '.join(map(str, signature.channels))} output channels, {signature.groups} groups, "
        f"{'with' if signature.has_se else 'without'} SE",
        path=checkpoint.path,
        actual=signature,
        hint="a registry of your own can describe it; see repvgg_zoo.register",
    )


def architecture_signature(architecture: Architecture) -> Signature:
    """Return the signature of an architecture as the registry describes it."""
    return Signature(
        architecture.builder,
        tuple(architecture.num_blocks),
        stage_channels(architecture.width_multiplier)[1:],
        architecture.groups,
        architecture.se is not None,
    )


def state_dict_signature(state_dict: Mapping[str, Any]) -> Signature:
    """Return the signature of the network that canonical arrays, of either form, belong to."""
    stages: Dict[str, List[int]] = {}
    builder, groups, has_se = "repvgg", 1, False
    for key, array in state_dict.items():
        match = BLOCK.match(key)
        if match is None:
            continue
        has_se = has_se or key[match.end() :].startswith("se.") or "post_se" in key
        builder = "repvggplus" if ".blocks." in key else builder
        stage = _STAGE.match(key)
        if key[match.end() :] in _KERNELS and stage is not None and array.ndim in (4, 5):
            groups = max(groups, array.shape[0] if array.ndim == 5 else 1)
            stages.setdefault(stage.group(1), []).append(math.prod(array.shape[:-3]))
    channels = [stages.get(f"stage{number}", []) for number in range(1, 5)]
    depths = tuple(map(len, channels))
    return Signature(builder, depths, tuple(max(stage, default=0) for stage in channels), groups, has_se)
