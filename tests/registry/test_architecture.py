"""The shapes that are computed from an architecture are those of the network that is built from it."""

from __future__ import annotations

import pytest

from repvgg_zoo.models import RepVGGBlock
from repvgg_zoo.models.build import BUILDERS
from repvgg_zoo.registry.architecture import block_specs, deploy_shapes
from repvgg_zoo.registry.load import shipped_registry
from repvgg_zoo.registry.specs import Architecture, SESpec

SMALL = {"num_blocks": (1, 2, 3, 1), "width_multiplier": (0.5, 0.5, 0.25, 0.25)}
ARCHITECTURES = {
    **{model.name: model.architecture for model in shipped_registry().models},
    "wide stem": Architecture((1, 1, 1, 1), (2, 1, 1, 1)),
    "more than ten blocks": Architecture((1, 12, 11, 1), (0.25,) * 4, groups=4),
    "one channel": Architecture(**SMALL, in_chans=1, num_classes=7),
    "SE after ReLU": Architecture(**SMALL, se=SESpec("after_relu", 4)),
    "RepVGGplus with SE before ReLU": Architecture(**SMALL, builder="repvggplus", se=SESpec("before_relu", 2)),
    "RepVGGplus with groups, which it ignores": Architecture(**SMALL, builder="repvggplus", groups=2),
    "RepVGGplus with one block in stage 3": Architecture((1, 1, 1, 1), (0.25,) * 4, builder="repvggplus"),
}


def built(architecture):
    return BUILDERS[architecture.builder](
        architecture,
        num_classes=architecture.num_classes,
        in_chans=architecture.in_chans,
        deploy=True,
        init_weights=False,
    )


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_shapes_of_the_deploy_form_are_those_of_the_built_network(kind):
    architecture = ARCHITECTURES[kind]
    tensors = {name: tuple(tensor.shape) for name, tensor in built(architecture).named_tensors()}
    assert deploy_shapes(architecture) == tensors


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_blocks_are_those_of_the_built_network(kind):
    architecture = ARCHITECTURES[kind]
    blocks = {
        name: (block.in_channels, block.out_channels, block.stride, block.groups)
        for name, block in built(architecture).named_modules()
        if isinstance(block, RepVGGBlock)
    }
    assert {block.key: block[1:] for block in block_specs(architecture)} == blocks


def test_another_number_of_classes_changes_the_head_alone():
    architecture = ARCHITECTURES["one channel"]
    shapes, others = deploy_shapes(architecture), deploy_shapes(architecture, 12)
    assert {key for key in shapes if shapes[key] != others[key]} == {"linear.weight", "linear.bias"}
    assert (others["linear.weight"][0], others["linear.bias"]) == (12, (12,))
