"""The kernels of the backward pass, emitted as LLVM IR; the data gradient is a convolution, which ``kernels.py`` has.

Kernels and activations are as in ``kernels.py``. A gradient has a storage of the same shape as its activation.
"""

from __future__ import annotations

import functools
import itertools
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from llvmlite import ir as llvm_ir

from .ir_builder import F32_PTR, I64, I64_PTR, KERNEL_TYPE, KernelBuilder
from .kernels import (
    INPUT_TRANSFORM,
    NR,
    Begin,
    MicrokernelConfig,
    decompose_work_item,
    dispatch_microkernel,
    emit_tile_transform,
)
from .winograd import WINOGRAD_TRANSFORMS, WinogradTransform

# For each group, out (groups, kc, panels * NR) is the sum of the outer products of all rows: kc floats of x, at
# x_offsets from the group's own offset, times panels * NR of the gradient. It is added to what out has if asked for.
WEIGHT_GRADIENT = (
    *("x", "x_offsets", "x_group_offsets", "gradient", "gradient_offsets", "gradient_group_offsets"),
    *("rows", "groups", "kc", "panels", "out", "accumulate"),
)
_SPATIAL = ("images", "height", "width", "channels", "image_stride", "row_stride")
# The gradient, in place: gradient * scale + shift, and 0 where y is not positive; the shift is added before that if
# ``after_relu``, else after it. Scale and shift are (N, channels), image_step floats from one image to the next. Sums
# (N * height, channels) are those of each row of the result.
RELU_GRADIENT = ("y", "gradient", *_SPATIAL, "scale", "shift", "image_step", "after_relu", "sums")
# Sums (N * height, channels) of gradient * y for each row.
GATE_GRADIENT = ("y", "gradient", *_SPATIAL, "sums")
# Sums (N * height, channels) of each row of x, and of squares, both less the first pixel: var is a difference of them.
ROW_MOMENTS = ("x", *_SPATIAL, "sums", "squares")
# out = x0 * c0 + x1 * c1 + x2 * c2 + x3 * c3 + shift, with ReLU if asked for; the factors are those of the channels.
AFFINE_SUM = ("out", *_SPATIAL, "x0", "x1", "x2", "x3", "c0", "c1", "c2", "c3", "shift", "relu")
# Of transformed kernels x (num_products, count) to those of the kernels, out (9, count).
KERNEL_TRANSFORM = ("x", "out", "count")
TRAINING_FIELDS: Dict[str, Tuple[str, ...]] = {
    "weight_gradient": WEIGHT_GRADIENT,
    "relu_gradient": RELU_GRADIENT,
    "gate_gradient": GATE_GRADIENT,
    "row_moments": ROW_MOMENTS,
    "affine_sum": AFFINE_SUM,
    **{f"gradient_transform_{transform.name}": INPUT_TRANSFORM for transform in WINOGRAD_TRANSFORMS},
    **{f"kernel_transform_{transform.name}": KERNEL_TRANSFORM for transform in WINOGRAD_TRANSFORMS},
}


def add_training_kernels(module: llvm_ir.Module, config: MicrokernelConfig) -> None:
    """Emit the kernels of the backward pass into a module."""
    begin = functools.partial(KernelBuilder, module, config.vector_width)
    microkernels = [
        [_emit_weight_microkernel(begin, mr, nr_panels) for mr in range(1, config.mr + 1)]
        for nr_panels in range(1, config.nr_panels + 1)
    ]
    _emit_weight_gradient(begin, microkernels)
    _emit_relu_gradient(begin)
    _emit_gate_gradient(begin)
    _emit_row_moments(begin)
    _emit_affine_sum(begin)
    for transform in WINOGRAD_TRANSFORMS:
        columns = tuple(zip(*transform.AT))
        elements = [(i, j) for i in range(len(columns)) for j in range(len(columns))]
        emit_tile_transform(begin, f"gradient_transform_{transform.name}", columns, elements)
        _emit_kernel_transform(begin, transform)


# The microkernel keeps MR x (NR * nr_panels) sums in registers:
#
#   acc = 0
#   for r in 0 .. rows-1:
#       for k in 0 .. MR-1:
#           acc[k] += x[x_offsets[r] + k] * gradient[gradient_offsets[r] ..]
#   out[k] = acc[k] + (accumulate ? out[k] : 0)
def _emit_weight_microkernel(begin: Begin, mr: int, nr_panels: int) -> llvm_ir.Function:
    types = [F32_PTR, I64_PTR, F32_PTR, I64_PTR, I64, F32_PTR, I64, I64]
    b = begin(f"weight_gradient_{mr}x{nr_panels}", llvm_ir.FunctionType(llvm_ir.VoidType(), types))
    b.function.linkage = "internal"
    x, x_offsets, gradient, gradient_offsets, rows, out, out_stride, accumulate = b.args
    vector_offsets = range(0, NR * nr_panels, b.vector_width)
    zero = b.constant(0.0)
    with b.loop(I64(0), rows, [zero] * (mr * len(vector_offsets))) as steps:
        x_row = b.offset(x, b.load_i64(x_offsets, steps.index))
        gradient_row = b.offset(gradient, b.load_i64(gradient_offsets, steps.index))
        vectors = [b.load_vector(b.offset(gradient_row, at)) for at in vector_offsets]
        sums = iter(steps.carried)
        steps.next = []
        for k in range(mr):
            value = b.broadcast(b.ir.load(b.offset(x_row, k)))
            steps.next += [b.fma(value, vector, next(sums)) for vector in vectors]
    is_added = b.ir.icmp_signed("!=", accumulate, I64(0))
    sums = iter(steps.carried)
    for k in range(mr):
        out_row = b.offset(out, b.ir.mul(out_stride, I64(k)))
        for at in vector_offsets:
            address = b.offset(out_row, at)
            previous = b.ir.select(is_added, b.load_vector(address), zero)
            b.store_vector(b.ir.fadd(next(sums), previous), address)
    b.ir.ret_void()
    return b.function


def _emit_weight_gradient(begin: Begin, microkernels: Sequence[Sequence[llvm_ir.Function]]) -> None:
    """Emit the loops around the microkernels; ``microkernels[i][j]`` is the one for i + 1 panels and j + 1 of kc."""
    b = begin("weight_gradient", KERNEL_TYPE, WEIGHT_GRADIENT)
    x, gradient, out = (b.arg_f32_ptr(name) for name in ("x", "gradient", "out"))
    x_offsets, gradient_offsets = b.arg_i64_ptr("x_offsets"), b.arg_i64_ptr("gradient_offsets")
    x_group_offsets, gradient_group_offsets = (
        b.arg_i64_ptr(name) for name in ("x_group_offsets", "gradient_group_offsets")
    )
    rows, groups, kc, panels = (b.arg_i64(name) for name in ("rows", "groups", "kc", "panels"))
    mr, nr_panels = I64(len(microkernels[0])), I64(len(microkernels))
    k_tiles, n_tiles = (
        b.ir.sdiv(b.ir.add(size, b.ir.sub(tile, I64(1))), tile) for size, tile in ((kc, mr), (panels, nr_panels))
    )
    out_stride = b.ir.mul(panels, I64(NR))
    with b.loop(*b.thread_range(b.ir.mul(b.ir.mul(groups, k_tiles), n_tiles))) as items:
        # Neighbors have the same columns of the gradient, which stay in the cache.
        outer, k_tile = b.divmod(items.index, k_tiles)
        item = decompose_work_item(b, outer, groups, n_tiles, panels, nr_panels)
        k = b.ir.mul(k_tile, mr)
        remaining = b.ir.sub(kc, k)
        count = b.ir.select(b.ir.icmp_signed("<", remaining, mr), remaining, mr)
        column = b.ir.mul(item.panel, I64(NR))
        row = b.ir.add(b.ir.mul(item.group, kc), k)
        dispatch_microkernel(
            b,
            microkernels,
            item.num_panels,
            count,
            [
                *(b.offset(x, b.load_i64(x_group_offsets, item.group), k), x_offsets),
                *(b.offset(gradient, b.load_i64(gradient_group_offsets, item.group), column), gradient_offsets),
                *(rows, b.offset(out, b.ir.mul(row, out_stride), column), out_stride, b.arg_i64("accumulate")),
            ],
        )
    b.ir.ret_void()


def _emit_relu_gradient(begin: Begin) -> None:
    b = begin("relu_gradient", KERNEL_TYPE, RELU_GRADIENT)
    scale, shift, image_step = b.arg_f32_ptr("scale"), b.arg_f32_ptr("shift"), b.arg_i64("image_step")
    after_relu = b.ir.icmp_signed("!=", b.arg_i64("after_relu"), I64(0))
    zero = b.constant(0.0)
    with _rows(b, "y", "gradient") as row:
        y, gradient = row.arrays
        step = b.ir.mul(row.image, image_step)
        with b.loop(I64(0), row.channels, step=b.vector_width) as vectors:
            factor, addend = (b.load_vector(b.offset(array, step, vectors.index)) for array in (scale, shift))
            inside, outside = b.ir.select(after_relu, addend, zero), b.ir.select(after_relu, zero, addend)
            with b.loop(I64(0), row.width, [zero]) as columns:
                pixel = b.ir.add(b.ir.mul(columns.index, row.channels), vectors.index)
                address = b.offset(gradient, pixel)
                is_positive = b.ir.fcmp_ordered(">", b.load_vector(b.offset(y, pixel)), zero)
                scaled = b.fma(b.load_vector(address), factor, inside)
                result = b.ir.fadd(b.ir.select(is_positive, scaled, zero), outside)
                b.store_vector(result, address)
                columns.next = [b.ir.fadd(columns.carried[0], result)]
            b.store_vector(columns.carried[0], b.offset(row.result("sums"), vectors.index))
    b.ir.ret_void()


def _emit_gate_gradient(begin: Begin) -> None:
    b = begin("gate_gradient", KERNEL_TYPE, GATE_GRADIENT)
    with _rows(b, "y", "gradient") as row, b.loop(I64(0), row.channels, step=b.vector_width) as vectors:
        with b.loop(I64(0), row.width, [b.constant(0.0)]) as columns:
            pixel = b.ir.add(b.ir.mul(columns.index, row.channels), vectors.index)
            y, gradient = (b.load_vector(b.offset(array, pixel)) for array in row.arrays)
            columns.next = [b.fma(y, gradient, columns.carried[0])]
        b.store_vector(columns.carried[0], b.offset(row.result("sums"), vectors.index))
    b.ir.ret_void()


def _emit_row_moments(begin: Begin) -> None:
    b = begin("row_moments", KERNEL_TYPE, ROW_MOMENTS)
    with _rows(b, "x") as row, b.loop(I64(0), row.channels, step=b.vector_width) as vectors:
        first = b.load_vector(b.offset(b.arg_f32_ptr("x"), vectors.index))
        with b.loop(I64(0), row.width, [b.constant(0.0)] * 2) as columns:
            pixel = b.ir.add(b.ir.mul(columns.index, row.channels), vectors.index)
            value = b.ir.fsub(b.load_vector(b.offset(row.arrays[0], pixel)), first)
            total, squares = columns.carried
            columns.next = [b.ir.fadd(total, value), b.fma(value, value, squares)]
        for name, result in zip(("sums", "squares"), columns.carried):
            b.store_vector(result, b.offset(row.result(name), vectors.index))
    b.ir.ret_void()


def _emit_affine_sum(begin: Begin) -> None:
    b = begin("affine_sum", KERNEL_TYPE, AFFINE_SUM)
    numbers = range(4)
    *factors, shift = (b.arg_f32_ptr(name) for name in (*(f"c{number}" for number in numbers), "shift"))
    lower = b.relu_min(b.arg_i64("relu"))
    rows = _rows(b, "out", *(f"x{number}" for number in numbers))
    with rows as row, b.loop(I64(0), row.channels, step=b.vector_width) as vectors:
        constants = [b.load_vector(b.offset(factor, vectors.index)) for factor in factors]
        addend = b.load_vector(b.offset(shift, vectors.index))
        with b.loop(I64(0), row.width) as columns:
            pixel = b.ir.add(b.ir.mul(columns.index, row.channels), vectors.index)
            out, *inputs = (b.offset(array, pixel) for array in row.arrays)
            total = addend
            for address, factor in zip(inputs, constants):
                total = b.fma(b.load_vector(address), factor, total)
            b.store_vector(b.clamp_min(total, lower), out)
    b.ir.ret_void()


class _Row(NamedTuple):
    """A row of an image: its place in the arrays, and where its results of each channel are stored."""

    image: Any
    width: Any
    channels: Any
    arrays: List[Any]
    result: Callable[[str], Any]


@contextmanager
def _rows(b: KernelBuilder, *names: str) -> Iterator[_Row]:
    """Emit a loop over this thread's share of the rows of all images, which lie alike in these arrays."""
    arrays = [b.arg_f32_ptr(name) for name in names]
    height, width, channels = (b.arg_i64(name) for name in ("height", "width", "channels"))
    image_stride, row_stride = b.arg_i64("image_stride"), b.arg_i64("row_stride")
    with b.loop(*b.thread_range(b.ir.mul(b.arg_i64("images"), height))) as rows:
        image, row = b.divmod(rows.index, height)
        start = b.ir.add(b.ir.mul(image, image_stride), b.ir.mul(row, row_stride))
        place = b.ir.mul(rows.index, channels)
        addresses = [b.offset(array, start) for array in arrays]
        yield _Row(image, width, channels, addresses, lambda name: b.offset(b.arg_f32_ptr(name), place))


def _emit_kernel_transform(begin: Begin, transform: WinogradTransform) -> None:
    """Emit G^T U G for the gradients U of transformed kernels."""
    b = begin(f"kernel_transform_{transform.name}", KERNEL_TYPE, KERNEL_TRANSFORM)
    x, out, count = b.arg_f32_ptr("x"), b.arg_f32_ptr("out"), b.arg_i64("count")
    side = range(len(transform.G))
    order = {product: index for index, product in enumerate(itertools.chain(*transform.products))}
    with b.loop(*b.thread_range(b.ir.sdiv(count, I64(b.vector_width)))) as vectors:
        start = b.ir.mul(vectors.index, I64(b.vector_width))
        elements = [[b.load_vector(b.offset(x, b.ir.mul(count, I64(order[i, j])), start)) for j in side] for i in side]
        for index, value in enumerate(itertools.chain(*b.two_sided_matmul(tuple(zip(*transform.G)), elements))):
            b.store_vector(value, b.offset(out, b.ir.mul(count, I64(index)), start))
    b.ir.ret_void()
