"""extract_weights: the weights of a network, or None where they are not all that decides what it computes."""

from __future__ import annotations

import megengine.module as M
import numpy as np
import pytest
from megengine import Parameter, Tensor

import repvgg_zoo
from repvgg_zoo.inference.eager import extract_weights
from repvgg_zoo.inference.ir import weights_from_state_dict
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
    return with_distinct_values(make(blocks, WIDTHS, deploy=True, **options))


def with_distinct_values(network):
    """Give every tensor values of its own, so that none can be taken for another."""
    for index, tensor in enumerate(network.parameters()):
        tensor[...] = np.full(tensor.shape, index, np.float32) + np.linspace(0, 0.5, tensor.size).reshape(tensor.shape)
    return network


def flatten(weights):
    """Everything in it: names and values."""
    values = {}
    for index, layer in enumerate(weights.layers):
        values[index, "kernel"], values[index, "bias"] = layer.kernel, layer.bias
        values[index, "stride"], values[index, "feature"] = layer.stride, layer.feature
        if layer.se is not None:
            values[index, "after"] = layer.se.after_relu
            for name in ("down", "up"):
                values[index, name], values[index, name, "bias"] = getattr(layer.se, name)
    if weights.head is not None:
        values["head"], values["head", "bias"] = weights.head
    return values


def same(one, other):
    one, other = flatten(one), flatten(other)
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_weights_of_a_network_are_those_of_its_state_dict(kind):
    network = built(kind)
    arrays = {name: tensor.numpy() for name, tensor in network.named_tensors()}
    features = {} if network.linear is not None else {info.index: info.name for info in network.feature_info}
    assert same(extract_weights(network), weights_from_state_dict(arrays, features))


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_layers_come_in_the_order_in_which_the_network_runs_them(kind):
    network = built(kind)
    ran = []
    for module in network.modules():
        if isinstance(module, RepVGGBlock):
            module.register_forward_hook(lambda block, inputs, output: ran.append(block.rbr_reparam))
    network(Tensor(np.zeros((1, network.in_chans, 8, 8), np.float32)))
    layers = extract_weights(network).layers
    assert len(layers) == len(ran)
    for layer, convolution in zip(layers, ran):
        assert np.array_equal(layer.kernel.reshape(-1), convolution.weight.numpy().reshape(-1))
        assert np.array_equal(layer.bias, convolution.bias.numpy().reshape(-1))
        assert layer.stride == convolution.stride[0]
        assert (layer.groups, layer.in_channels) == (convolution.groups, convolution.in_channels)


def test_features_belong_to_the_last_blocks_of_their_stages():
    features = [layer.feature for layer in extract_weights(built("features")).layers]
    stages = ["stage0", "stage1", *[None] * 11, "stage2", None, "stage3", "stage4"]
    assert features == stages
    features = [layer.feature for layer in extract_weights(built("features of RepVGGplus")).layers]
    assert features == [None, None, None, "stage2", None, None, None, "stage3"]


def test_se_is_on_the_side_of_relu_where_the_network_has_it():
    for kind, after_relu in (("SE before ReLU", False), ("RepVGGplus", True)):
        assert {layer.se.after_relu for layer in extract_weights(built(kind)).layers} == {after_relu}
    assert {layer.se for layer in extract_weights(built("plain")).layers} == {None}


class Own(RepVGG):
    """A user's own network, which may compute anything."""


def train_form(network):
    return RepVGG([1, 2, 1, 1], WIDTHS)


def one_block_in_train_form(network):
    network.stage2[1] = RepVGG([1, 2, 1, 1], WIDTHS).stage2[1]
    return network


def subclass(network):
    return Own([1, 2, 1, 1], WIDTHS, deploy=True)


def a_network_of_another_class(network):
    return network.stage1


def changed_convolution(**changes):
    def change(network):
        for name, value in changes.items():
            setattr(network.stage2[1].rbr_reparam, name, value)
        return network

    change.__name__ = "_".join(changes)
    return change


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


def another_kernel_size_in_se(network):
    se = RepVGG([1, 2, 1, 1], WIDTHS, se=BEFORE, deploy=True).stage1[0].se
    se.down = M.Conv2d(16, 4, 3, padding=1)
    network.stage1[0].se = se
    return network


def another_number_of_channels_within_a_stage(network):
    network.stage1[0].rbr_reparam = M.Conv2d(16, 24, 3, stride=2, padding=1)
    return network


def a_linear_layer_for_a_convolution(network):
    network.stage1[0].rbr_reparam = M.Linear(16, 16)
    return network


def another_activation(network):
    network.stage1[0].relu = M.Elemwise("abs")
    return network


def another_module_for_se(network):
    network.stage1[0].se = M.Softmax(axis=1)
    return network


OTHERS = [
    train_form,
    one_block_in_train_form,
    subclass,
    a_network_of_another_class,
    changed_convolution(stride=(1, 2)),
    changed_convolution(padding=(0, 0)),
    changed_convolution(padding_mode="reflect"),
    changed_convolution(dilation=(2, 2)),
    changed_convolution(dilation=(1, 2), padding=(1, 2)),
    changed_convolution(bias=None),
    half_precision,
    no_bias_in_the_head,
    another_head,
    no_head_but_the_mean,
    a_module_within_a_stage,
    a_convolution_within_a_stage,
    another_kernel_size_in_se,
    another_number_of_channels_within_a_stage,
    a_linear_layer_for_a_convolution,
    another_activation,
    another_module_for_se,
]


@pytest.mark.parametrize("change", OTHERS, ids=lambda change: change.__name__)
def test_no_weights_are_extracted_from_any_other_network(change):
    network = RepVGG([1, 2, 1, 1], WIDTHS, deploy=True)
    assert extract_weights(network) is not None
    assert extract_weights(change(network)) is None


@pytest.mark.parametrize(
    ("changes", "geometry"),
    [({"stride": (2, 2)}, (2, 1)), ({"stride": 3}, (3, 1)), ({"dilation": 2, "padding": (2, 2)}, (1, 2))],
)
def test_the_stride_and_dilation_are_those_of_the_convolution(changes, geometry):
    network = changed_convolution(**changes)(RepVGG([1, 2, 1, 1], WIDTHS, deploy=True))
    geometries = [(layer.stride, layer.dilation) for layer in extract_weights(network).layers]
    assert geometries == [(2, 1), (2, 1), (2, 1), geometry, (2, 1), (2, 1)]


def test_a_new_linear_head_is_as_good_as_the_first():
    network = built("plain")
    network.linear = M.Linear(32, 10)
    weight, bias = extract_weights(network).head
    assert np.array_equal(weight, network.linear.weight.numpy())
    assert np.array_equal(bias, network.linear.bias.numpy())


def test_a_published_checkpoint_has_the_weights_of_its_network():
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True, deploy=True)
    arrays = {name: tensor.numpy() for name, tensor in network.named_tensors()}
    assert same(extract_weights(network), weights_from_state_dict(arrays))
