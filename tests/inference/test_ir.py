"""numbers_of: a network's numbers are those of its arrays, and a network that they do not tell all of has none."""

from __future__ import annotations

import megengine.module as M
import numpy as np
import pytest
from megengine import Parameter, Tensor

import repvgg_zoo
from repvgg_zoo.inference.ir import numbers_from, numbers_of
from repvgg_zoo.models import RepVGG, RepVGGBlock, RepVGGplus
from repvgg_zoo.registry.specs import SESpec

WIDTHS = [0.25, 0.25, 0.125, 0.0625]
BEFORE, AFTER = (SESpec(position=position, reduction=4) for position in ("before_relu", "after_relu"))

# Deploy-form networks of every kind.
NETWORKS = {
    "plain": (RepVGG, [1, 2, 1, 1], {}),
    "more than ten blocks in a stage": (RepVGG, [1, 12, 11, 1], {}),
    "grouped": (RepVGG, [2, 3, 2, 1], {"groups": 2}),
    "SE before ReLU": (RepVGG, [1, 2, 1, 1], {"se": BEFORE}),
    "RepVGGplus": (RepVGGplus, [1, 2, 4, 1], {"se": AFTER}),
    "RepVGGplus with more than ten blocks in half a stage": (RepVGGplus, [1, 11, 23, 1], {"se": AFTER}),
    "one channel": (RepVGG, [1, 1, 1, 1], {"in_chans": 1, "num_classes": 10}),
    "features": (RepVGG, [1, 12, 2, 1], {"features_only": True}),
    "some features": (RepVGG, [1, 2, 2, 1], {"features_only": True, "out_indices": [0, 2]}),
    "features of RepVGGplus": (RepVGGplus, [1, 2, 4, 1], {"se": AFTER, "features_only": True, "out_indices": [2, 3]}),
}


def built(kind):
    make, blocks, options = NETWORKS[kind]
    return numbered(make(blocks, WIDTHS, deploy=True, **options))


def numbered(network):
    """Gives every tensor values of its own, so that none can be taken for another."""
    for index, tensor in enumerate(network.parameters()):
        tensor[...] = np.full(tensor.shape, index, np.float32) + np.linspace(0, 0.5, tensor.size).reshape(tensor.shape)
    return network


def arrays_of(numbers):
    """Everything in it, flat: names and values."""
    found = {}
    for index, block in enumerate(numbers.blocks):
        found[index, "kernel"], found[index, "bias"] = block.kernel, block.bias
        found[index, "stride"], found[index, "feature"] = block.stride, block.feature
        if block.gate is not None:
            found[index, "after"] = block.gate.after_relu
            for name in ("down", "up"):
                found[index, name], found[index, name, "bias"] = getattr(block.gate, name)
    if numbers.head is not None:
        found["head"], found["head", "bias"] = numbers.head
    return found


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_networks_numbers_are_those_of_its_arrays(kind):
    network = built(kind)
    arrays = {name: tensor.numpy() for name, tensor in network.named_tensors()}
    features = {} if network.linear is not None else {info.index: info.name for info in network.feature_info}
    found, expected = arrays_of(numbers_of(network)), arrays_of(numbers_from(arrays, features))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_blocks_come_in_the_order_in_which_the_network_runs_them(kind):
    network = built(kind)
    ran = []
    for module in network.modules():
        if isinstance(module, RepVGGBlock):
            module.register_forward_hook(lambda block, inputs, output: ran.append(block.rbr_reparam))
    network(Tensor(np.zeros((1, network.in_chans, 8, 8), np.float32)))
    blocks = numbers_of(network).blocks
    assert len(blocks) == len(ran)
    for block, convolution in zip(blocks, ran):
        assert np.array_equal(block.kernel.reshape(-1), convolution.weight.numpy().reshape(-1))
        assert np.array_equal(block.bias, convolution.bias.numpy().reshape(-1))
        assert block.stride == convolution.stride[0]
        assert (block.groups, block.in_channels) == (convolution.groups, convolution.in_channels)


def test_features_belong_to_the_last_blocks_of_their_stages():
    features = [block.feature for block in numbers_of(built("features")).blocks]
    stages = ["stage0", "stage1", *[None] * 11, "stage2", None, "stage3", "stage4"]
    assert features == stages
    features = [block.feature for block in numbers_of(built("features of RepVGGplus")).blocks]
    assert features == [None, None, None, "stage2", None, None, None, "stage3"]


def test_se_is_on_the_side_of_relu_where_the_network_has_it():
    for kind, after_relu in (("SE before ReLU", False), ("RepVGGplus", True)):
        assert {block.gate.after_relu for block in numbers_of(built(kind)).blocks} == {after_relu}
    assert {block.gate for block in numbers_of(built("plain")).blocks} == {None}


class Own(RepVGG):
    """A user's own network, which may compute anything."""


def train_form(network):
    return RepVGG([1, 2, 1, 1], WIDTHS)


def one_block_in_train_form(network):
    network.stage2[1] = RepVGG([1, 2, 1, 1], WIDTHS).stage2[1]
    return network


def subclass(network):
    return Own([1, 2, 1, 1], WIDTHS, deploy=True)


def no_network_of_ours(network):
    return network.stage1


def changed_convolution(**changes):
    def change(network):
        for name, value in changes.items():
            setattr(network.stage2[1].rbr_reparam, name, value)
        return network

    change.__name__ = "_".join(changes)
    return change


def stride_where_the_stage_begins(network):
    network.stage2[0].rbr_reparam.stride = (1, 1)
    return network


def half_precision(network):
    network.linear.weight = Parameter(network.linear.weight.numpy().astype(np.float16))
    return network


def no_bias_in_the_head(network):
    network.linear = M.Linear(32, 10, bias=False)
    return network


def another_head(network):
    network.linear = M.Sequential(M.Dropout(0.2), M.Linear(32, 10))
    return network


def no_head_but_the_mean(network):
    network.linear = M.Identity()
    return network


def a_module_within_a_stage(network):
    network.stage1 = M.Sequential(network.stage1[0], M.AvgPool2d(3, 1, 1))
    return network


def a_convolution_within_a_stage(network):
    network.stage1 = M.Sequential(network.stage1[0], M.Conv2d(16, 16, 1))
    return network


def another_module_for_se(network):
    network.stage1[0].se = M.Softmax(axis=1)
    return network


OTHERS = [
    train_form,
    one_block_in_train_form,
    subclass,
    no_network_of_ours,
    changed_convolution(stride=(2, 2)),
    changed_convolution(stride=(1, 2)),
    stride_where_the_stage_begins,
    changed_convolution(padding=(0, 0)),
    changed_convolution(padding_mode="reflect"),
    changed_convolution(dilation=(2, 2)),
    changed_convolution(bias=None),
    half_precision,
    no_bias_in_the_head,
    another_head,
    no_head_but_the_mean,
    a_module_within_a_stage,
    a_convolution_within_a_stage,
    another_module_for_se,
]


@pytest.mark.parametrize("change", OTHERS, ids=lambda change: change.__name__)
def test_any_other_network_has_no_numbers(change):
    network = RepVGG([1, 2, 1, 1], WIDTHS, deploy=True)
    assert numbers_of(network) is not None
    assert numbers_of(change(network)) is None


def test_a_new_linear_head_is_as_good_as_the_first():
    network = built("plain")
    network.linear = M.Linear(32, 10)
    weight, bias = numbers_of(network).head
    assert np.array_equal(weight, network.linear.weight.numpy())
    assert np.array_equal(bias, network.linear.bias.numpy())


def test_a_published_checkpoint_has_the_numbers_of_its_network():
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True, deploy=True)
    arrays = {name: tensor.numpy() for name, tensor in network.named_tensors()}
    found, expected = arrays_of(numbers_of(network)), arrays_of(numbers_from(arrays))
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
