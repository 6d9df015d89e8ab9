"""The deploy network in torch: a Sequential of Conv2d, ReLU and the head, with SE where a variant has it."""

from __future__ import annotations

from typing import Any, Dict, List

from torch import nn

from .networks import Layer, Pair


def torch_network(network: List[Layer]) -> nn.Sequential:
    """Return the network with torch's initial weights."""
    modules: List[nn.Module] = []
    for layer in network[:-1]:
        out, per_group = layer.weight.shape[:2]
        inputs = per_group * layer.groups
        modules.append(nn.Conv2d(inputs, out, 3, layer.stride, 1, groups=layer.groups))
        if layer.se:
            modules.append(SqueezeExcite(out, layer.se[0][0].shape[0]))
        modules.append(nn.ReLU(inplace=True))
    classes, features = network[-1].weight.shape
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))


def torch_state(built: nn.Sequential, network: List[Layer]) -> Dict[str, Any]:
    """Return the layers' weights under the keys of ``torch_network(network)``."""
    pairs: List[Pair] = []
    for layer in network:
        pairs += [(layer.weight, layer.bias), *(layer.se or ())]
    names = [key[: -len(".weight")] for key in built.state_dict() if key.endswith(".weight")]
    state = {}
    for name, (weight, bias) in zip(names, pairs, strict=True):
        state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias
    return state


class SqueezeExcite(nn.Module):
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
