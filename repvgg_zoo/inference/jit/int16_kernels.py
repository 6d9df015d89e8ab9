"""The kernels of quantized layers, emitted as LLVM IR: exact integer convolutions with a float32 epilogue.

Activations (0 to 255) and weights (8 bits, shifted or transformed) are stored as 16-bit integers, so that a pair of
products and their sum is one instruction (pmaddwd) that cannot saturate, on every x86 since AVX2. Kernels are as in
``kernels.py``; offsets and strides are in elements of what they belong to.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, List, Sequence, Tuple

from llvmlite import ir as llvm_ir

from .int16_dot import DOT_PRODUCTS
from .integer_winograd import INTEGER_TRANSFORMS, IntegerWinograd
from .ir_builder import F32, F32_PTR, I16, I32, I64, I64_PTR, KERNEL_TYPE, KernelBuilder
from .kernels import (
    NR,
    UNROLLED,
    MicrokernelConfig,
    decompose_work_item,
    dispatch_microkernel,
    emit_prefetch_schedule,
)
from .winograd import Matrix

I16_PTR, I32_PTR = I16.as_pointer(), I32.as_pointer()
KC_MULTIPLE = 2 * UNROLLED  # channels of UNROLLED steps, each of which takes a pair
CACHE_LINE_INT16 = 32
MAX_ACTIVATION = 255.0
ROUNDING = 1.5 * 2**23  # added to a float of 0 to 2^22, it leaves the rounded number in the lowest bits

# As igemm, but with pairs of channels: w is (groups, panels, ks, kc / 2, NR, 2). c are the int32 sums.
_IGEMM = (
    *("a", "w", "c", "kc", "ks", "tap_offsets", "groups", "a_group_offsets", "w_group_offsets", "c_group_offsets"),
    *("panels", "a_offsets", "c_offsets", "m_tiles", "m_blocks", "block_tiles"),
)
# sums * scale + center * identity + bias, with ReLU if asked for, is stored as float32, or with ``quantize`` rounded to
# 0 to 255. Center is the input's pixel at the same place.
_EPILOGUE = ("scale", "identity", "bias", "relu", "quantize", "center", "center_offsets")
INPUT_TRANSFORM = ("x", "tile_offsets", "row_stride", "pixel_stride", "out", "tiles", "channels", "element_stride")
OUTPUT_TRANSFORM = (
    *("x", "element_stride", "tiles", "channels", "out", "tile_offsets", "row_stride", "pixel_stride"),
    *("heights", "widths", *_EPILOGUE, "center_row_stride", "center_pixel_stride"),
)
# x (float32) times multiplier (one float), rounded and limited to 0 to 255.
QUANTIZE = ("x", "images", "height", "width", "channels", "image_stride", "row_stride", "multiplier", "out")
INT16_FIELDS: Dict[str, Tuple[str, ...]] = {
    "igemm_s16": _IGEMM,
    "conv_s16": (*_IGEMM, *_EPILOGUE),
    **{f"input_transform_s16_{transform.name}": INPUT_TRANSFORM for transform in INTEGER_TRANSFORMS},
    **{f"output_transform_s16_{transform.name}": OUTPUT_TRANSFORM for transform in INTEGER_TRANSFORMS},
    "quantize": QUANTIZE,
}

Begin = Callable[..., KernelBuilder]
Dot = Callable[[KernelBuilder, Any, Any, Any], Any]  # adds the products of pairs of 16-bit integers to 32-bit sums


def add_int16_kernels(module: llvm_ir.Module, config: MicrokernelConfig) -> None:
    """Emit the kernels of quantized layers into a module."""
    begin = functools.partial(KernelBuilder, module, config.vector_width)
    dot = functools.partial(DOT_PRODUCTS[config.int16_dot], module)
    microkernels = [
        [_emit_microkernel(begin, dot, mr, nr_panels) for mr in range(1, config.mr + 1)]
        for nr_panels in range(1, config.nr_panels + 1)
    ]
    _emit_igemm(begin, microkernels)
    _emit_conv(begin, microkernels, {flag: _emit_tile_epilogue(begin, config, flag) for flag in (False, True)})
    for transform in INTEGER_TRANSFORMS:
        _emit_input_transform(begin, transform)
        _emit_output_transform(begin, transform)
    _emit_quantize(begin)


# igemm -----------------------------------------------------------------------------------------------------------


def _emit_microkernel(begin: Begin, dot: Dot, mr: int, nr_panels: int) -> llvm_ir.Function:
    """Emit the MR x (NR * nr_panels) microkernel: c[c_offsets[row]] = sum over taps and pairs of channels of a * w."""
    types = [I16_PTR, I64_PTR, I16_PTR, I16_PTR, I64, I64, I64, I64_PTR, I32_PTR, I64_PTR]
    b = begin(f"igemm_s16_{mr}x{nr_panels}", llvm_ir.FunctionType(llvm_ir.VoidType(), types))
    b.function.linkage = "internal"
    a, a_offsets, w, prefetch_ptr, panel_size, kc, ks, tap_offsets, c, c_offsets = b.args
    panels, vector_offsets = range(nr_panels), range(0, NR, b.vector_width)
    a_rows = [b.offset(a, b.load_i64(a_offsets, I64(row))) for row in range(mr)]
    zero = llvm_ir.Constant(llvm_ir.VectorType(I32, b.vector_width), None)
    zeros = [zero] * (mr * nr_panels * len(vector_offsets))
    with b.loop(I64(0), ks, [*zeros, prefetch_ptr, w]) as taps:
        tap_offset = b.load_i64(tap_offsets, taps.index)
        a_ptrs = [b.offset(a_row, tap_offset) for a_row in a_rows]
        with b.loop(I64(0), kc, taps.carried, KC_MULTIPLE) as steps:
            *flat, prefetch_ptr, w_ptr = steps.carried
            acc = _rows(flat, mr)
            for panel in panels:
                b.prefetch(b.offset(prefetch_ptr, *[panel_size] * panel))
            for step in range(UNROLLED):
                w_ptrs = [b.offset(w_ptr, *[panel_size] * panel, 2 * NR * step) for panel in panels]
                weights = [
                    _load(b, b.offset(pointer, 2 * at), I16, 2 * b.vector_width)
                    for pointer in w_ptrs
                    for at in vector_offsets
                ]
                for row in range(mr):
                    pair = _broadcast_pair(b, b.offset(a_ptrs[row], steps.index, 2 * step))
                    acc[row] = [dot(b, total, pair, weight) for total, weight in zip(acc[row], weights)]
            next_w = b.offset(w_ptr, 2 * NR * UNROLLED)
            steps.next = [*(total for row in acc for total in row), b.offset(prefetch_ptr, CACHE_LINE_INT16), next_w]
        taps.next = steps.carried
    for row, totals in enumerate(_rows(taps.carried[:-2], mr)):
        c_row = b.offset(c, b.load_i64(c_offsets, I64(row)))
        for index, total in enumerate(totals):
            _store(b, total, b.offset(c_row, b.vector_width * index))
    b.ir.ret_void()
    return b.function


def _rows(values: Sequence[Any], mr: int) -> List[List[Any]]:
    columns = len(values) // mr
    return [list(values[row * columns : (row + 1) * columns]) for row in range(mr)]


def _broadcast_pair(b: KernelBuilder, pointer: Any) -> Any:
    """Return the pair of 16-bit integers at ``pointer`` in each 32-bit lane of a vector of 16-bit integers."""
    pair = b.ir.load(b.ir.bitcast(pointer, I32_PTR), align=2)
    vector_type = llvm_ir.VectorType(I32, b.vector_width)
    undefined = llvm_ir.Constant(vector_type, llvm_ir.Undefined)
    lanes = llvm_ir.Constant(vector_type, [0] * b.vector_width)
    vector = b.ir.shuffle_vector(b.ir.insert_element(undefined, pair, I32(0)), undefined, lanes)
    return b.ir.bitcast(vector, llvm_ir.VectorType(I16, 2 * b.vector_width))


def _emit_igemm(begin: Begin, microkernels: Sequence[Sequence[llvm_ir.Function]]) -> None:
    b = begin("igemm_s16", KERNEL_TYPE, INT16_FIELDS["igemm_s16"])
    c, c_offsets = b.arg_ptr("c", I32), b.arg_i64_ptr("c_offsets")

    def run_tile(run: Callable[[Any, Any], None], tile: Any, rows: Any, columns: Any, item: Any) -> None:
        run(b.offset(c, columns), b.offset(c_offsets, tile))

    _emit_igemm_loops(b, microkernels, run_tile)


def _emit_conv(
    begin: Begin, microkernels: Sequence[Sequence[llvm_ir.Function]], epilogues: Dict[bool, llvm_ir.Function]
) -> None:
    """Emit igemm with an epilogue: the sums of a tile go through memory that stays in the first-level cache."""
    b = begin("conv_s16", KERNEL_TYPE, INT16_FIELDS["conv_s16"])
    mr, columns_per_tile = len(microkernels[0]), NR * len(microkernels)
    sums = b.ir.alloca(I32, I64(mr * columns_per_tile))
    sums.align = 64
    sums_offsets = b.ir.alloca(I64, I64(mr))
    for row in range(mr):
        b.ir.store(I64(row * columns_per_tile), b.offset(sums_offsets, row))
    center, center_offsets = b.arg_ptr("center", I16), b.arg_i64_ptr("center_offsets")
    c, c_offsets = b.arg_i64("c"), b.arg_i64_ptr("c_offsets")
    vectors = [b.arg_f32_ptr(name) for name in ("scale", "identity", "bias")]
    relu, quantize = b.arg_i64("relu"), b.ir.icmp_signed("!=", b.arg_i64("quantize"), I64(0))

    def run_tile(run: Callable[[Any, Any], None], tile: Any, rows: Any, columns: Any, item: Any) -> None:
        run(sums, sums_offsets)
        per_channel = [b.offset(vector, columns) for vector in vectors]
        arguments = [b.offset(center, columns), b.offset(center_offsets, tile), *per_channel, relu]
        with b.ir.if_else(quantize) as (rounded, as_float):
            for block, flag, element in ((rounded, True, I16), (as_float, False, F32)):
                with block:
                    out = b.offset(b.ir.inttoptr(c, element.as_pointer()), columns)
                    count = [sums, rows, item.num_panels]
                    b.ir.call(epilogues[flag], [*count, out, b.offset(c_offsets, tile), *arguments])

    _emit_igemm_loops(b, microkernels, run_tile)


def _emit_igemm_loops(
    b: KernelBuilder, microkernels: Sequence[Sequence[llvm_ir.Function]], run_tile: Callable[..., None]
) -> None:
    """Emit the loops around the microkernels.

    ``run_tile(run, tile, rows, columns, item)`` emits the code of a tile of rows, which begins with row ``tile`` and
    column ``columns``; ``run`` emits the microkernel with the place for its sums.
    """
    kc, panels, groups = (b.arg_i64(name) for name in ("kc", "panels", "groups"))
    a, w = (b.arg_ptr(name, I16) for name in ("a", "w"))
    names = ("a_group_offsets", "w_group_offsets", "c_group_offsets", "ks", "tap_offsets")
    a_group_offsets, w_group_offsets, c_group_offsets, group_ks, tap_offsets = (b.arg_i64_ptr(name) for name in names)
    a_offsets, m_tiles, block_tiles = (b.arg_i64_ptr(name) for name in ("a_offsets", "m_tiles", "block_tiles"))
    nr_panels = I64(len(microkernels))
    n_tiles = b.ir.sdiv(b.ir.add(panels, I64(len(microkernels) - 1)), nr_panels)
    work_items = b.ir.mul(b.ir.mul(b.arg_i64("m_blocks"), groups), n_tiles)
    with b.loop(*b.thread_range(work_items)) as items:
        item = decompose_work_item(b, items.index, groups, n_tiles, panels, nr_panels)
        ks = b.load_i64(group_ks, item.group)
        panel_size = b.ir.mul(b.ir.mul(ks, kc), I64(NR))
        prefetch_stride = b.ir.sdiv(panel_size, I64(UNROLLED))
        w_ptr = b.offset(w, b.load_i64(w_group_offsets, item.group), b.ir.mul(item.panel, panel_size))
        a_ptr = b.offset(a, b.load_i64(a_group_offsets, item.group))
        columns = b.ir.add(b.load_i64(c_group_offsets, item.group), b.ir.mul(item.panel, I64(NR)))
        first_tile = b.load_i64(block_tiles, item.block)
        last_tile = b.load_i64(block_tiles, b.ir.add(item.block, I64(1)))
        next_w = b.offset(w_ptr, b.ir.mul(panel_size, item.num_panels))
        with b.loop(first_tile, last_tile) as tiles:
            slot = emit_prefetch_schedule(b, tiles.index, first_tile)
            start, stop = b.load_i64(m_tiles, tiles.index), b.load_i64(m_tiles, b.ir.add(tiles.index, I64(1)))
            rows, prefetch_ptr = b.ir.sub(stop, start), b.offset(next_w, b.ir.mul(prefetch_stride, slot))

            def run(c: Any, c_offsets: Any) -> None:
                arguments = [a_ptr, b.offset(a_offsets, start), w_ptr, prefetch_ptr, panel_size, kc, ks, tap_offsets]
                dispatch_microkernel(b, microkernels, item.num_panels, rows, [*arguments, c, c_offsets])

            run_tile(run, start, rows, columns, item)
    b.ir.ret_void()


# The epilogue ----------------------------------------------------------------------------------------------------


def _emit_tile_epilogue(begin: Begin, config: MicrokernelConfig, quantize: bool) -> llvm_ir.Function:
    """Emit the epilogue of a tile whose sums are ``rows`` times NR * nr_panels integers."""
    element = I16 if quantize else F32
    types = [I32_PTR, I64, I64, element.as_pointer(), I64_PTR, I16_PTR, I64_PTR, F32_PTR, F32_PTR, F32_PTR, I64]
    b = begin(f"epilogue_{'quantize' if quantize else 'f32'}", llvm_ir.FunctionType(llvm_ir.VoidType(), types))
    b.function.linkage = "internal"
    sums, rows, panels, out, out_offsets, center, center_offsets, scale, identity, bias, relu = b.args
    lower = b.relu_min(relu)
    with b.loop(I64(0), b.ir.mul(panels, I64(NR)), step=b.vector_width) as vectors:
        at = vectors.index
        scales, identities, biases = (b.load_vector(b.offset(pointer, at)) for pointer in (scale, identity, bias))
        with b.loop(I64(0), rows) as loop:
            row_sums = b.offset(sums, b.ir.mul(loop.index, I64(NR * config.nr_panels)), at)
            total = _load(b, row_sums, I32, b.vector_width)
            pixel = _load(b, b.offset(center, b.load_i64(center_offsets, loop.index), at), I16, b.vector_width)
            value = _scaled(b, total, pixel, scales, identities, biases)
            target = b.offset(out, b.load_i64(out_offsets, loop.index), at)
            _store_result(b, b.clamp_min(value, lower), target, quantize)
    b.ir.ret_void()
    return b.function


def _scaled(b: KernelBuilder, total: Any, pixel: Any, scale: Any, identity: Any, bias: Any) -> Any:
    """Return total * scale + pixel * identity + bias."""
    vector_type = llvm_ir.VectorType(F32, b.vector_width)
    sums, pixels = b.ir.sitofp(total, vector_type), b.ir.sitofp(pixel, vector_type)
    return b.fma(pixels, identity, b.fma(sums, scale, bias))


def _store_result(b: KernelBuilder, value: Any, pointer: Any, quantize: bool) -> None:
    if not quantize:
        b.store_vector(value, pointer)
        return
    largest = b.constant(MAX_ACTIVATION)
    limited = b.ir.select(b.ir.fcmp_ordered("<", value, largest), value, largest)
    limited = b.clamp_min(limited, b.constant(0.0))
    bits = b.ir.bitcast(b.ir.fadd(limited, b.constant(ROUNDING)), llvm_ir.VectorType(I32, b.vector_width))
    _store(b, b.ir.trunc(bits, llvm_ir.VectorType(I16, b.vector_width)), pointer)


# Winograd --------------------------------------------------------------------------------------------------------


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
        pixels = [[_load(b, b.offset(row, b.ir.mul(pixel_stride, I64(j))), I16, NR) for j in side] for row in rows]
        transformed = _two_sided_matmul(b, transform.BT, pixels)
        for index, (i, j) in enumerate(products):
            _store(b, transformed[i][j], b.offset(target, b.ir.mul(element_stride, I64(index))))
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
                _load(b, b.offset(source, b.ir.mul(element_stride, I64(i * len(side) + j))), I32, b.vector_width)
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
                    pixel = _load(b, b.offset(center_tile, *steps), I16, b.vector_width)
                    result = b.clamp_min(_scaled(b, total, pixel, scale, identity, bias), lower)
                    at = [target, b.ir.mul(row_stride, I64(i)), b.ir.mul(pixel_stride, I64(j))]
                    with b.ir.if_else(quantize) as (rounded, as_float):
                        with rounded:
                            _store_result(b, result, b.offset(b.ir.inttoptr(out, I16_PTR), *at), True)
                        with as_float:
                            _store_result(b, result, b.offset(b.ir.inttoptr(out, F32_PTR), *at), False)
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


# The rest --------------------------------------------------------------------------------------------------------


def _emit_quantize(begin: Begin) -> None:
    b = begin("quantize", KERNEL_TYPE, QUANTIZE)
    x, out = b.arg_f32_ptr("x"), b.arg_ptr("out", I16)
    height, width, channels = (b.arg_i64(name) for name in ("height", "width", "channels"))
    image_stride, row_stride = b.arg_i64("image_stride"), b.arg_i64("row_stride")
    multiplier = b.broadcast(b.ir.load(b.arg_f32_ptr("multiplier")))
    with b.loop(*b.thread_range(b.ir.mul(b.arg_i64("images"), height))) as rows:
        image, row = b.divmod(rows.index, height)
        start = b.ir.add(b.ir.mul(image, image_stride), b.ir.mul(row, row_stride))
        with b.loop(start, b.ir.add(start, b.ir.mul(width, channels)), step=b.vector_width) as vectors:
            value = b.ir.fmul(b.load_vector(b.offset(x, vectors.index)), multiplier)
            _store_result(b, value, b.offset(out, vectors.index), True)
    b.ir.ret_void()


def _load(b: KernelBuilder, pointer: Any, element: Any, lanes: int) -> Any:
    vector_type = llvm_ir.VectorType(element, lanes)
    return b.ir.load(b.ir.bitcast(pointer, vector_type.as_pointer()), align=element.width // 8)


def _store(b: KernelBuilder, value: Any, pointer: Any) -> None:
    b.ir.store(value, b.ir.bitcast(pointer, value.type.as_pointer()), align=value.type.element.width // 8)


def _constant(element: Any, number: int, lanes: int) -> Any:
    return llvm_ir.Constant(llvm_ir.VectorType(element, lanes), [number] * lanes)
