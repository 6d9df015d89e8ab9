"""The deploy network as a list of layers, derived from its weights, and the official keys of timm's.

Weights have the official repository's keys and torch's shapes (``stage1.0.rbr_reparam.weight``, (out, in / groups, 3,
3)), which determine the rest: the first block of a stage has stride 2, and a kernel's second axis gives its groups.
"""

from __future__ import annotations

import re
from typing import Any, List, Mapping, NamedTuple, Optional, Tuple

Pair = Tuple[Any, Any]


class Layer(NamedTuple):
    """A 3x3 convolution with bias, SE if the variant has it, and ReLU; or the last layer, the linear head."""

    name: str
    weight: Any
    bias: Any
    stride: int = 1
    groups: int = 1
    se: Optional[Tuple[Pair, Pair]] = None


def layers(state: Mapping[str, Any]) -> List[Layer]:
    """Return the layers in execution order; arrays and tensors of any kind are passed on."""
    result = []
    channels = 0  # of the input; the stem has no groups
    blocks = {key[: key.index(".rbr_reparam")] for key in state if ".rbr_reparam" in key}
    for name in sorted(blocks, key=block_sort_key):
        weight, bias = pair(state, f"{name}.rbr_reparam")
        se = (pair(state, f"{name}.se.down"), pair(state, f"{name}.se.up")) if f"{name}.se.up.bias" in state else None
        groups = channels // weight.shape[1] or 1
        result.append(Layer(name, weight, bias, 1 if block_sort_key(name)[1] else 2, groups, se))
        channels = weight.shape[0]
    return [*result, Layer("linear", *pair(state, "linear"))]


def block_sort_key(name: str) -> Tuple[str, int]:
    stage, _, index = name.partition(".")
    return stage, int(index or 0)


def pair(state: Mapping[str, Any], name: str) -> Pair:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def official_key(key: str) -> str:
    """Return the official repository's key for a key of timm's, in either form."""
    key = re.sub(r"^stages\.(\d)", lambda match: f"stage{int(match.group(1)) + 1}", key.replace("stem.", "stage0."))
    for timm_name, official_name in TIMM_NAMES:
        key = key.replace(timm_name, official_name)
    return key


TIMM_NAMES = (
    ("conv_kxk", "rbr_dense"),
    ("conv_1x1", "rbr_1x1"),
    ("identity", "rbr_identity"),
    ("reparam_conv", "rbr_reparam"),
    ("head.fc", "linear"),
)
