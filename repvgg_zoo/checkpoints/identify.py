"""Which variant of the registry a checkpoint is of, and which architecture it has, detected from its arrays."""

from __future__ import annotations

import math
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, cast

from ..errors import LayoutError
from ..registry.api import full_registry
from ..registry.architecture import STAGE_WIDTHS, deploy_shapes, stage_channels
from ..registry.specs import Architecture, ModelSpec, SESpec
from .layouts import BLOCK
from .state_dict import Checkpoint, class_count, format_keys, input_channels

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


def architecture_of_arrays(state_dict: Mapping[str, Any], image_size: int) -> Architecture:
    """Return the architecture of canonical arrays of either form; arrays do not tell the size of images.

    Raise LayoutError if they are not those of a whole RepVGG or RepVGGplus as the paper builds it, with a head.
    """
    signature = state_dict_signature(state_dict)
    in_chans, num_classes = input_channels(state_dict), class_count(state_dict)
    if in_chans is None or 0 in signature.num_blocks:
        raise LayoutError("the arrays are not those of a whole network", hint="pass a file with a stem and four stages")
    if num_classes is None:
        raise LayoutError("the arrays have no head", hint="pass the file of a classifier")
    architecture = Architecture(
        num_blocks=cast(Tuple[int, int, int, int], signature.num_blocks),
        width_multiplier=cast(
            Tuple[float, float, float, float],
            tuple(channels / width for channels, width in zip(signature.channels, STAGE_WIDTHS)),
        ),
        groups=signature.groups,
        se=_se_spec(state_dict),
        builder=signature.builder,
        in_chans=in_chans,
        num_classes=num_classes,
        image_size=image_size,
    )
    wrong: List[str] = []
    for key, shape in deploy_shapes(architecture).items():
        array = state_dict.get(key)
        if array is None and key.endswith("rbr_reparam.weight"):
            array = state_dict.get(key.replace("rbr_reparam.weight", "rbr_dense.conv.weight"))
        if (array is None and not key.endswith("rbr_reparam.bias")) or (array is not None and array.shape != shape):
            wrong.append(key)
    if wrong:
        raise LayoutError(
            f"the arrays are not those of a RepVGG as the paper builds it: {format_keys(wrong, 3)}",
            actual=wrong,
            hint="a network of your own needs a builder; see the guide to plugins",
        )
    return architecture


def _se_spec(state_dict: Mapping[str, Any]) -> Optional[SESpec]:
    for prefix, position in (("stage0.se.", "before_relu"), ("stage0.post_se.", "after_relu")):
        down = state_dict.get(f"{prefix}down.weight")
        if down is not None:
            return SESpec(position, int(down.shape[1]) // max(1, int(down.shape[0])))
    return None


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
