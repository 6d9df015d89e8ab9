"""The kernels of quantized layers, emitted as LLVM IR: exact integer convolutions with a float32 epilogue.

With VNNI, activations (0 to 255) are stored as unsigned and weights as signed bytes, four of whose products are one
instruction (vpdpbusd). With AMX, tiles of them are multiplied (``amx_kernels.py``). Elsewhere both are 16-bit integers,
the weights shifted or transformed, so that a pair of products and their sum is one instruction (pmaddwd) that cannot
saturate, on every x86 since AVX2. Kernels are as in ``kernels.py``; offsets and strides are in elements of what they
belong to.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, List, Sequence, Tuple

from llvmlite import ir as llvm_ir

from .amx_kernels import AMX_FIELDS, emit_amx_microkernels, sums_size
from .integer_dot import DOT_PRODUCTS, DotProduct
from .integer_epilogue import EPILOGUE, load_ints, scale_sums, store_ints, store_result
from .integer_transforms import TRANSFORM_FIELDS, add_integer_transforms
from .ir_builder import F32, F32_PTR, I8, I16, I32, I64, I64_PTR, KERNEL_TYPE, KernelBuilder
from .kernels import (
    NR,
    UNROLLED,
    MicrokernelConfig,
    WorkItem,
    emit_igemm_loops,
)

I32_PTR = I32.as_pointer()
CACHE_LINE_BITS = 512

# As igemm, but with n channels at once, 2 of 16 or 4 of 8 bits: w is (groups, panels, ks, kc / n, NR, n). c are the
# int32 sums.
_IGEMM = (
    *("a", "w", "c", "kc", "ks", "tap_offsets", "groups", "a_group_offsets", "w_group_offsets", "c_group_offsets"),
    *("panels", "a_offsets", "c_offsets", "m_tiles", "m_blocks", "block_tiles"),
)
# x (float32) times multiplier (one float), rounded and limited to 0 to 255.
QUANTIZE = ("x", "images", "height", "width", "channels", "image_stride", "row_stride", "multiplier", "out")
S16_FIELDS: Dict[str, Tuple[str, ...]] = {
    "igemm_s16": _IGEMM,
    "conv_s16": (*_IGEMM, *EPILOGUE),
    **TRANSFORM_FIELDS,
    "quantize_s16": QUANTIZE,
}
# Bytes are not shifted: the first tap is the center, whose sums are shifted before those of the other taps are added.
_CONV_U8 = (*_IGEMM, *EPILOGUE, "center_shift")
U8_FIELDS: Dict[str, Tuple[str, ...]] = {"conv_u8": _CONV_U8, "quantize_u8": QUANTIZE}
U8_AMX_FIELDS = {"conv_u8_amx": (*_CONV_U8, *AMX_FIELDS), "quantize_u8": QUANTIZE}

Begin = Callable[..., KernelBuilder]


def integer_fields(config: MicrokernelConfig) -> Dict[str, Tuple[str, ...]]:
    """Return the fields of the kernels for quantized layers that a configuration has."""
    if not config.integer_dot:
        return {}
    dot = DOT_PRODUCTS[config.integer_dot]
    if dot.tiles is not None:
        return U8_AMX_FIELDS
    return U8_FIELDS if dot.activation == "u8" else S16_FIELDS


def conv_kernel(dot: DotProduct) -> str:
    """Return the name of the kernel that computes a convolution without a transform."""
    return f"conv_{dot.activation}" + ("" if dot.tiles is None else "_amx")


def kc_multiple(config: MicrokernelConfig) -> int:
    """Return the channels of UNROLLED steps, of which the kernels take whole numbers."""
    return UNROLLED * DOT_PRODUCTS[config.integer_dot].channels


def add_integer_kernels(module: llvm_ir.Module, config: MicrokernelConfig) -> None:
    """Emit the kernels of quantized layers into a module."""
    begin = functools.partial(KernelBuilder, module, config.vector_width)
    dot = DOT_PRODUCTS[config.integer_dot]
    if dot.tiles is not None:
        microkernels = emit_amx_microkernels(begin, config, dot)
    else:
        microkernels = [
            [_emit_microkernel(begin, dot, mr, nr_panels) for mr in range(1, config.mr + 1)]
            for nr_panels in range(1, config.nr_panels + 1)
        ]
    epilogues = {flag: _emit_tile_epilogue(begin, config, dot, flag) for flag in (False, True)}
    _emit_conv(begin, config, microkernels, epilogues)
    _emit_quantize(begin, dot)
    if dot.activation == "s16":  # there are no transforms of bytes, which would need more bits
        _emit_igemm(begin, microkernels)
        add_integer_transforms(begin)


# igemm -----------------------------------------------------------------------------------------------------------


def _emit_microkernel(begin: Begin, dot: DotProduct, mr: int, nr_panels: int) -> llvm_ir.Function:
    """Emit the MR x (NR * nr_panels) microkernel: c[c_offsets[row]] = sum over taps and channels of a * w."""
    pointer = _element(dot).as_pointer()
    shift_types = [I32_PTR] if dot.activation == "u8" else []
    types = [pointer, I64_PTR, pointer, pointer, I64, I64, I64, I64_PTR, I32_PTR, I64_PTR, *shift_types]
    b = begin(f"igemm_{dot.activation}_{mr}x{nr_panels}", llvm_ir.FunctionType(llvm_ir.VoidType(), types))
    b.function.linkage = "internal"
    a, a_offsets, w, prefetch_ptr, panel_size, kc, ks, tap_offsets, c, c_offsets, *center_shift = b.args
    panels, vector_offsets = range(nr_panels), range(0, NR, b.vector_width)
    a_rows = [b.offset(a, b.load_i64(a_offsets, I64(row))) for row in range(mr)]

    def add_taps(first: Any, last: Any, carried: Sequence[Any]) -> Sequence[Any]:
        with b.loop(first, last, carried) as taps:
            tap_offset = b.load_i64(tap_offsets, taps.index)
            a_ptrs = [b.offset(a_row, tap_offset) for a_row in a_rows]
            with b.loop(I64(0), kc, taps.carried, dot.channels * UNROLLED) as steps:
                *flat, prefetch_ptr, w_ptr = steps.carried
                acc = _rows(flat, mr)
                for panel in panels:
                    b.prefetch(b.offset(prefetch_ptr, *[panel_size] * panel))
                for step in range(UNROLLED):
                    w_ptrs = [b.offset(w_ptr, *[panel_size] * panel, dot.channels * NR * step) for panel in panels]
                    weights = [
                        load_ints(b, b.offset(w_panel, dot.channels * at), _element(dot), dot.channels * b.vector_width)
                        for w_panel in w_ptrs
                        for at in vector_offsets
                    ]
                    for row in range(mr):
                        activations = _broadcast_lane(b, dot, b.offset(a_ptrs[row], steps.index, dot.channels * step))
                        assert dot.emit is not None
                        acc[row] = [dot.emit(b, total, activations, weight) for total, weight in zip(acc[row], weights)]
                next_prefetch_ptr = b.offset(prefetch_ptr, CACHE_LINE_BITS // dot.bits)
                next_w = b.offset(w_ptr, dot.channels * NR * UNROLLED)
                steps.next = [*(total for row in acc for total in row), next_prefetch_ptr, next_w]
            taps.next = steps.carried
        return taps.carried

    zero = llvm_ir.Constant(llvm_ir.VectorType(I32, b.vector_width), None)
    carried: Sequence[Any] = [*[zero] * (mr * nr_panels * len(vector_offsets)), prefetch_ptr, w]
    first = I64(0)
    if center_shift:
        first = I64(1)
        *flat, prefetch_ptr, w_ptr = add_taps(I64(0), first, carried)
        shifts = [
            load_ints(b, b.offset(center_shift[0], NR * panel + at), I32, b.vector_width)
            for panel in panels
            for at in vector_offsets
        ]
        shifted = [b.ir.shl(total, shift) for row in _rows(flat, mr) for total, shift in zip(row, shifts)]
        carried = [*shifted, prefetch_ptr, w_ptr]
    carried = add_taps(first, ks, carried)
    for row, totals in enumerate(_rows(carried[:-2], mr)):
        c_row = b.offset(c, b.load_i64(c_offsets, I64(row)))
        for index, total in enumerate(totals):
            store_ints(b, total, b.offset(c_row, b.vector_width * index))
    b.ir.ret_void()
    return b.function


def _rows(values: Sequence[Any], mr: int) -> List[List[Any]]:
    columns = len(values) // mr
    return [list(values[row * columns : (row + 1) * columns]) for row in range(mr)]


def _broadcast_lane(b: KernelBuilder, dot: DotProduct, pointer: Any) -> Any:
    """Return the 32 bits at ``pointer`` in each lane of a vector of the instruction's integers."""
    lane = b.ir.load(b.ir.bitcast(pointer, I32_PTR), align=dot.bits // 8)
    vector_type = llvm_ir.VectorType(I32, b.vector_width)
    undefined = llvm_ir.Constant(vector_type, llvm_ir.Undefined)
    lanes = llvm_ir.Constant(vector_type, [0] * b.vector_width)
    vector = b.ir.shuffle_vector(b.ir.insert_element(undefined, lane, I32(0)), undefined, lanes)
    return b.ir.bitcast(vector, llvm_ir.VectorType(_element(dot), dot.channels * b.vector_width))


def _element(dot: DotProduct) -> Any:
    return llvm_ir.IntType(dot.bits)


def _emit_igemm(begin: Begin, microkernels: Sequence[Sequence[llvm_ir.Function]]) -> None:
    b = begin("igemm_s16", KERNEL_TYPE, S16_FIELDS["igemm_s16"])
    c, c_offsets = b.arg_ptr("c", I32), b.arg_i64_ptr("c_offsets")

    def run_tile(run: Callable[..., None], tile: Any, rows: Any, columns: Any, item: WorkItem) -> None:
        run(b.offset(c, columns), b.offset(c_offsets, tile))

    emit_igemm_loops(b, I16, microkernels, run_tile)
    b.ir.ret_void()


def _emit_conv(
    begin: Begin,
    config: MicrokernelConfig,
    microkernels: Sequence[Sequence[llvm_ir.Function]],
    epilogues: Dict[bool, llvm_ir.Function],
) -> None:
    """Emit igemm with an epilogue: the sums of a tile go through memory that stays in the first-level cache."""
    dot = DOT_PRODUCTS[config.integer_dot]
    name, element = conv_kernel(dot), _element(dot)
    b = begin(name, KERNEL_TYPE, integer_fields(config)[name])
    mr, columns_per_tile = len(microkernels[0]), NR * len(microkernels)
    sums = b.ir.alloca(I32, I64(mr * columns_per_tile if dot.tiles is None else 2 * sums_size(config)))
    sums.align = 64
    center, center_offsets = b.arg_ptr("center", element), b.arg_i64_ptr("center_offsets")
    shifts = [b.arg_ptr("center_shift", I32)] if dot.activation == "u8" else []
    c, c_offsets = b.arg_i64("c"), b.arg_i64_ptr("c_offsets")
    vectors = [b.arg_f32_ptr(name) for name in ("scale", "identity", "bias")]
    relu, quantize = b.arg_i64("relu"), b.ir.icmp_signed("!=", b.arg_i64("quantize"), I64(0))
    # With AMX, the sums of the center are apart from the others, and the epilogue shifts them.
    if dot.tiles is None:
        sums_offsets = b.ir.alloca(I64, I64(mr))
        for row in range(mr):
            b.ir.store(I64(row * columns_per_tile), b.offset(sums_offsets, row))
        row_pixels, before, after = I64(1), [sums, sums_offsets], []
    else:
        tile_config, row_pixels = b.arg_ptr("tile_config", I8), b.arg_i64("tile_rows")
        before, after = [sums], [tile_config, row_pixels, b.arg_i64("k_step"), b.arg_i64("pixel_stride")]
        tiles = dot.tiles(b, tile_config)
        tiles.configure()

    def run_tile(run: Callable[..., None], tile: Any, rows: Any, columns: Any, item: WorkItem) -> None:
        center_shift = [b.offset(shift, columns) for shift in shifts]
        run(*before, *(center_shift if dot.tiles is None else []), *after)
        per_channel = [b.offset(vector, columns) for vector in vectors]
        pixel = b.ir.mul(tile, row_pixels)
        arguments = [b.offset(center, columns), b.offset(center_offsets, pixel), *per_channel, relu]
        arguments += [] if dot.tiles is None else center_shift
        with b.ir.if_else(quantize) as (rounded, as_float):
            for block, flag, out_element in ((rounded, True, element), (as_float, False, F32)):
                with block:
                    out = b.offset(b.ir.inttoptr(c, out_element.as_pointer()), columns)
                    count = [sums, b.ir.mul(rows, row_pixels), item.num_panels]
                    b.ir.call(epilogues[flag], [*count, out, b.offset(c_offsets, pixel), *arguments])

    emit_igemm_loops(b, element, microkernels, run_tile)
    if dot.tiles is not None:
        tiles.release()
    b.ir.ret_void()


# The epilogue ----------------------------------------------------------------------------------------------------


def _emit_tile_epilogue(begin: Begin, config: MicrokernelConfig, dot: DotProduct, quantize: bool) -> llvm_ir.Function:
    """Emit the epilogue of a tile whose sums are ``rows`` times NR * nr_panels integers; AMX has them in two parts."""
    element = _element(dot)
    out_type, center_type = (element if quantize else F32).as_pointer(), element.as_pointer()
    types = [I32_PTR, I64, I64, out_type, I64_PTR, center_type, I64_PTR, F32_PTR, F32_PTR, F32_PTR, I64]
    types += [] if dot.tiles is None else [I32_PTR]
    b = begin(f"epilogue_{'quantize' if quantize else 'f32'}", llvm_ir.FunctionType(llvm_ir.VoidType(), types))
    b.function.linkage = "internal"
    sums, rows, panels, out, out_offsets, center, center_offsets, scale, identity, bias, relu, *center_shift = b.args
    lower = b.relu_min(relu)
    with b.loop(I64(0), b.ir.mul(panels, I64(NR)), step=b.vector_width) as vectors:
        at = vectors.index
        scales, identities, biases = (b.load_vector(b.offset(pointer, at)) for pointer in (scale, identity, bias))
        shifts = [load_ints(b, b.offset(pointer, at), I32, b.vector_width) for pointer in center_shift]
        with b.loop(I64(0), rows) as loop:
            row_sums = b.offset(sums, b.ir.mul(loop.index, I64(NR * config.nr_panels)), at)
            total = load_ints(b, row_sums, I32, b.vector_width)
            if shifts:
                others = load_ints(b, b.offset(row_sums, sums_size(config)), I32, b.vector_width)
                total = b.ir.add(b.ir.shl(total, shifts[0]), others)
            pixel = load_ints(b, b.offset(center, b.load_i64(center_offsets, loop.index), at), element, b.vector_width)
            value = scale_sums(b, total, pixel, scales, identities, biases)
            target = b.offset(out, b.load_i64(out_offsets, loop.index), at)
            store_result(b, b.clamp_min(value, lower), target, element if quantize else None)
    b.ir.ret_void()
    return b.function


# The rest --------------------------------------------------------------------------------------------------------


def _emit_quantize(begin: Begin, dot: DotProduct) -> None:
    b = begin(f"quantize_{dot.activation}", KERNEL_TYPE, QUANTIZE)
    x, out = b.arg_f32_ptr("x"), b.arg_ptr("out", _element(dot))
    height, width, channels = (b.arg_i64(name) for name in ("height", "width", "channels"))
    image_stride, row_stride = b.arg_i64("image_stride"), b.arg_i64("row_stride")
    multiplier = b.broadcast(b.ir.load(b.arg_f32_ptr("multiplier")))
    with b.loop(*b.thread_range(b.ir.mul(b.arg_i64("images"), height))) as rows:
        image, row = b.divmod(rows.index, height)
        start = b.ir.add(b.ir.mul(image, image_stride), b.ir.mul(row, row_stride))
        with b.loop(start, b.ir.add(start, b.ir.mul(width, channels)), step=b.vector_width) as vectors:
            value = b.ir.fmul(b.load_vector(b.offset(x, vectors.index)), multiplier)
            store_result(b, value, b.offset(out, vectors.index), _element(dot))
    b.ir.ret_void()
