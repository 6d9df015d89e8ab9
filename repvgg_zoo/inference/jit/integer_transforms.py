"""The Winograd transforms of quantized layers in 16-bit integers, emitted as LLVM IR."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Callable, List, Mapping, Sequence, Tuple

from llvmlite import ir as llvm_ir

from .integer_epilogue import EPILOGUE, load_ints, scale_sums, store_ints, store_result
from .integer_winograd import INTEGER_TRANSFORMS, IntegerWinograd
from .ir_builder import F32_PTR, I16, I32, I64, KERNEL_TYPE, KernelBuilder
from .kernels import NR
from .winograd import Matrix

I16_PTR = I16.as_pointer()
INPUT_TRANSFORM = ("x", "tile_offsets", "row_stride", "pixel_stride", "out", "tiles", "channels", "element_stride")
OUTPUT_TRANSFORM = (
    *("x", "element_stride", "tiles", "channels", "out", "tile_offsets", "row_stride", "pixel_stride"),
    *("heights", "widths", *EPILOGUE, "center_row_stride", "center_pixel_stride"),
)
TRANSFORM_FIELDS: Mapping[str, Tuple[str, ...]] = MappingProxyType(
    {
        **{f"input_transform_s16_{transform.name}": INPUT_TRANSFORM for transform in INTEGER_TRANSFORMS},
        **{f"output_transform_s16_{transform.name}": OUTPUT_TRANSFORM for transform in INTEGER_TRANSFORMS},
    }
)

Begin = Callable[..., KernelBuilder]


def add_integer_transforms(begin: Begin) -> None:
    """Emit the transforms of all tiles."""
    for transform in INTEGER_TRANSFORMS:
        _emit_input_transform(begin, transform)
        _emit_output_transform(begin, transform)


def _emit_input_transform(begin: Begin, transform: IntegerWinograd) -> None:
    """Emit V = BT d BT^T for tiles of ``side`` x ``side`` pixels, NR channels at once."""
    b = begin(f"input_transform_s16_{transform.name}", KERNEL_TYPE, INPUT_TRANSFORM)
    x, out, tile_offsets = b.arg_ptr("x", I16), b.arg_ptr("out", I16), b.arg_i64_ptr("tile_offsets")
    names = ("row_stride", "pixel_stride", "element_stride", "channels")
    row_stride, pixel_stride, element_stride, channels = (b.arg_i64(name) for name in names)
    vectors = b.ir.sdiv(channels, I64(NR))
    side = range(transform.side)
    products = [product for element in transform.products for product in element]
    with b.loop(*b.thread_range(b.ir.mul(b.arg_i64("tiles"), vectors))) as items:
        tile, vector = b.divmod(items.index, vectors)
        channel = b.ir.mul(vector, I64(NR))
        source = b.offset(x, b.load_i64(tile_offsets, tile), channel)
        target = b.offset(out, b.ir.mul(tile, channels), channel)
        rows = [b.offset(source, b.ir.mul(row_stride, I64(i))) for i in side]
        pixels = [[load_ints(b, b.offset(row, b.ir.mul(pixel_stride, I64(j))), I16, NR) for j in side] for row in rows]
        transformed = _two_sided_matmul(b, transform.BT, pixels)
        for index, (i, j) in enumerate(products):
            store_ints(b, transformed[i][j], b.offset(target, b.ir.mul(element_stride, I64(index))))
    b.ir.ret_void()


def _emit_output_transform(begin: Begin, transform: IntegerWinograd) -> None:
    """Emit Y = AT M AT^T, divided, and the epilogue for the pixels within the image."""
    b = begin(f"output_transform_s16_{transform.name}", KERNEL_TYPE, OUTPUT_TRANSFORM)
    x, out, center = b.arg_ptr("x", I32), b.arg_i64("out"), b.arg_ptr("center", I16)
    tables = ("tile_offsets", "heights", "widths", "center_offsets")
    tile_offsets, heights, widths, center_offsets = (b.arg_i64_ptr(name) for name in tables)
    names = ("row_stride", "pixel_stride", "element_stride", "channels", "center_row_stride", "center_pixel_stride")
    row_stride, pixel_stride, element_stride, channels, center_row_stride, center_pixel_stride = (
        b.arg_i64(name) for name in names
    )
    parameters = [b.arg_f32_ptr(name) for name in ("scale", "identity", "bias")]
    lower, quantize = b.relu_min(b.arg_i64("relu")), b.ir.icmp_signed("!=", b.arg_i64("quantize"), I64(0))
    inverse = _constant(I32, transform.divisor_inverse, b.vector_width)
    vectors = b.ir.sdiv(channels, I64(b.vector_width))
    side = range(len(transform.AT[0]))
    with b.loop(*b.thread_range(b.ir.mul(b.arg_i64("tiles"), vectors))) as items:
        tile, vector = b.divmod(items.index, vectors)
        channel = b.ir.mul(vector, I64(b.vector_width))
        source = b.offset(x, b.ir.mul(tile, channels), channel)
        target = b.ir.add(b.load_i64(tile_offsets, tile), channel)
        center_tile = b.offset(center, b.load_i64(center_offsets, tile), channel)
        height, width = b.load_i64(heights, tile), b.load_i64(widths, tile)
        elements = [
            [
                load_ints(b, b.offset(source, b.ir.mul(element_stride, I64(i * len(side) + j))), I32, b.vector_width)
                for j in side
            ]
            for i in side
        ]
        scale, identity, bias = (b.load_vector(b.offset(pointer, channel)) for pointer in parameters)
        for i, row in enumerate(_two_sided_matmul(b, transform.AT, elements)):
            for j, value in enumerate(row):
                is_inside = b.ir.and_(b.ir.icmp_signed("<", I64(i), height), b.ir.icmp_signed("<", I64(j), width))
                with b.ir.if_then(is_inside):
                    total = value if transform.divisor == 1 else b.ir.mul(value, inverse)
                    steps = (b.ir.mul(center_row_stride, I64(i)), b.ir.mul(center_pixel_stride, I64(j)))
                    pixel = load_ints(b, b.offset(center_tile, *steps), I16, b.vector_width)
                    result = b.clamp_min(scale_sums(b, total, pixel, scale, identity, bias), lower)
                    at = [target, b.ir.mul(row_stride, I64(i)), b.ir.mul(pixel_stride, I64(j))]
                    with b.ir.if_else(quantize) as (rounded, as_float):
                        with rounded:
                            store_result(b, result, b.offset(b.ir.inttoptr(out, I16_PTR), *at), I16)
                        with as_float:
                            store_result(b, result, b.offset(b.ir.inttoptr(out, F32_PTR), *at), None)
    b.ir.ret_void()


def _two_sided_matmul(b: KernelBuilder, matrix: Matrix, values: Sequence[Sequence[Any]]) -> List[List[Any]]:
    """Return T X T^T, where T is the matrix and X a square of vectors of integers."""
    left = [[_linear_combination(b, factors, column) for column in zip(*values)] for factors in matrix]
    return [[_linear_combination(b, factors, row) for factors in matrix] for row in left]


def _linear_combination(b: KernelBuilder, factors: Sequence[float], values: Sequence[Any]) -> Any:
    """Return the sum of the values, each times its factor; it begins with a positive factor."""
    total = None
    for factor, value in sorted(zip(factors, values), key=lambda pair: -pair[0]):
        if factor == 0:
            continue
        lanes = value.type.count
        product = value if abs(factor) == 1 else b.ir.mul(value, _constant(value.type.element, int(abs(factor)), lanes))
        total = product if total is None else (b.ir.add if factor > 0 else b.ir.sub)(total, product)
    return total


def _constant(element: Any, number: int, lanes: int) -> Any:
    return llvm_ir.Constant(llvm_ir.VectorType(element, lanes), [number] * lanes)
