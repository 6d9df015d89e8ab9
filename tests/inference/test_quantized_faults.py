"""Faults of integer kernels are found where they run, and arguments that lead out of an array are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from repvgg_zoo.errors import EquivalenceError
from repvgg_zoo.inference.bounds import BoundsError, check_bounds
from repvgg_zoo.inference.jit.all_kernels import ALL_FIELDS
from repvgg_zoo.inference.jit.kernels import NR, UNROLLED
from repvgg_zoo.inference.kernel_runner import KernelRunner
from repvgg_zoo.inference.reference import probe_images
from tests.inference.quantized_reference import quantized_weights
from tests.inference.reference import Layer

from .plans import array_at, check, lowered

# Planted faults ---------------------------------------------------------------------------------------------------

FAULTY = quantized_weights(
    3,
    [
        Layer(24, stride=2),
        Layer(24),
        Layer(32),
        Layer(32, groups=2),
        Layer(32, se="before"),
        Layer(32, stride=2),
    ],
    classes=10,
)
FAULTY_SHAPE = (2, 3, 14, 17)


def change_by(amount):
    def plant(plan, call, field, random):
        values = array_at(plan, call, field)
        if not values.any():
            raise ValueError("all zeros: this call has none")
        index = random.choice(np.flatnonzero(values))
        values[index] = values[index] * 1.1 if amount is None else values[index] + amount

    return plant


def swap_two(plan, call, field, random):
    values = array_at(plan, call, field)
    first, second = random.choice(len(values), 2, replace=False)
    values[[first, second]] = values[[second, first]]


def less(amount):
    def plant(plan, call, field, random):
        index = ALL_FIELDS[call.kernel].index(field)
        if call.arguments[index] <= amount:
            raise ValueError("nothing would remain")
        call.arguments[index] -= amount

    return plant


def flip(plan, call, field, random):
    call.arguments[ALL_FIELDS[call.kernel].index(field)] ^= 1


FAULTS = {
    "a weight of one more": ("conv", "w", change_by(1)),
    "a transformed weight of 30 more": ("igemm_s16", "w", change_by(30)),
    "two taps exchanged": ("conv", "tap_offsets", swap_two),
    "two rows exchanged": ("conv", "a_offsets", swap_two),
    "two rows of output exchanged": ("conv", "c_offsets", swap_two),
    "two groups exchanged": ("conv", "a_group_offsets", swap_two),
    "two elements exchanged": ("igemm_s16", "c_group_offsets", swap_two),
    "fewer channels": ("conv", "kc", less(4 * UNROLLED)),
    "fewer panels": ("conv", "panels", less(1)),
    "a scale of 1.1 times as much": ("conv", "scale", change_by(None)),
    "a center tap shifted by one more": ("conv", "center_shift", change_by(1)),
    "an identity of 1.1 times as much": ("conv", "identity", change_by(None)),
    "a bias of one step more": ("conv", "bias", change_by(1)),
    "two pixels of the identity exchanged": ("conv", "center_offsets", swap_two),
    "no ReLU, or one more": ("conv", "relu", flip),
    "tiles of input exchanged": ("input_transform_s16", "tile_offsets", swap_two),
    "a tile of input less": ("input_transform_s16", "tiles", less(1)),
    "fewer channels to transform": ("input_transform_s16", "channels", less(NR)),
    "tiles of output exchanged": ("output_transform_s16", "tile_offsets", swap_two),
    "a tile of output less": ("output_transform_s16", "tiles", less(1)),
    "another scale of a transform": ("output_transform_s16", "scale", change_by(None)),
    "another identity of a transform": ("output_transform_s16", "identity", change_by(None)),
    "another bias of a transform": ("output_transform_s16", "bias", change_by(1)),
    "centers of tiles exchanged": ("output_transform_s16", "center_offsets", swap_two),
    "a row of the identity less far": ("output_transform_s16", "center_row_stride", less(1)),
    "a smaller tile": ("output_transform_s16", "heights", change_by(-1)),
    "another factor before rounding": ("quantize", "multiplier", change_by(None)),
    "fewer rows to round": ("quantize", "height", less(1)),
    "fewer images to round": ("quantize", "images", less(1)),
}


def snapshot(plan, call):
    return [call.arguments.tolist(), *(array.tobytes() for array in plan.arrays)]


def layer_outputs(plan):
    """The outputs of the layers, one after another, since a later one may use the same memory."""
    runner = KernelRunner(plan, 2)
    outputs, x, done = [], probe_images(FAULTY_SHAPE), 0
    for calls in plan.layers:
        runner.run_calls(x, done, calls.stop)
        done = calls.stop
        outputs.append(calls.out.storage.copy())
    runner.close()
    return outputs


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_that_changes_a_layer_is_found_in_every_call(fault):
    kernel, field, plant = FAULTS[fault]
    planted, missed = 0, []
    for algorithm in ["amx", "u8", "igemm"] if kernel in ("conv", "quantize") else ["F2", "F4"]:
        for index, call in enumerate(lowered(algorithm, FAULTY, FAULTY_SHAPE).calls):
            if not call.kernel.startswith(kernel):
                continue
            plan = lowered(algorithm, FAULTY, FAULTY_SHAPE)
            call = plan.calls[index]
            before = snapshot(plan, call)
            try:
                plant(plan, call, field, np.random.RandomState(index))
            except ValueError:
                continue
            if snapshot(plan, call) == before:
                continue
            planted += 1
            try:
                check(plan, FAULTY)
            except EquivalenceError:
                continue
            right = layer_outputs(lowered(algorithm, FAULTY, FAULTY_SHAPE))
            if not all(np.array_equal(one, other) for one, other in zip(layer_outputs(plan), right)):
                missed.append((algorithm, index, call.kernel))
    assert planted
    assert missed == []


# Bounds -----------------------------------------------------------------------------------------------------------

BOUNDS_SHAPE = (2, 3, 8, 8)
ONE_ELEMENT_LESS = {
    "amx": {
        "conv_u8_amx": (
            *("a", "w", "c", "scale", "identity", "bias", "tap_offsets", "center_offsets", "center_shift", "m_tiles"),
            *("c_offsets", "tile_config"),
        ),
    },
    "u8": {
        "conv_u8": (
            *("a", "w", "c", "scale", "identity", "bias", "tap_offsets", "center_offsets", "center_shift", "m_tiles"),
        ),
        "quantize_u8": ("x", "out", "multiplier"),
    },
    "igemm": {"conv_s16": ("a", "w", "c", "scale", "identity", "bias", "tap_offsets", "center_offsets", "m_tiles")},
    "F4": {
        "input_transform_s16_4": ("x", "out", "tile_offsets"),
        "igemm_s16": ("a", "w", "c"),
        "output_transform_s16_4": ("x", "out", "scale", "identity", "bias", "heights", "center_offsets"),
        "quantize_s16": ("x", "out", "multiplier"),
    },
}
SHORTENED = [
    (algorithm, kernel, field)
    for algorithm, kernels in ONE_ELEMENT_LESS.items()
    for kernel, fields in kernels.items()
    for field in fields
]
TOO_MUCH = [
    ("amx", "conv_u8_amx", "kc", 16),
    ("amx", "conv_u8_amx", "kc", 4),
    ("amx", "conv_u8_amx", "center_shift", 4),
    ("amx", "conv_u8_amx", "a", -1),
    ("amx", "conv_u8_amx", "tile_rows", 1),
    ("amx", "conv_u8_amx", "tile_rows", 100),
    ("amx", "conv_u8_amx", "k_step", 4),
    ("amx", "conv_u8_amx", "k_step", -8),
    ("amx", "conv_u8_amx", "pixel_stride", 16),
    ("u8", "conv_u8", "kc", 4 * UNROLLED),
    ("u8", "conv_u8", "kc", 4),
    ("u8", "conv_u8", "groups", 1),
    ("u8", "conv_u8", "panels", 1),
    ("u8", "conv_u8", "center", -1),
    ("u8", "conv_u8", "center_shift", 4),
    ("u8", "conv_u8", "a", -1),
    ("u8", "conv_u8", "quantize", 1),
    ("igemm", "conv_s16", "kc", 2 * UNROLLED),
    ("igemm", "conv_s16", "kc", 2),
    ("igemm", "conv_s16", "groups", 1),
    ("igemm", "conv_s16", "panels", 1),
    ("igemm", "conv_s16", "center", -2),
    ("igemm", "conv_s16", "a", 1),
    ("igemm", "conv_s16", "quantize", 1),
    ("F4", "input_transform_s16_4", "row_stride", 1 << 62),
    ("F4", "input_transform_s16_4", "channels", 8),
    ("F4", "output_transform_s16_4", "tiles", 1),
    ("F4", "output_transform_s16_4", "center_row_stride", 10000),
    ("F4", "output_transform_s16_4", "center_row_stride", -10000),
    ("F4", "quantize_s16", "height", 2),
]


def bounded(algorithm):
    """One quantized layer without borders to spare: what is read or written further is outside of an array."""
    weights = quantized_weights(3, [Layer(16), Layer(16)])
    return lowered(algorithm, weights, BOUNDS_SHAPE)


@pytest.mark.parametrize(("algorithm", "kernel", "field"), SHORTENED)
def test_an_array_that_is_shorter_than_what_a_kernel_uses_is_refused(algorithm, kernel, field):
    plan = bounded(algorithm)
    call = next(call for call in plan.calls if call.kernel == kernel)
    address = call.arguments[ALL_FIELDS[kernel].index(field)]
    extents = [(array.ctypes.data, array.ctypes.data + array.nbytes, array) for array in plan.arrays]
    owner = next(array for start, stop, array in extents if start <= address < stop and array.flags.c_contiguous)
    last = (len(owner.reshape(-1)) - 1) if field in ("w", "scale", "multiplier", "tap_offsets") else owner.size // 2
    short = owner.reshape(-1)[:last]
    arrays = [short if np.shares_memory(array, owner) else array for array in plan.arrays]
    with pytest.raises(BoundsError, match=r"uses the elements|does not point"):
        check_bounds(replace(plan, arrays=arrays))


@pytest.mark.parametrize(("algorithm", "kernel", "field", "amount"), TOO_MUCH)
def test_an_argument_that_leads_out_of_an_array_is_refused(algorithm, kernel, field, amount):
    plan = bounded(algorithm)
    check_bounds(plan)
    call = next(call for call in plan.calls if call.kernel == kernel)
    call.arguments[ALL_FIELDS[kernel].index(field)] += amount
    with pytest.raises(BoundsError, match=kernel):
        check_bounds(plan)
