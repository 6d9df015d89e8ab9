"""The deploy network in torch: a Sequential of Conv2d, ReLU and the head, with SE where a variant has it."""

from __future__ import annotations

from typing import Any, Dict, List

from torch import nn

from .networks import Layer, Pair


def torch_network(network: List[Layer]) -> nn.Sequential:
    """The network, with the weights that torch draws."""
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


class Squeeze(nn.Module):
    """Squeeze-and-excitation, as RepVGG-D2se has it between convolution and ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, width, 1),
            nn.ReLU(),
            nn.Conv2d(width, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Any) -> Any:
        return x * self.gate(x)
