"""Plans of small networks, and the comparison with NumPy, for several test modules."""

from __future__ import annotations

from dataclasses import replace

from repvgg_zoo.inference.jit.all_kernels import ALL_FIELDS
from repvgg_zoo.inference.jit.engine import host_integer_config
from repvgg_zoo.inference.jit.integer_winograd import INTEGER_F2, INTEGER_F2_STRIDE_2, INTEGER_F4
from repvgg_zoo.inference.kernel_runner import KernelRunner
from repvgg_zoo.inference.quantized_lowering import lower_quantized
from repvgg_zoo.inference.reference import check_plan

CONFIG = host_integer_config()
HAS_AMX = CONFIG.integer_dot == "tdpbusd"
HAS_VNNI = HAS_AMX or CONFIG.integer_dot == "vpdpbusd"  # no processor has AMX without VNNI
# All kinds of kernels work on every processor.
AMX = CONFIG if HAS_AMX else replace(CONFIG, integer_dot="plain_tiles")
U8 = replace(CONFIG, integer_dot="vpdpbusd" if HAS_VNNI else "plain_u8")
S16 = replace(CONFIG, integer_dot="pmaddwd") if HAS_VNNI else CONFIG
CONFIGS = {"amx": AMX, "u8": U8}
# By name: the transform for each stride.
ALGORITHMS = {"amx": {}, "u8": {}, "igemm": {}, "F2": {1: INTEGER_F2, 2: INTEGER_F2_STRIDE_2}, "F4": {1: INTEGER_F4}}


def lowered(algorithm, weights, shape):
    transforms = ALGORITHMS[algorithm]
    return lower_quantized(
        weights,
        shape,
        threads=2,
        config=CONFIGS.get(algorithm, S16),
        select_algorithm=lambda layer, out, exact: (
            transforms.get(layer.stride) if transforms.get(layer.stride) in exact else None
        ),
    )


def check(plan, weights):
    runner = KernelRunner(plan, 2)
    try:
        return check_plan(plan, weights, runner.run_calls)
    finally:
        runner.close()


def array_at(plan, call, field):
    """The array that an argument of a call points to the beginning of."""
    address = call.arguments[ALL_FIELDS[call.kernel].index(field)]
    return next(array for array in plan.arrays if array.ctypes.data == address).reshape(-1)
