"""What a network costs, computed from its ``Architecture``: parameters and multiply-accumulates of both forms."""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Sequence, Tuple

from ..errors import ArgumentError
from .architecture import BlockSpec, block_specs, stage_channels
from .specs import Architecture, Cost, SESpec


class LayerCost(NamedTuple):
    """The cost of one block or of a layer outside all blocks; ``name`` is its prefix in a state dict."""

    name: str
    params: Cost
    macs: Cost


class NetworkCost(NamedTuple):
    """What a network costs in the train form and in the deploy form, as a whole and for each block and layer.

    ``params`` counts trainable numbers; ``macs`` counts multiply-accumulates of convolutions and linear layers for one
    image of ``image_size`` (height, width), without squeeze-and-excitation and auxiliary heads, as in the published
    figures.
    """

    params: Cost
    macs: Cost
    image_size: Tuple[int, int]
    layers: Tuple[LayerCost, ...]


def total_cost(layers: List[LayerCost], image_size: Tuple[int, int]) -> NetworkCost:
    """Return the cost of a network with these layers."""
    params, macs = (
        Cost(sum(cost.train for cost in costs), sum(cost.deploy for cost in costs))
        for costs in ([layer.params for layer in layers], [layer.macs for layer in layers])
    )
    return NetworkCost(params, macs, image_size, tuple(layers))


def architecture_cost(architecture: Architecture, image_size: Tuple[int, int]) -> NetworkCost:
    """Return the cost of a built-in variant; raise ArgumentError if its groups do not divide its channels."""
    height, width = image_size
    layers: List[LayerCost] = []
    for block in block_specs(architecture):
        if block.in_channels % block.groups or block.out_channels % block.groups:
            raise ArgumentError(
                f"{block.key} has {block.in_channels} channels to {block.out_channels}, "
                f"which {block.groups} groups do not divide",
                actual=block.groups,
                hint="take a number of groups that divides both",
            )
        height, width = -(-height // block.stride), -(-width // block.stride)
        layers.append(LayerCost(block.key, block_params(block, architecture.se), block_macs(block, height * width)))
    features = stage_channels(architecture.width_multiplier)[-1]
    classes = architecture.num_classes
    head = Cost(features * classes, features * classes)
    if classes:
        layers.append(LayerCost("linear", Cost(head.train + classes, head.deploy + classes), head))
    if classes and architecture.builder == "repvggplus":
        layers += auxiliary_heads(stage_channels(architecture.width_multiplier), classes)
    return total_cost(layers, image_size)


def block_params(block: BlockSpec, se: Optional[SESpec]) -> Cost:
    """Return the parameters of a block: three branches with BN, or one convolution with a bias; and its SE."""
    weights, channels = block.in_channels * block.out_channels // block.groups, block.out_channels
    has_identity = block.in_channels == channels and block.stride == 1
    squeezed = 0 if se is None else channels // se.reduction
    se_params = 0 if se is None else 2 * channels * squeezed + squeezed + channels
    branches = 9 * weights + weights + 2 * channels * (3 if has_identity else 2)
    return Cost(branches + se_params, 9 * weights + channels + se_params)


def block_macs(block: BlockSpec, positions: int) -> Cost:
    """Return the multiply-accumulates of a block whose output has so many positions."""
    weights = block.in_channels * block.out_channels // block.groups
    return Cost(10 * weights * positions, 9 * weights * positions)


def auxiliary_heads(widths: Sequence[int], classes: int) -> List[LayerCost]:
    """Return RepVGGplus's heads behind stages 1, 2 and 3, which only training needs and no published figure counts."""
    return [
        LayerCost(name, Cost(9 * channels**2 + 2 * channels + channels * classes + classes, 0), macs=Cost(0, 0))
        for name, channels in zip(("stage1_aux", "stage2_aux", "stage3_first_aux"), widths[1:])
    ]
