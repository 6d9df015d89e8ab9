"""check_bounds: plans whose calls would touch anything outside of their arrays are refused, and all others are not."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from repvgg_zoo.inference.bounds import BoundsError, Memory, check_bounds, used_spans
from repvgg_zoo.inference.jit.engine import host_microkernel_config, jit_compile
from repvgg_zoo.inference.jit.kernels import AVX2, AVX512, FIELDS
from repvgg_zoo.inference.jit.winograd import WINOGRAD_TRANSFORMS
from repvgg_zoo.inference.lowering import lower
from repvgg_zoo.inference.plan import KernelCall
from tests.inference.reference import Layer, random_weights

# Activations of 8x8 pixels in storages of 10x10 pixels of 32 floats, whose border is read but not written.
SHAPE = (2, 3, 8, 8)
LAYERS = [Layer(32), Layer(32, groups=2, se="before"), Layer(32, 2)]
PIXEL, ROW = 32, 320
F2, F4, F2_STRIDE_2 = WINOGRAD_TRANSFORMS
ALGORITHMS = {"igemm": {}, "F2": {1: F2, 2: F2_STRIDE_2}, "F4": {1: F4}}  # by the stride of the convolution


def plan_with(algorithm, config=None):
    return lower(
        random_weights(3, LAYERS, 10),
        SHAPE,
        threads=1,
        config=config or host_microkernel_config(),
        select_algorithm=lambda layer, out: ALGORITHMS[algorithm].get(layer.stride),
    )


def array_at(plan, address):
    return next(array for array in plan.arrays if array.ctypes.data == address)


def changed(plan, kernel, field, change, occurrence=0):
    """The plan with another argument of a call: a number, an address, or, for a table, other integers."""
    index = [index for index, call in enumerate(plan.calls) if call.kernel == kernel][occurrence]
    arguments = plan.calls[index].arguments.copy()
    place = FIELDS[kernel].index(field)
    arrays = list(plan.arrays)
    if callable(change):
        table = np.array(array_at(plan, arguments[place]))
        change(table)
        arrays.append(table)
        arguments[place] = table.ctypes.data
    else:
        arguments[place] += change
    calls = list(plan.calls)
    calls[index] = KernelCall(kernel, arguments)
    return replace(plan, calls=calls, arrays=arrays)


def add(place, value):
    def change(table):
        table[place] += value

    return change


def widen(table):
    """Leave out the second tile's start, so that the first tile has twice as many rows."""
    table[1] = table[2]


# The grouped convolution is the second igemm of a plan without Winograd. Numbers are added to the argument: to
# addresses as bytes, of which a float has four.
CONVOLUTION = ("igemm", "igemm", 1)
MUTATIONS = {
    "input one float further": (*CONVOLUTION, "a", 4),
    "input one float before": (*CONVOLUTION, "a", -4),
    "input between two floats": (*CONVOLUTION, "a", 2),
    "weights one float further": (*CONVOLUTION, "w", 4),
    "weights one float before": (*CONVOLUTION, "w", -4),
    "bias one float further": (*CONVOLUTION, "bias", 4),
    "output a row and two pixels further": (*CONVOLUTION, "c", 4 * (ROW + 2 * PIXEL)),
    "output a row and two pixels before": (*CONVOLUTION, "c", -4 * (ROW + 2 * PIXEL)),
    "an address of nothing": (*CONVOLUTION, "c", -(1 << 40)),
    "an address beyond everything": (*CONVOLUTION, "c", 1 << 60),
    "a few channels more": (*CONVOLUTION, "kc", 4),
    "channels that are not whole steps": (*CONVOLUTION, "kc", -1),
    "no channels": (*CONVOLUTION, "kc", -16),
    "a tap more": (*CONVOLUTION, "ks", add(-1, 1)),
    "no taps": (*CONVOLUTION, "ks", add(0, -9)),
    "a group's weights further": (*CONVOLUTION, "w_group_offsets", add(-1, 1)),
    "a group's weights before": (*CONVOLUTION, "w_group_offsets", add(0, -1)),
    "a group more": (*CONVOLUTION, "groups", 1),
    "no groups": (*CONVOLUTION, "groups", -2),
    "a panel more": (*CONVOLUTION, "panels", 1),
    "a block of rows more": (*CONVOLUTION, "m_blocks", 1),
    "biases farther apart": (*CONVOLUTION, "bias_stride", 1),
    "a tap a float further": (*CONVOLUTION, "tap_offsets", add(-1, 1)),
    "a tap before the image": (*CONVOLUTION, "tap_offsets", add(0, -1)),
    "a row a pixel further": (*CONVOLUTION, "a_offsets", add(-1, PIXEL)),
    "a row before the image": (*CONVOLUTION, "a_offsets", add(0, -1)),
    "a row of output two rows further": (*CONVOLUTION, "c_offsets", add(-1, 2 * ROW)),
    "a row of output two rows before": (*CONVOLUTION, "c_offsets", add(0, -2 * ROW)),
    "a group's input further": (*CONVOLUTION, "a_group_offsets", add(-1, 1)),
    "a group's output further": (*CONVOLUTION, "c_group_offsets", add(-1, 2 * ROW)),
    "a tile of more rows than registers": (*CONVOLUTION, "m_tiles", widen),
    "a row more than there are": (*CONVOLUTION, "m_tiles", add(-1, 1)),
    "tiles in no order": (*CONVOLUTION, "m_tiles", add(1, 100)),
    "tiles that begin before the first row": (*CONVOLUTION, "m_tiles", add(0, -1)),
    "a tile more than there are": (*CONVOLUTION, "block_tiles", add(-1, 1)),
    "blocks in no order": (*CONVOLUTION, "block_tiles", add(1, 1000)),
    "a table that is not one of integers": (*CONVOLUTION, "a_offsets", 4),
    "tiles that are read further": ("F4", "input_transform_4", 0, "x", 4),
    "tiles that are read before": ("F4", "input_transform_4", 0, "x", -4),
    "a tile of input further": ("F4", "input_transform_4", 0, "tile_offsets", add(-1, 1)),
    "rows of input farther apart": ("F4", "input_transform_4", 0, "row_stride", 1),
    "pixels of input farther apart": ("F4", "input_transform_4", 0, "pixel_stride", 1),
    "rows of input in reverse": ("F4", "input_transform_4", 0, "row_stride", -2 * ROW),
    "a tile more to transform": ("F4", "input_transform_4", 0, "tiles", 1),
    "more channels to transform": ("F4", "input_transform_4", 0, "channels", 16),
    "channels that are not whole vectors": ("F4", "input_transform_4", 0, "channels", 4),
    "elements farther apart": ("F4", "input_transform_4", 0, "element_stride", 1),
    "elements before one another": ("F4", "input_transform_4", 0, "element_stride", -100000),
    "V further": ("F4", "input_transform_4", 0, "out", 4),
    "M further": ("F2", "output_transform_2", 0, "x", 4),
    "elements of M farther apart": ("F2", "output_transform_2", 0, "element_stride", 1),
    "a tile more to write": ("F2", "output_transform_2", 0, "tiles", 1),
    "more channels to write": ("F2", "output_transform_2", 0, "channels", 16),
    "the bias of a transform further": ("F2", "output_transform_2", 0, "bias", 4),
    "tiles that are written further": ("F2", "output_transform_2", 0, "out", 4 * (ROW + 2 * PIXEL)),
    "a tile that is written before": ("F2", "output_transform_2", 0, "tile_offsets", add(0, -2 * ROW)),
    "a tile without rows": ("F2", "output_transform_2", 0, "heights", add(-1, -2)),
    "a tile of many rows and no columns": ("F2", "output_transform_2", 0, "widths", add(0, -8)),
    "rows of output farther apart": ("F2", "output_transform_2", 0, "row_stride", 2 * ROW),
    "rows of output in reverse": ("F2", "output_transform_2", 0, "row_stride", -2 * ROW),
    "strides that overflow": ("F2", "output_transform_2", 0, "row_stride", 1 << 62),
    "tiles of stride 2 that are read further": ("F2", "input_transform_2s2", 0, "x", 4 * (ROW + 2 * PIXEL)),
    "a tile of stride 2 that is read before": ("F2", "input_transform_2s2", 0, "tile_offsets", add(0, -1)),
    "sums of more products": ("F2", "igemm", 4, "ks", add(1, 1000)),
    "an image more": ("igemm", "nchw_to_nhwc", 0, "images", 1),
    "a row of pixels more": ("igemm", "nchw_to_nhwc", 0, "height", 1),
    "no pixels in a row": ("igemm", "nchw_to_nhwc", 0, "width", -8),
    "a channel more": ("igemm", "nchw_to_nhwc", 0, "channels", 1),
    "images farther apart": ("igemm", "nchw_to_nhwc", 0, "image_stride", 4 * 10 * 10),
    "pixels farther apart": ("igemm", "nchw_to_nhwc", 0, "pixel_stride", 8),
    "images that are written further": ("igemm", "nchw_to_nhwc", 0, "out", 4 * 4 * 13),
    "two rows more to average": ("igemm", "global_avg_pool", 0, "height", 2),
    "more channels to average": ("igemm", "global_avg_pool", 0, "channels", 16),
    "an image more to average": ("igemm", "global_avg_pool", 0, "images", 1),
    "averages further": ("igemm", "global_avg_pool", 0, "out", 4),
    "a value more": ("igemm", "sigmoid", 0, "count", 1),
    "no values": ("igemm", "sigmoid", 0, "count", -64),
    "two rows more to scale": ("igemm", "channel_scale", 0, "height", 2),
    "scales further": ("igemm", "channel_scale", 0, "scale", 4),
    "more channels to scale": ("igemm", "channel_scale", 0, "channels", 16),
}


@pytest.mark.parametrize("config", [AVX2, AVX512], ids=["AVX2", "AVX512"])
@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_call_that_would_leave_its_arrays_is_refused(kind, config):
    algorithm, kernel, occurrence, field, change = MUTATIONS[kind]
    plan = plan_with(algorithm, config)
    check_bounds(plan)
    with pytest.raises(BoundsError, match=kernel):
        check_bounds(changed(plan, kernel, field, change, occurrence))


@pytest.mark.parametrize(
    ("algorithm", "kernel", "field"),
    [
        ("F4", "input_transform_4", "out"),
        ("F4", "output_transform_4", "x"),
        ("igemm", "igemm", "w"),
        ("igemm", "igemm", "bias"),
        ("igemm", "igemm", "a"),
        ("igemm", "igemm", "tap_offsets"),
        ("igemm", "igemm", "m_tiles"),
        ("igemm", "global_avg_pool", "out"),
        ("igemm", "channel_scale", "scale"),
        ("igemm", "sigmoid", "x"),
    ],
)
def test_an_array_that_is_one_element_too_small_is_refused(algorithm, kernel, field):
    plan = plan_with(algorithm)
    call = next(call for call in plan.calls if call.kernel == kernel)
    address = call.arguments[FIELDS[kernel].index(field)]
    arrays = [array.reshape(-1)[:-1] if array.ctypes.data == address else array for array in plan.arrays]
    with pytest.raises(BoundsError, match="uses the elements"):
        check_bounds(replace(plan, arrays=arrays))


def test_other_images_than_the_plans_are_refused():
    with pytest.raises(BoundsError, match="images"):
        check_bounds(replace(plan_with("igemm"), input_shape=(2, 3, 8, 7)))


# The test below in a process of its own, which ends where a kernel touches a guard page.
CHILD = """
import sys
from tests.inference.test_bounds import run_between_guard_pages
run_between_guard_pages(*sys.argv[1:])
print("done")
"""
PAGE = mmap.PAGESIZE


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_machine_code_touches_nothing_outside_of_the_checked_ranges(algorithm, side):
    command = [sys.executable, "-c", CHILD, algorithm, side]
    child = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert (child.returncode, child.stdout) == (0, "done\n"), child.stderr


def run_between_guard_pages(algorithm, side):
    """Run each call on floats that begin or end right beside a page that may not be touched."""
    plan = plan_with(algorithm)
    code, memory = jit_compile(plan.config), Memory(plan.arrays)
    for index, call in enumerate(plan.calls):
        arguments, mapped = call.arguments.copy(), []
        for field, (first, last) in used_spans(plan, index, memory).items():
            region, start = guarded(4 * (last - first + 1), side)
            mapped.append(region)
            arguments[FIELDS[call.kernel].index(field)] = start - 4 * first
        kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(code.addresses[call.kernel])
        kernel(arguments.ctypes.data, 0, 1)


def guarded(size, side):
    """Zeros between two pages that may not be touched, and their address, beside one of the two."""
    room = -(-size // PAGE) * PAGE
    region = mmap.mmap(-1, room + 2 * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(region))
    libc = ctypes.CDLL(None, use_errno=True)
    for page in (base, base + PAGE + room):
        assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0
    return region, base + PAGE if side == "before" else base + PAGE + room - size
