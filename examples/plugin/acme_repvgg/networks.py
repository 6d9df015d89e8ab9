"""A RepVGG trunk with a head of two layers."""

from __future__ import annotations

from typing import Any, Dict

import megengine.functional as F
from megengine import Tensor
from megengine.module import Module

from repvgg_zoo.models import RepVGG, linear
from repvgg_zoo.registry.specs import Architecture


def build(architecture: Architecture, **kwargs: Any) -> Module:
    """Build a network of acme/two_layer; the option ``hidden`` is the width of the first layer of the head."""
    options: Dict[str, Any] = dict(architecture.options)
    return TwoLayerRepVGG(
        architecture.num_blocks,
        architecture.width_multiplier,
        hidden=options["hidden"],
        groups=architecture.groups,
        se=architecture.se,
        **kwargs,
    )


class TwoLayerRepVGG(RepVGG):
    """Maps (N, in_chans, H, W) to logits (N, num_classes) through ``hidden`` features."""

    # Initialized again for another number of classes, while all else is loaded.
    heads = ("linear.classes",)

    def __init__(self, *args: Any, hidden: int, init_weights: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, init_weights=init_weights, **kwargs)
        if self.linear is not None:
            self.linear = TwoLayerHead(self.linear.in_features, hidden, self.num_classes, init_weights)


class TwoLayerHead(Module):
    """(N, features) to (N, classes)."""

    def __init__(self, features: int, hidden: int, classes: int, init_weights: bool) -> None:
        super().__init__()
        self.hidden = linear(features, hidden, init_weights=init_weights)
        self.classes = linear(hidden, classes, init_weights=init_weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(F.relu(self.hidden(x)))
