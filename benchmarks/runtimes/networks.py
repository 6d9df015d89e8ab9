"""The deploy network as a list of layers, read off its weights, and the keys of those.

Weights have the official repository's keys and torch's shapes (``stage1.0.rbr_reparam.weight``, (out, in / groups, 3,
3)), which say everything else: the first block of a stage has stride 2, and a kernel's second axis gives its groups.
"""

from __future__ import annotations

import re
from typing import Any, List, Mapping, NamedTuple, Optional, Tuple

Pair = Tuple[Any, Any]


class Layer(NamedTuple):
    """A 3x3 convolution with bias, SE if there is one, and ReLU; or the head, a matrix and a bias, which comes last."""

    name: str
    weight: Any
    bias: Any
    stride: int = 1
    groups: int = 1
    squeeze: Optional[Tuple[Pair, Pair]] = None


def layers(state: Mapping[str, Any]) -> List[Layer]:
    """The layers in the order in which data flows through them; arrays and tensors of any kind are passed on."""
    found = []
    channels = 0  # of what enters; the stem has no groups
    blocks = {key[: key.index(".rbr_reparam")] for key in state if ".rbr_reparam" in key}
    for name in sorted(blocks, key=order):
        weight, bias = pair(state, f"{name}.rbr_reparam")
        gate = (pair(state, f"{name}.se.down"), pair(state, f"{name}.se.up")) if f"{name}.se.up.bias" in state else None
        groups = channels // weight.shape[1] or 1
        found.append(Layer(name, weight, bias, 1 if order(name)[1] else 2, groups, gate))
        channels = weight.shape[0]
    return [*found, Layer("linear", *pair(state, "linear"))]


def order(name: str) -> Tuple[str, int]:
    stage, _, index = name.partition(".")
    return stage, int(index or 0)


def pair(state: Mapping[str, Any], name: str) -> Pair:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def official_key(key: str) -> str:
    """timm's name of a tensor, in either form, as the official repository has it."""
    key = re.sub(r"^stages\.(\d)", lambda match: f"stage{int(match.group(1)) + 1}", key.replace("stem.", "stage0."))
    for theirs, ours in TIMM_NAMES:
        key = key.replace(theirs, ours)
    return key


TIMM_NAMES = (
    ("conv_kxk", "rbr_dense"),
    ("conv_1x1", "rbr_1x1"),
    ("identity", "rbr_identity"),
    ("reparam_conv", "rbr_reparam"),
    ("head.fc", "linear"),
)
