"""Gradients on the kernels: those of MegEngine's autodiff, and central differences in float64."""

from __future__ import annotations

import copy
import functools
import re

import megengine
import numpy as np
import pytest
from megengine import Tensor
from megengine.autodiff import GradManager

import repvgg_zoo
from repvgg_zoo.inference.bounds import BoundsError, Memory, check_bounds, used_spans
from repvgg_zoo.inference.cost_model import CpuSpeed
from repvgg_zoo.inference.eager import extract_weights
from repvgg_zoo.inference.jit.all_kernels import ALL_FIELDS
from repvgg_zoo.training.kernel_trunk import KernelTrunk
from repvgg_zoo.training.lowering import TrainingLayer
from repvgg_zoo.training.structure import structure_of
from repvgg_zoo.training.trunk import forward_eager
from repvgg_zoo.training.trunk_function import kernel_features
from tests.inference.small_networks import images, small
from tests.networks import randomised
from tests.training.reference import directional_derivative, features64

# float32 rounding through these networks; a tie of ReLU, which rounding decides, moves more than that.
BOUND = 3e-4


def on_kernels(network, x, bn="frozen"):
    assert structure_of(network).has_kernels
    return kernel_features(network, structure_of(network).blocks, x, bn=bn, frozen=0, threads=2)


def gradients_of(network, forward, weights):
    """The features and the gradients, by name, of the sum of features * weights."""
    manager = GradManager().attach(list(network.parameters()))
    with manager:
        features = forward()
        manager.backward((features * Tensor(weights)).sum())
    gradients = {n: p.grad.numpy().copy() for n, p in network.named_parameters() if p.grad is not None}
    for parameter in network.parameters():
        parameter.grad = None
    return features.numpy(), gradients


def megengine_gradients(network, x, weights, bn):
    """What two passes of MegEngine agree on: on a busy processor, one of some 700 has garbage for a BN layer."""
    previous = None
    for _ in range(6):
        twin = copy.deepcopy(network)
        features, gradients = gradients_of(twin, functools.partial(forward_eager, twin, x, bn=bn), weights)
        if previous is not None and all(np.array_equal(previous[name], gradients[name]) for name in gradients):
            return features, gradients, running_statistics(twin)
        previous = gradients
    raise AssertionError("no two passes of MegEngine in a row have the same gradients")


def loss_weights(network, batch):
    channels = list(structure_of(network).blocks.values())[-1].module.out_channels
    return np.random.RandomState(2).standard_normal((batch, channels)).astype(np.float32)


def errors_above(bound, expected, actual):
    """The largest difference of each gradient, relative to its largest value, where it is above a bound."""
    assert expected.keys() == actual.keys()
    errors = {
        name: np.abs(expected[name] - actual[name]).max() / (np.abs(expected[name]).max() + 1e-12) for name in expected
    }
    return {name: error for name, error in errors.items() if not error < bound}


NETWORKS = {
    "plain blocks": {},
    "groups of whole panels": {"name": "RepVGG_B1g2", "width_multiplier": [0.5, 0.5, 0.25, 0.25]},
    "groups that do not fill panels": {"name": "RepVGG_B1g4"},
    "SE before ReLU": {"name": "RepVGG_D2se"},
    "SE after ReLU": {"name": "RepVGGplus_L2pse"},
    "dilation": {"output_stride": 8},
    "the deploy form": {"deploy": True},
    "the deploy form with SE": {"name": "RepVGG_D2se", "deploy": True},
}


SIZES = {case: [(3, (29, 18))] for case in NETWORKS}
SIZES["plain blocks"].append((1, 32))


@pytest.mark.parametrize(("case", "size"), [(case, size) for case in NETWORKS for size in SIZES[case]])
def test_gradients_with_constant_statistics_are_those_of_megengine(case, size):
    network = small(**NETWORKS[case])
    x = Tensor(images(size[0], 3, size[1]))
    weights = loss_weights(network, size[0])
    features, gradients = gradients_of(network, lambda: on_kernels(network, x), weights)
    expected_features, expected, _ = megengine_gradients(network, x, weights, "frozen")
    assert np.abs(features - expected_features).max() <= 1e-5 * np.abs(expected_features).max()
    assert not errors_above(BOUND, expected, gradients)


def running_statistics(network):
    return {name: tensor.numpy().copy() for name, tensor in network.named_buffers()}


@pytest.mark.parametrize("case", NETWORKS)
def test_gradients_with_the_statistics_of_the_batch_are_those_of_megengine(case):
    network, batch = small(**NETWORKS[case]), images(4, 3, (24, 20))
    x, weights = Tensor(batch), loss_weights(network, 4)
    expected_features, expected, expected_statistics = megengine_gradients(network, x, weights, "train")
    features, gradients = gradients_of(network, lambda: on_kernels(network, x, "train"), weights)
    assert np.abs(features - expected_features).max() <= 1e-4 * np.abs(expected_features).max()
    # A convolution's scale does not matter before BN, so some gradients are small differences of large numbers.
    assert not errors_above(20 * BOUND, expected, gradients)
    assert not errors_above(1e-5, expected_statistics, running_statistics(network))


FLOAT64 = ["plain blocks", "groups that do not fill panels", "SE before ReLU", "SE after ReLU"]


@pytest.mark.parametrize(("case", "bn"), [*((case, "frozen") for case in FLOAT64), ("SE before ReLU", "train")])
def test_gradients_are_the_central_differences_of_float64(case, bn):
    x = images(2, 3, 16) if bn == "frozen" else images(4, 3, 32)  # of which a pixel each is left
    network = small(**{"num_blocks": [1, 1, 2, 1], **NETWORKS[case]})
    weights = loss_weights(network, len(x))
    features, gradients = gradients_of(network, lambda: on_kernels(network, Tensor(x), bn), weights)
    expected = features64(network, x, bn)
    assert np.abs(features - expected).max() < 1e-5 * np.abs(expected).max()
    step = 1e-8 * np.linalg.norm(expected * weights)
    for kind in {name.partition("rbr_")[2] or name.partition("se.")[2] for name in gradients}:
        part = {name: gradient for name, gradient in gradients.items() if name.endswith(kind)}
        assert error_along_a_random_direction(network, part, x, weights, step, bn) < BOUND, kind


def error_along_a_random_direction(network, gradients, x, weights, step, bn="frozen"):
    """How far these gradients are from a derivative in float64, relative to it; each tensor has a like part in both."""
    random, directions, expected = np.random.RandomState(3), {}, 0.0
    for name, gradient in gradients.items():
        direction = random.standard_normal(gradient.shape).astype(np.float32)
        products = direction * gradient.astype(np.float64)
        norm = np.linalg.norm(products) or 1.0  # SE whose ReLU is zero
        directions[name] = direction / norm
        expected += products.sum() / norm
    derivative = directional_derivative(network, directions, x, weights, step, bn)
    return abs(derivative - expected) / np.sqrt(len(gradients))


def test_a_second_forward_pass_before_the_backward_pass_has_its_own_memory():
    network, weights = small(), loss_weights(small(), 1)
    batches = [Tensor(images(1, 3, 32, seed)) for seed in (1, 2)]
    single = [gradients_of(network, functools.partial(on_kernels, network, x), weights)[1] for x in batches]

    def both():
        return on_kernels(network, batches[0]) + on_kernels(network, batches[1])

    _, together = gradients_of(network, both, weights)
    assert not errors_above(1e-5, {name: single[0][name] + single[1][name] for name in together}, together)


# How far gradients may be from those of float64, relative to their size: by ReLU ties, of which 48 blocks have more.
WHOLE = {"RepVGG_A0": 5e-3, "RepVGG_B1g4": 5e-3, "RepVGG_D2se": 2e-2}
KINDS = {
    "3x3 kernels": r".*rbr_dense\.conv\.weight",
    "1x1 kernels": r".*rbr_1x1\.conv\.weight",
    "scales of BN": r".*(bn|rbr_identity)\.weight",
    "biases of BN": r".*(bn|rbr_identity)\.bias",
    "weights of SE": r".*se\.(down|up)\.weight",
    "biases of SE": r".*se\.(down|up)\.bias",
}


def whole(name):
    """A network with random weights; with SE, whose gates are about a half, BN makes up for them."""
    network = randomised(repvgg_zoo.create(name))
    if network.spec.architecture.se is not None:
        for name, parameter in network.named_parameters():
            for kind, factor in (("scales of BN", 1.75), ("weights of SE", 0.1)):
                if re.fullmatch(KINDS[kind], name):
                    parameter[...] = factor * parameter.numpy()
    return network


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 64), (16, 32)], ids=["one image", "a batch"])
@pytest.mark.parametrize(("name", "bound"), WHOLE.items())
def test_gradients_of_a_whole_network_are_the_central_differences_of_float64(name, bound, size):
    megengine.random.seed(1)
    network, x = whole(name), images(size[0], 3, size[1])
    weights = loss_weights(network, len(x))
    features, gradients = gradients_of(network, lambda: on_kernels(network, Tensor(x)), weights)
    step = 1e-8 * np.linalg.norm(features * weights)
    errors, checked = {}, set()
    for kind, pattern in KINDS.items():
        part = {name: gradient for name, gradient in gradients.items() if re.fullmatch(pattern, name)}
        checked.update(part)
        if part:
            errors[kind] = error_along_a_random_direction(network, part, x, weights, step)
    assert checked == gradients.keys()
    assert max(errors.values()) < bound, errors


@pytest.mark.parametrize("name", ["RepVGG_A0", pytest.param("RepVGG_B1g4", marks=pytest.mark.slow)])
def test_gradients_of_a_whole_network_are_those_of_megengine(name):
    network = whole(name)
    x, weights = Tensor(images(1, 3, 32)), loss_weights(network, 1)
    _, gradients = gradients_of(network, lambda: on_kernels(network, x), weights)
    _, expected, _ = megengine_gradients(network, x, weights, "frozen")
    assert not errors_above(5e-3, expected, gradients)  # ReLU ties


# Processors on which no weights are worth transforming, and all.
SPEEDS = {"direct": CpuSpeed(1e15, 1e6), "Winograd": CpuSpeed(1e9, 1e15)}
FAULTS = {
    "direct": {"weight_gradient": "x_offsets", "relu_gradient": "y", "igemm": "tap_offsets"},
    "Winograd": {
        "weight_gradient": "gradient_group_offsets",
        "gradient_transform_2": "tile_offsets",
        "gradient_transform_2s2": "tile_offsets",
        "kernel_transform_2": "x",
    },
}


@functools.lru_cache(maxsize=None)
def deployed():
    return small(num_blocks=[1, 2, 1, 1], deploy=True)


def backward(algorithm, fault=None):
    """The gradients of a network's kernels, with an argument of these calls of the backward pass changed."""
    network = deployed()
    x = images(2, 3, 16)
    layers = [TrainingLayer(layer) for layer in extract_weights(network).layers]
    trunk = KernelTrunk(layers, x.shape, frozen=0, threads=1, speed=SPEEDS[algorithm])
    if fault is not None:
        kernel, field = fault
        plan = trunk._training.plan
        calls = plan.calls[trunk._training.forward[-1].stop :]
        place = ALL_FIELDS[kernel].index(field)
        for call in [call for call in calls if call.kernel == kernel]:
            if field.endswith("offsets"):
                table = next(array for array in plan.arrays if array.ctypes.data == call.arguments[place])
                table[-1] = table[0]
            else:
                call.arguments[place] += 64
    trunk.forward(x, layers)
    return [part.kernel for part in trunk.backward(loss_weights(network, 2)).values()]


@pytest.mark.parametrize(("algorithm", "kernel"), [(name, kernel) for name in FAULTS for kernel in FAULTS[name]])
def test_a_wrong_offset_in_a_backward_kernel_changes_the_gradients(algorithm, kernel):
    expected, actual = backward("direct"), backward(algorithm, (kernel, FAULTS[algorithm][kernel]))
    distances = [np.abs(a - b).max() / np.abs(a).max() for a, b in zip(expected, actual)]
    assert max(distances) > 100 * BOUND


def test_a_plan_that_would_leave_its_arrays_is_refused():
    layers = [TrainingLayer(layer) for layer in extract_weights(deployed()).layers]
    trunk = KernelTrunk(layers, (2, 3, 16, 16), frozen=0, threads=1, speed=SPEEDS["Winograd"])
    plan = trunk._training.plan
    check_bounds(plan)
    for index in range(trunk._training.forward[-1].stop, len(plan.calls)):
        call, fields = plan.calls[index], ALL_FIELDS[plan.calls[index].kernel]
        name = next(name for name in ("out", "sums", "c") if name in fields)
        call.arguments[fields.index(name)] += 1 << 40
        with pytest.raises(BoundsError, match=call.kernel):
            used_spans(plan, index, Memory(plan.arrays))
        call.arguments[fields.index(name)] -= 1 << 40


@pytest.mark.parametrize("algorithm", SPEEDS)
def test_both_algorithms_give_the_same_gradients(algorithm):
    distances = [np.abs(a - b).max() / np.abs(a).max() for a, b in zip(backward("direct"), backward(algorithm))]
    assert max(distances) < 1e-5
