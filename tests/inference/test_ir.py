"""The layers of a state dict, and the arrays that are refused before any memory is laid out for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from repvgg_zoo.errors import StateError
from repvgg_zoo.inference.ir import check_layers, check_state_dict, weights_from_state_dict
from repvgg_zoo.registry.architecture import block_specs, deploy_shapes
from repvgg_zoo.registry.specs import Architecture, SESpec
from tests.inference.reference import Layer, random_weights

SMALL = {"num_blocks": (1, 2, 4, 1), "width_multiplier": (0.5, 0.25, 0.125, 0.125), "num_classes": 10}
ARCHITECTURES = {
    "grouped": Architecture(**SMALL, groups=4),
    "SE before ReLU": Architecture(**SMALL, se=SESpec("before_relu", 4)),
    "RepVGGplus": Architecture(**SMALL, se=SESpec("after_relu", 2), builder="repvggplus"),
    "more than ten blocks": Architecture((1, 12, 11, 1), (0.25,) * 4),
}


def state_dict_of(architecture):
    return {key: np.zeros(shape, np.float32) for key, shape in deploy_shapes(architecture).items()}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_layers_of_a_state_dict_are_those_of_the_architecture(kind):
    architecture = ARCHITECTURES[kind]
    state_dict = state_dict_of(architecture)
    check_state_dict(state_dict, architecture)
    weights = weights_from_state_dict(dict(sorted(state_dict.items())))
    check_layers(weights, architecture.in_chans)
    layers = [(layer.in_channels, layer.out_channels, layer.stride, layer.groups) for layer in weights.layers]
    assert layers == [block[1:] for block in block_specs(architecture)]
    expected = None if architecture.se is None else architecture.se.position == "after_relu"
    assert {layer.se and layer.se.after_relu for layer in weights.layers} == {expected}
    assert weights.head.weight.shape[0] == architecture.num_classes


def remove(key):
    def change(state_dict):
        del state_dict[key]

    return change


def put(key, shape, dtype=np.float32):
    def change(state_dict):
        state_dict[key] = np.zeros(shape, dtype)

    return change


def all_of(*changes):
    def change(state_dict):
        for part in changes:
            part(state_dict)

    return change


# What is done to the arrays of a network of the given kind, and which keys the error names:
# missing, unexpected and misshapen ones.
KERNEL, BIAS = "stage2.0.rbr_reparam.weight", "stage2.0.rbr_reparam.bias"
CHANGES = {
    "a block too many": (
        "grouped",
        all_of(
            put("stage3_first.blocks.0.rbr_reparam.weight", (4000, 16, 4, 3, 3)),
            put("stage3_first.blocks.0.rbr_reparam.bias", (1, 64, 1, 1)),
        ),
        ([], ["stage3_first.blocks.0.rbr_reparam.weight", "stage3_first.blocks.0.rbr_reparam.bias"], []),
    ),
    "a block too many that fits the last": (
        "grouped",
        all_of(
            put("stage4.1.rbr_reparam.weight", (64, 64, 3, 3)),
            put("stage4.1.rbr_reparam.bias", (1, 64, 1, 1)),
        ),
        ([], ["stage4.1.rbr_reparam.weight", "stage4.1.rbr_reparam.bias"], []),
    ),
    "a kernel alone too many": (
        "grouped",
        put("stage2.2.rbr_reparam.weight", (32, 32, 3, 3)),
        ([], ["stage2.2.rbr_reparam.weight"], []),
    ),
    "a block too few": ("grouped", all_of(remove(KERNEL), remove(BIAS)), ([KERNEL, BIAS], [], [])),
    "no bias": ("grouped", remove(BIAS), ([BIAS], [], [])),
    "SE that the variant does not have": (
        "grouped",
        put("stage0.se.down.weight", (8, 32, 1, 1)),
        ([], ["stage0.se.down.weight"], []),
    ),
    "branches that were not fused": (
        "grouped",
        put("stage0.rbr_dense.conv.weight", (32, 3, 3, 3)),
        ([], ["stage0.rbr_dense.conv.weight"], []),
    ),
    "other groups": ("grouped", put(KERNEL, (2, 16, 16, 3, 3)), ([], [], ["stage2.0"])),
    "fewer groups of the same size": ("grouped", put(KERNEL, (2, 8, 8, 3, 3)), ([], [], ["stage2.0"])),
    "4-D where 5-D is expected": ("grouped", put(KERNEL, (32, 8, 3, 3)), ([], [], ["stage2.0"])),
    "5-D where 4-D is expected": (
        "RepVGGplus",
        put("stage0.rbr_reparam.weight", (1, 32, 3, 3, 3)),
        ([], [], ["stage0"]),
    ),
    "other input channels": ("grouped", put("stage0.rbr_reparam.weight", (32, 4, 3, 3)), ([], [], ["stage0"])),
    "other output channels": ("grouped", put("stage0.rbr_reparam.weight", (48, 3, 3, 3)), ([], [], ["stage0"])),
    "no dimensions": ("grouped", put(KERNEL, ()), ([], [], ["stage2.0"])),
    "a kernel of 5x5": ("grouped", put("stage0.rbr_reparam.weight", (32, 3, 5, 5)), ([], [], ["stage0"])),
    "a longer bias": ("grouped", put(BIAS, (1, 33, 1, 1)), ([], [], ["stage2.0"])),
    "an empty bias": ("grouped", put(BIAS, (1, 0, 1, 1)), ([], [], ["stage2.0"])),
    "a wider SE": ("SE before ReLU", put("stage0.se.down.weight", (9, 32, 1, 1)), ([], [], ["stage0"])),
    "SE of other channels": ("RepVGGplus", put("stage0.post_se.up.weight", (64, 16, 1, 1)), ([], [], ["stage0"])),
    "SE on the other side of ReLU": (
        "SE before ReLU",
        put("stage0.post_se.down.weight", (8, 32, 1, 1)),
        ([], ["stage0.post_se.down.weight"], []),
    ),
    "more classes": ("grouped", put("linear.weight", (11, 64)), ([], [], ["linear"])),
    "other features of the head": ("grouped", put("linear.weight", (10, 80)), ([], [], ["linear"])),
    "a bias of the head for fewer classes": ("grouped", put("linear.bias", (9,)), ([], [], ["linear"])),
    "no head": ("grouped", remove("linear.weight"), (["linear.weight"], [], [])),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_arrays_that_are_not_exactly_those_of_the_variant_are_refused(kind):
    name, change, (missing, unexpected, mismatches) = CHANGES[kind]
    architecture = ARCHITECTURES[name]
    state_dict = state_dict_of(architecture)
    change(state_dict)
    with pytest.raises(StateError) as caught:
        check_state_dict(state_dict, architecture, path="net.pth")
    error = caught.value
    assert sorted(error.missing) == sorted(missing)
    assert sorted(error.unexpected) == sorted(unexpected)
    assert [
        key.rpartition(".rbr_reparam")[0] or key.split(".")[0] for key, _, _ in error.shape_mismatches
    ] == mismatches
    assert error.path == "net.pth"


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.complex64, np.bool_, ">f4"], ids=str)
def test_arrays_of_another_dtype_than_float32_are_refused(dtype):
    architecture = ARCHITECTURES["grouped"]
    state_dict = state_dict_of(architecture)
    state_dict[KERNEL] = state_dict[KERNEL].astype(dtype)
    with pytest.raises(StateError, match=f"not float32: {KERNEL}"):
        check_state_dict(state_dict, architecture)


def test_the_error_names_ten_arrays_and_counts_the_rest():
    architecture = ARCHITECTURES["grouped"]
    with pytest.raises(StateError, match=r"and 10 more") as caught:
        check_state_dict({}, architecture)
    assert len(caught.value.missing) == 20
    assert len(str(caught.value).splitlines()) < 15


def test_values_that_are_not_finite_are_not_the_business_of_this_check():
    architecture = ARCHITECTURES["grouped"]
    check_state_dict({key: array * np.nan for key, array in state_dict_of(architecture).items()}, architecture)


# Networks without an architecture: which part is replaced, and by an array of which shape.
LAYERS = [Layer(16, 2, se="before"), Layer(32, groups=2), Layer(32, se="after")]
PARTS = {
    "a kernel of other input channels": ((1, "kernel"), (2, 16, 9, 3, 3)),
    "a kernel of other output channels": ((1, "kernel"), (2, 17, 8, 3, 3)),
    "more groups": ((1, "kernel"), (4, 16, 8, 3, 3)),
    "a kernel of 5x5": ((1, "kernel"), (2, 16, 8, 5, 5)),
    "a kernel of four dimensions": ((1, "kernel"), (32, 16, 3, 3)),
    "no groups": ((1, "kernel"), (0, 16, 8, 3, 3)),
    "no outputs": ((1, "kernel"), (2, 0, 8, 3, 3)),
    "a bias of two dimensions": ((1, "bias"), (1, 32)),
    "a longer bias": ((2, "bias"), (33,)),
    "a first layer of other input channels": ((0, "kernel"), (1, 16, 4, 3, 3)),
    "SE of other inputs": ((0, "se", "down", "weight"), (4, 17)),
    "SE that squeezes to nothing": ((0, "se", "down", "weight"), (0, 16)),
    "SE whose second layer takes more": ((0, "se", "up", "weight"), (16, 5)),
    "SE of other outputs": ((2, "se", "up", "weight"), (33, 8)),
    "SE of a longer bias": ((2, "se", "down", "bias"), (9,)),
    "SE that squeezes before it expands": ((2, "se", "up", "bias"), (31,)),
    "a head of other inputs": (("head", "weight"), (5, 33)),
    "a head of more classes than biases": (("head", "weight"), (6, 32)),
}


def replaced(value, path, array):
    """The same structure with another array at the path of attributes."""
    if not path:
        return array
    name, *rest = path
    changed = replaced(getattr(value, name), rest, array)
    return value._replace(**{name: changed}) if hasattr(value, "_replace") else replace(value, **{name: changed})


def with_part(weights, path, array):
    if path[0] == "head":
        return replaced(weights, path, array)
    layers = list(weights.layers)
    layers[path[0]] = replaced(layers[path[0]], path[1:], array)
    return replace(weights, layers=tuple(layers))


@pytest.mark.parametrize("kind", PARTS)
def test_layers_that_do_not_fit_one_another_are_refused(kind):
    path, shape = PARTS[kind]
    weights = random_weights(3, LAYERS, 5)
    check_layers(weights, 3)
    with pytest.raises(StateError, match=r"layer|head"):
        check_layers(with_part(weights, path, np.zeros(shape, np.float32)), 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, ">f4"], ids=str)
@pytest.mark.parametrize("path", [(1, "kernel"), (1, "bias"), (0, "se", "up", "weight"), ("head", "bias")], ids=str)
def test_layers_of_another_dtype_are_refused(path, dtype):
    weights = random_weights(3, LAYERS, 5)
    array = weights
    for name in path:
        array = array.layers[name] if isinstance(name, int) else getattr(array, name)
    with pytest.raises(StateError, match="not float32"):
        check_layers(with_part(weights, path, array.astype(dtype)), 3)


def test_images_of_other_channels_and_no_layers_at_all_are_refused():
    with pytest.raises(StateError, match="takes 3 channels, but its input has 4"):
        check_layers(random_weights(3, LAYERS), 4)
    with pytest.raises(StateError, match="no layers"):
        check_layers(random_weights(3, [], 5))
