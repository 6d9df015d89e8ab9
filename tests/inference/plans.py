"""Plans of small networks, and the comparison with NumPy, for several test modules."""

from __future__ import annotations

from repvgg_zoo.inference.jit.all_kernels import ALL_FIELDS
from repvgg_zoo.inference.jit.engine import host_int16_config
from repvgg_zoo.inference.jit.integer_winograd import INTEGER_F2, INTEGER_F2_STRIDE_2, INTEGER_F4
from repvgg_zoo.inference.kernel_runner import KernelRunner
from repvgg_zoo.inference.quantized_lowering import lower_quantized
from repvgg_zoo.inference.reference import check_plan

CONFIG = host_int16_config()
# By name: the transform for each stride.
ALGORITHMS = {"igemm": {}, "F2": {1: INTEGER_F2, 2: INTEGER_F2_STRIDE_2}, "F4": {1: INTEGER_F4}}


def lowered(algorithm, weights, shape):
    transforms = ALGORITHMS[algorithm]
    return lower_quantized(
        weights,
        shape,
        threads=2,
        config=CONFIG,
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
