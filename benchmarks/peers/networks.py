"""The deploy network, read off its weights: a list of layers, and the plain torch network that they make.

Weights have the official repository's keys and torch's shapes (``stage1.0.rbr_reparam.weight``, (out, in / groups, 3,
3)), which say everything else: the first block of a stage has stride 2, and a kernel's second axis gives its groups.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from torch import nn

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
    channels = 3
    for name in sorted({match.group(1) for key in state if (match := re.match(r"(stage[\d.]+)\.", key))}, key=order):
        weight, bias = pair(state, f"{name}.rbr_reparam")
        gate = (pair(state, f"{name}.se.down"), pair(state, f"{name}.se.up")) if f"{name}.se.up.bias" in state else None
        groups = channels // weight.shape[1]
        found.append(Layer(name, weight, bias, 1 if order(name)[1] else 2, groups, gate))
        channels = weight.shape[0]
    return [*found, Layer("linear", *pair(state, "linear"))]


def order(name: str) -> Tuple[str, int]:
    stage, _, index = name.partition(".")
    return stage, int(index or 0)


def pair(state: Mapping[str, Any], name: str) -> Pair:
    return state[f"{name}.weight"], state[f"{name}.bias"]


class Squeeze(nn.Module):
    """Squeeze-and-excitation, as RepVGG-D2se has it between convolution and ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Any) -> Any:
        return x * self.gate(x)


def torch_network(network: List[Layer]) -> nn.Sequential:
    """A Sequential of Conv2d, ReLU and the head, nothing else but SE; weights are those that torch draws."""
    parts: List[nn.Module] = []
    for layer in network[:-1]:
        out, per_group = layer.weight.shape[:2]
        inputs = per_group * layer.groups
        parts.append(nn.Conv2d(inputs, out, 3, layer.stride, 1, groups=layer.groups))
        if layer.squeeze:
            parts.append(Squeeze(out, layer.squeeze[0][0].shape[0]))
        parts.append(nn.ReLU(inplace=True))
    classes, features = network[-1].weight.shape
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))


def torch_state(built: nn.Sequential, network: List[Layer]) -> Dict[str, Any]:
    """The layers' weights under the keys of the network that was built of them."""
    pairs: List[Pair] = []
    for layer in network:
        pairs += [(layer.weight, layer.bias), *(layer.squeeze or ())]
    names = [key[: -len(".weight")] for key in built.state_dict() if key.endswith(".weight")]
    state = {}
    for name, (weight, bias) in zip(names, pairs, strict=True):
        state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias
    return state


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
