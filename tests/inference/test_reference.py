"""check_plan finds every planted fault, and needs no MegEngine.

A fault is one wrong value in anything that lowering or the code generator made: packed weights, biases, tables of
offsets, counts, flags, Winograd's matrices. Each is planted in every call that has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.errors import EquivalenceError
from repvgg_zoo.inference import kernel_runner
from repvgg_zoo.inference.jit import kernels
from repvgg_zoo.inference.jit.engine import host_microkernel_config, load_kernels
from repvgg_zoo.inference.jit.kernels import FIELDS, NR, UNROLLED
from repvgg_zoo.inference.jit.winograd import WINOGRAD_TRANSFORMS
from repvgg_zoo.inference.kernel_runner import KernelRunner
from repvgg_zoo.inference.lowering import lower
from repvgg_zoo.inference.reference import MAX_ERROR, probe_images
from tests.inference.plans import array_at, check
from tests.inference.reference import Layer, random_weights

ROOT = Path(__file__).parents[2]
SHAPE = (3, 3, 22, 26)  # three images, and sides that are multiples of no tile
F2, F4, F2_STRIDE_2 = WINOGRAD_TRANSFORMS
# By the stride of the convolution.
ALGORITHMS = {"igemm": {}, "F2": {1: F2, 2: F2_STRIDE_2}, "F4": {1: F4}}

# Every kind of layer.
WEIGHTS = random_weights(
    3,
    [
        Layer(24, stride=2),
        Layer(24, se="before"),
        Layer(32),
        Layer(32, groups=2),
        Layer(48, se="after", feature=True),
        Layer(32, stride=2),
    ],
    classes=10,
)


def lowered(algorithm, weights=WEIGHTS):
    return lower(
        weights,
        SHAPE,
        threads=2,
        config=host_microkernel_config(),
        select_algorithm=lambda layer, out: ALGORITHMS[algorithm].get(layer.stride),
    )


def change_a_value(plan, call, field, random):
    """Change a value of packed weights or of a bias, which is not of the padding."""
    values = array_at(plan, call, field)
    index = random.choice(np.flatnonzero(values))
    values[index] += 1


def swap_two_offsets(plan, call, field, random):
    values = array_at(plan, call, field)
    first, second = random.choice(len(values), 2, replace=False)
    values[[first, second]] = values[[second, first]]


def lower_the_last(plan, call, field, random):
    array_at(plan, call, field)[-1] -= 1


def lower_one(plan, call, field, random):
    """Make a tile smaller that was whole, or leave out a tap."""
    values = array_at(plan, call, field)
    values[random.choice(len(values))] -= 1


def flip(plan, call, field, random):
    call.arguments[FIELDS[call.kernel].index(field)] ^= 1


def less(amount):
    """Lower a count, if something remains: machine code does not expect a count of zero."""

    def plant(plan, call, field, random):
        index = FIELDS[call.kernel].index(field)
        if call.arguments[index] <= amount:
            raise ValueError("nothing would remain")
        call.arguments[index] -= amount

    plant.__name__ = f"{amount} less"
    return plant


# By kernel and field; an igemm within Winograd has neither a bias nor ReLU.
FAULTS = [
    ("igemm", "w", change_a_value),
    ("igemm", "bias", change_a_value),
    ("igemm", "a_offsets", swap_two_offsets),
    ("igemm", "c_offsets", swap_two_offsets),
    ("igemm", "ks", lower_one),
    ("igemm", "a_group_offsets", swap_two_offsets),
    ("igemm", "w_group_offsets", swap_two_offsets),
    ("igemm", "c_group_offsets", swap_two_offsets),
    ("igemm", "tap_offsets", swap_two_offsets),
    ("igemm", "m_tiles", lower_the_last),
    ("igemm", "panels", less(1)),
    ("igemm", "kc", less(UNROLLED)),
    ("igemm", "relu", flip),
    ("input_transform", "tile_offsets", swap_two_offsets),
    ("input_transform", "tiles", less(1)),
    ("input_transform", "channels", less(NR)),
    ("output_transform", "tile_offsets", swap_two_offsets),
    ("output_transform", "tiles", less(1)),
    ("output_transform", "bias", change_a_value),
    ("output_transform", "heights", lower_one),
    ("output_transform", "widths", lower_one),
    ("output_transform", "relu", flip),
    ("nchw_to_nhwc", "channels", less(1)),
    ("nchw_to_nhwc", "images", less(1)),
    ("nchw_to_nhwc", "height", less(1)),
    ("global_avg_pool", "width", less(1)),
    ("global_avg_pool", "channels", less(NR)),
    ("sigmoid", "count", less(2 * NR)),
    ("channel_scale", "images", less(1)),
    ("channel_scale", "height", less(1)),
    ("channel_scale", "relu", flip),
]


def snapshot(plan, call):
    return [call.arguments.tolist(), *(array.tobytes() for array in plan.arrays)]


def is_refused(plan):
    try:
        check(plan, WEIGHTS)
    except EquivalenceError:
        return True
    return False


def outputs(plan):
    runner = KernelRunner(plan, 2)
    try:
        return runner(probe_images(SHAPE))
    finally:
        runner.close()


def is_harmless(plan, algorithm):
    """Whether the outputs for these images are right, as where a value belongs to a channel that ReLU sets to zero."""
    pairs = zip(outputs(plan), outputs(lowered(algorithm)))
    return all(np.abs(one - other).max() <= MAX_ERROR * np.abs(other).max() for one, other in pairs)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_right_plan_passes_with_an_error_of_rounding_only(algorithm):
    assert 0 < check(lowered(algorithm), WEIGHTS) < MAX_ERROR / 5


@pytest.mark.parametrize(("kernel", "field", "plant"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_fault_that_changes_the_outputs_is_found_in_every_call(kernel, field, plant):
    planted, missed = 0, []
    for algorithm in ALGORITHMS:
        for index, call in enumerate(lowered(algorithm).calls):
            if not call.kernel.startswith(kernel):
                continue
            plan = lowered(algorithm)
            call = plan.calls[index]
            before = snapshot(plan, call)
            try:
                plant(plan, call, field, np.random.RandomState(index))
            except ValueError:  # nothing to change: one group, or a bias of zeros
                continue
            if before == snapshot(plan, call):
                continue
            if not is_refused(plan) and not is_harmless(plan, algorithm):
                missed.append((algorithm, index, call.kernel))
            planted += 1
    assert planted
    assert missed == []


def changed(transform, matrix):
    """The transform with one wrong element."""
    rows = [list(row) for row in getattr(transform, matrix)]
    rows[1][1] += 0.01
    return replace(transform, **{matrix: tuple(map(tuple, rows))})


@pytest.mark.parametrize("matrix", ["BT", "G", "AT"])
@pytest.mark.parametrize("right", WINOGRAD_TRANSFORMS, ids=lambda transform: transform.name)
def test_a_wrong_element_of_winograds_matrices_is_found(right, matrix, monkeypatch):
    wrong = changed(right, matrix)
    monkeypatch.setitem(ALGORITHMS, "wrong", {right.stride: wrong})
    if matrix != "G":  # which the generated code does not use
        transforms = tuple(wrong if transform is right else transform for transform in WINOGRAD_TRANSFORMS)
        monkeypatch.setattr(kernels, "WINOGRAD_TRANSFORMS", transforms)
        monkeypatch.setattr(kernel_runner, "jit_compile", load_kernels)
    weights = random_weights(3, [Layer(16), Layer(16, stride=right.stride)], classes=4)
    with pytest.raises(EquivalenceError):
        check(lowered("wrong", weights), weights)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("part", ["kernel", "bias", "head"])
def test_weights_whose_outputs_are_not_finite_are_refused(part, value):
    weights = random_weights(3, [Layer(16, stride=2), Layer(16)], classes=4)
    array = weights.head.bias if part == "head" else getattr(weights.layers[1], part)
    array[...] = value
    if (part, value) == ("head", 3e38):
        assert check(lowered("F2", weights), weights) < MAX_ERROR  # large, but finite
        return
    with pytest.raises(EquivalenceError) as caught:
        check(lowered("F2", weights), weights)
    assert caught.value.hint


def test_a_network_of_zeros_passes():
    weights = random_weights(3, [Layer(16, stride=2), Layer(16)], classes=4)
    for layer in weights.layers:
        layer.kernel[...] = layer.bias[...] = 0
    assert check(lowered("igemm", weights), weights) < MAX_ERROR


def test_no_two_probe_images_are_alike():
    images = probe_images((5, 3, 4, 4))
    assert images.shape == (5, 3, 4, 4)
    assert images.dtype == np.float32
    assert len({image.tobytes() for image in images}) == 5


PROGRAM = """
import json, sys
sys.modules["megengine"] = None
import numpy as np
import repvgg_zoo

with repvgg_zoo.compile("RepVGG_N0") as compiled:
    logits = compiled(np.random.RandomState(3).standard_normal(compiled.shape).astype(np.float32))
print(json.dumps({"backend": compiled.backend, "error": compiled.error, "logits": logits.tolist()}))
"""


def test_a_named_network_is_compiled_where_megengine_cannot_be_imported(tmp_path):
    """And it is the network that MegEngine computes, where there is one."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "REPVGG_ZOO_HOME": str(tmp_path)}
    child = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=180)
    answer = json.loads(child.stdout)
    assert answer["backend"] == "kernels"
    assert 0 < answer["error"] < MAX_ERROR
    x = np.random.RandomState(3).standard_normal((1, 1, 32, 32)).astype(np.float32)
    tensor = pytest.importorskip("megengine").Tensor
    expected = repvgg_zoo.create("RepVGG_N0", pretrained=True)(tensor(x)).numpy()
    assert np.abs(expected - answer["logits"]).max() < 1e-5 * np.abs(expected).max()
