"""The kernels that compute a RepVGG, emitted as LLVM IR.

Activations are NHWC, with a border of zeros. Every kernel is ``void(arguments, thread, threads)`` and does its share of
the work. Its arguments are 64-bit integers, named in ``FIELDS``: addresses in bytes, offsets and strides in floats.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

from llvmlite import ir as llvm_ir

from .ir_builder import CACHE_LINE_FLOATS, F32, F32_PTR, I64, I64_PTR, KERNEL_TYPE, KernelBuilder
from .run import emit_run
from .winograd import WINOGRAD_TRANSFORMS, Matrix, WinogradTransform

NR = 16  # columns (output channels) of a panel of packed weights
UNROLLED = 4  # steps of the innermost loop over kc that are written out


@dataclass(frozen=True)
class MicrokernelConfig:
    """The tile that the igemm microkernel keeps in registers: ``mr`` rows of ``nr_panels`` panels of NR columns.

    ``integer_dot`` is the instruction of the kernels for quantized layers, or empty without these kernels. ``training``
    adds those of the backward pass.
    """

    vector_width: int
    mr: int
    nr_panels: int
    integer_dot: str = ""
    training: bool = False


AVX2 = MicrokernelConfig(vector_width=8, mr=6, nr_panels=1)  # 12 accumulators, 2 weights, 1 input of 16 registers
# More accumulators would fit, but not the addresses of more rows. With one panel, each input is loaded for one FMA
# only, and processors that issue two of them at once wait for their loads.
AVX512 = MicrokernelConfig(vector_width=16, mr=8, nr_panels=2)

# Indirect GEMM (XNNPACK's igemm): for each group, c[row] = a[row] @ w + bias, with ReLU if asked for. A row of a is
# ``ks`` pieces of ``kc`` floats, at tap_offsets from the row's own offset. Each group has a ``ks`` of its own, and so
# many of the tap_offsets. Its weights are (panels, ks, kc, NR), at its w_group_offset. The rows are cut into m_blocks,
# each of which uses all weights of a panel, and those into m_tiles of at most MR rows.
IGEMM = (
    *("a", "w", "bias", "c", "kc", "ks", "tap_offsets"),
    *("groups", "a_group_offsets", "w_group_offsets", "c_group_offsets"),
    *("panels", "a_offsets", "c_offsets", "m_tiles", "m_blocks", "block_tiles", "bias_stride", "relu"),
)
# Winograd: tiles of x to V (num_products, tiles, channels), and M (num_elements, tiles, channels) to tiles of output.
INPUT_TRANSFORM = ("x", "tile_offsets", "row_stride", "pixel_stride", "out", "tiles", "channels", "element_stride")
OUTPUT_TRANSFORM = (
    *("x", "element_stride", "tiles", "channels", "bias", "relu", "out", "tile_offsets", "row_stride", "pixel_stride"),
    *("heights", "widths"),
)
NCHW_TO_NHWC = ("x", "images", "height", "width", "channels", "out", "image_stride", "row_stride", "pixel_stride")
GLOBAL_AVG_POOL = ("x", "images", "height", "width", "channels", "image_stride", "row_stride", "out")
SIGMOID = ("x", "count")  # in place
# x times scale (N, C), with ReLU if asked for, in place.
CHANNEL_SCALE = ("x", "images", "height", "width", "channels", "image_stride", "row_stride", "scale", "relu")
FIELDS: Dict[str, Tuple[str, ...]] = {
    "igemm": IGEMM,
    **{f"input_transform_{transform.name}": INPUT_TRANSFORM for transform in WINOGRAD_TRANSFORMS},
    **{f"output_transform_{transform.name}": OUTPUT_TRANSFORM for transform in WINOGRAD_TRANSFORMS},
    "nchw_to_nhwc": NCHW_TO_NHWC,
    "global_avg_pool": GLOBAL_AVG_POOL,
    "sigmoid": SIGMOID,
    "channel_scale": CHANNEL_SCALE,
}

Begin = Callable[..., KernelBuilder]  # begins a function of the module


def build_module(config: MicrokernelConfig) -> llvm_ir.Module:
    """Return a module with all kernels, and ``run``."""
    module = llvm_ir.Module("repvgg_zoo")
    begin = functools.partial(KernelBuilder, module, config.vector_width)
    microkernels = [
        [_emit_igemm_microkernel(begin, mr, nr_panels) for mr in range(1, config.mr + 1)]
        for nr_panels in range(1, config.nr_panels + 1)
    ]
    _emit_igemm(begin, microkernels)
    for transform in WINOGRAD_TRANSFORMS:
        products = [product for element in transform.products for product in element]
        emit_tile_transform(begin, f"input_transform_{transform.name}", transform.BT, products)
        _emit_output_transform(begin, transform)
    for emit in (_emit_nchw_to_nhwc, _emit_global_avg_pool, _emit_sigmoid, _emit_channel_scale, emit_run):
        emit(begin)
    return module


# igemm -----------------------------------------------------------------------------------------------------------


class _Registers(NamedTuple):
    """What the microkernel's loops carry: accumulators acc[row][vector], and the pointers that move through w."""

    acc: List[List[Any]]
    prefetch_ptr: Any
    w_ptr: Any

    def flatten(self) -> List[Any]:
        return [*(vector for row in self.acc for vector in row), self.prefetch_ptr, self.w_ptr]

    @classmethod
    def unflatten(cls, values: Sequence[Any], mr: int) -> _Registers:
        *vectors, prefetch_ptr, w_ptr = values
        columns = len(vectors) // mr
        return cls([vectors[row * columns : (row + 1) * columns] for row in range(mr)], prefetch_ptr, w_ptr)


# The microkernel for MR rows, for all its columns at once:
#
#   acc[0 .. MR-1] = bias
#   for tap in 0 .. ks-1:
#       for k in 0 .. kc-1:
#           for row in 0 .. MR-1:
#               acc[row] += a[a_offsets[row] + tap_offsets[tap] + k] * w[tap * kc + k]
#   for row in 0 .. MR-1:  c[c_offsets[row]] = relu ? max(acc[row], 0) : acc[row]
def _emit_igemm_microkernel(begin: Begin, mr: int, nr_panels: int) -> llvm_ir.Function:
    """Emit the MR x (NR * nr_panels) GEMM microkernel; all accumulators stay in registers."""
    types = [F32_PTR, I64_PTR, F32_PTR, F32_PTR, I64, I64, I64, I64_PTR, F32_PTR, I64, F32_PTR, I64_PTR, I64]
    b = begin(f"igemm_{mr}x{nr_panels}", llvm_ir.FunctionType(llvm_ir.VoidType(), types))
    b.function.linkage = "internal"
    a, a_offsets, w, prefetch_ptr, panel_size, kc, ks, tap_offsets, bias, bias_stride, c, c_offsets, relu = b.args
    panels, vector_offsets = range(nr_panels), range(0, NR, b.vector_width)
    a_rows = [b.offset(a, b.load_i64(a_offsets, I64(row))) for row in range(mr)]
    biases = [b.load_vector(b.offset(bias, *[bias_stride] * panel, at)) for panel in panels for at in vector_offsets]
    with b.loop(I64(0), ks, _Registers([biases] * mr, prefetch_ptr, w).flatten()) as taps:
        tap_offset = b.load_i64(tap_offsets, taps.index)
        a_ptrs = [b.offset(a_row, tap_offset) for a_row in a_rows]
        with b.loop(I64(0), kc, taps.carried, UNROLLED) as steps:
            acc, prefetch_ptr, w_ptr = _Registers.unflatten(steps.carried, mr)
            for panel in panels:
                b.prefetch(b.offset(prefetch_ptr, *[panel_size] * panel))
            next_prefetch_ptr = b.offset(prefetch_ptr, CACHE_LINE_FLOATS)
            for step in range(UNROLLED):
                w_ptrs = [b.offset(w_ptr, *[panel_size] * panel, NR * step) for panel in panels]
                weights = [b.load_vector(b.offset(pointer, at)) for pointer in w_ptrs for at in vector_offsets]
                for row in range(mr):
                    value = b.broadcast(b.ir.load(b.offset(a_ptrs[row], steps.index, step)))
                    acc[row] = [b.fma(value, weight, total) for weight, total in zip(weights, acc[row])]
            steps.next = _Registers(acc, next_prefetch_ptr, b.offset(w_ptr, NR * UNROLLED)).flatten()
        taps.next = steps.carried
    acc = _Registers.unflatten(taps.carried, mr).acc
    lower = b.relu_min(relu)
    for row in range(mr):
        c_row = b.offset(c, b.load_i64(c_offsets, I64(row)))
        for index, total in enumerate(acc[row]):
            b.store_vector(b.clamp_min(total, lower), b.offset(c_row, b.vector_width * index))
    b.ir.ret_void()
    return b.function


def _emit_igemm(begin: Begin, microkernels: Sequence[Sequence[llvm_ir.Function]]) -> None:
    b = begin("igemm", KERNEL_TYPE, IGEMM)
    relu, bias_stride = b.arg_i64("relu"), b.arg_i64("bias_stride")
    bias, c, c_offsets = b.arg_f32_ptr("bias"), b.arg_f32_ptr("c"), b.arg_i64_ptr("c_offsets")

    def run_tile(run: Callable[..., None], tile: Any, rows: Any, columns: Any, item: WorkItem) -> None:
        bias_ptr = b.offset(bias, b.ir.mul(item.packed_panel, bias_stride))
        run(bias_ptr, bias_stride, b.offset(c, columns), b.offset(c_offsets, tile), relu)

    emit_igemm_loops(b, F32, microkernels, run_tile)
    b.ir.ret_void()


def emit_igemm_loops(
    b: KernelBuilder,
    element: Any,
    microkernels: Sequence[Sequence[llvm_ir.Function]],
    run_tile: Callable[..., None],
) -> None:
    """Emit the loops around the microkernels; ``microkernels[i][j]`` is the one for i + 1 panels and j + 1 rows.

    ``run_tile(run, tile, rows, columns, item)`` emits the code of a tile of rows, which begins with row ``tile`` and
    column ``columns``; ``run`` emits the microkernel, with what it takes after the tap_offsets.
    """
    kc, panels, groups = (b.arg_i64(name) for name in ("kc", "panels", "groups"))
    a, w = (b.arg_ptr(name, element) for name in ("a", "w"))
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

            def run(*rest: Any) -> None:
                arguments = [a_ptr, b.offset(a_offsets, start), w_ptr, prefetch_ptr, panel_size, kc, ks, tap_offsets]
                dispatch_microkernel(b, microkernels, item.num_panels, rows, [*arguments, *rest])

            run_tile(run, start, rows, columns, item)


class WorkItem(NamedTuple):
    """One block of rows times one tile of at most nr_panels panels, of one group."""

    group: Any
    block: Any
    panel: Any  # the first one, within the group
    num_panels: Any
    packed_panel: Any  # the first one, within all groups


def decompose_work_item(
    b: KernelBuilder, index: Any, groups: Any, n_tiles: Any, panels: Any, nr_panels: Any
) -> WorkItem:
    """Split the index of a work item; neighbors use the same rows, so that these stay in the cache.

    The blocks come first: with as many as there are threads, each thread has rows of its own, in all groups.
    """
    outer, n_tile = b.divmod(index, n_tiles)
    block, group = b.divmod(outer, groups)
    panel = b.ir.mul(n_tile, nr_panels)
    remaining = b.ir.sub(panels, panel)
    num_panels = b.ir.select(b.ir.icmp_signed("<", remaining, nr_panels), remaining, nr_panels)
    packed_panel = b.ir.add(b.ir.mul(group, panels), panel)
    return WorkItem(group, block, panel, num_panels, packed_panel)


def emit_prefetch_schedule(b: KernelBuilder, tile: Any, first_tile: Any) -> Any:
    """Return which part of the next weights to prefetch during a tile of rows.

    A microkernel prefetches one cache line in UNROLLED steps of UNROLLED lines of weights, so a panel takes as many
    tiles: the first ones of a block fetch a part each, all later ones the last part again.
    """
    slot = b.ir.sub(tile, first_tile)
    return b.ir.select(b.ir.icmp_signed("<", slot, I64(UNROLLED)), slot, I64(UNROLLED - 1))


def dispatch_microkernel(
    b: KernelBuilder,
    microkernels: Sequence[Sequence[llvm_ir.Function]],
    num_panels: Any,
    rows: Any,
    arguments: Sequence[Any],
) -> None:
    """Call the microkernel for this number of panels and rows."""
    mr = len(microkernels[0])
    after = b.function.append_basic_block()
    case = b.ir.add(b.ir.mul(b.ir.sub(num_panels, I64(1)), I64(mr)), rows)
    switch = b.ir.switch(case, after)
    for number, function in enumerate((function for row in microkernels for function in row), start=1):
        block = b.function.append_basic_block()
        switch.add_case(I64(number), block)
        b.ir.position_at_end(block)
        b.ir.call(function, arguments)
        b.ir.branch(after)
    b.ir.position_at_end(after)


# Winograd --------------------------------------------------------------------------------------------------------


def emit_tile_transform(begin: Begin, name: str, matrix: Matrix, order: Sequence[Tuple[int, int]]) -> None:
    """Emit T d T^T for squares d of pixels, where T is the matrix; its elements are stored in this order."""
    b = begin(name, KERNEL_TYPE, INPUT_TRANSFORM)
    x, out, tile_offsets = b.arg_f32_ptr("x"), b.arg_f32_ptr("out"), b.arg_i64_ptr("tile_offsets")
    names = ("row_stride", "pixel_stride", "element_stride", "channels")
    row_stride, pixel_stride, element_stride, channels = (b.arg_i64(name) for name in names)
    vectors = b.ir.sdiv(channels, I64(b.vector_width))
    side = range(len(matrix[0]))
    with b.loop(*b.thread_range(b.ir.mul(b.arg_i64("tiles"), vectors))) as items:
        tile, vector = b.divmod(items.index, vectors)
        channel = b.ir.mul(vector, I64(b.vector_width))
        source = b.offset(x, b.load_i64(tile_offsets, tile), channel)
        target = b.offset(out, b.ir.mul(tile, channels), channel)
        rows = [b.offset(source, b.ir.mul(row_stride, I64(i))) for i in side]
        pixels = [[b.load_vector(b.offset(rows[i], b.ir.mul(pixel_stride, I64(j)))) for j in side] for i in side]
        transformed = b.two_sided_matmul(matrix, pixels)
        for index, (i, j) in enumerate(order):
            b.store_vector(transformed[i][j], b.offset(target, b.ir.mul(element_stride, I64(index))))
    b.ir.ret_void()


def _emit_output_transform(begin: Begin, transform: WinogradTransform) -> None:
    """Emit Y = A^T M A for tiles of m x m pixels, without those beyond the image."""
    b = begin(f"output_transform_{transform.name}", KERNEL_TYPE, OUTPUT_TRANSFORM)
    x, bias, out = (b.arg_f32_ptr(name) for name in ("x", "bias", "out"))
    tile_offsets, heights, widths = (b.arg_i64_ptr(name) for name in ("tile_offsets", "heights", "widths"))
    names = ("row_stride", "pixel_stride", "element_stride", "channels")
    row_stride, pixel_stride, element_stride, channels = (b.arg_i64(name) for name in names)
    lower = b.relu_min(b.arg_i64("relu"))
    vectors = b.ir.sdiv(channels, I64(b.vector_width))
    side = range(len(transform.AT[0]))
    with b.loop(*b.thread_range(b.ir.mul(b.arg_i64("tiles"), vectors))) as items:
        tile, vector = b.divmod(items.index, vectors)
        channel = b.ir.mul(vector, I64(b.vector_width))
        source = b.offset(x, b.ir.mul(tile, channels), channel)
        target = b.offset(out, b.load_i64(tile_offsets, tile), channel)
        height, width = b.load_i64(heights, tile), b.load_i64(widths, tile)
        elements = [
            [b.load_vector(b.offset(source, b.ir.mul(element_stride, I64(i * len(side) + j)))) for j in side]
            for i in side
        ]
        addend = b.load_vector(b.offset(bias, channel))
        for i, row in enumerate(b.two_sided_matmul(transform.AT, elements)):
            for j, value in enumerate(row):
                is_inside = b.ir.and_(b.ir.icmp_signed("<", I64(i), height), b.ir.icmp_signed("<", I64(j), width))
                with b.ir.if_then(is_inside):
                    pixel = b.offset(target, b.ir.mul(row_stride, I64(i)), b.ir.mul(pixel_stride, I64(j)))
                    b.store_vector(b.clamp_min(b.ir.fadd(value, addend), lower), pixel)
    b.ir.ret_void()


# The rest --------------------------------------------------------------------------------------------------------


def _emit_nchw_to_nhwc(begin: Begin) -> None:
    b = begin("nchw_to_nhwc", KERNEL_TYPE, NCHW_TO_NHWC)
    x, out = b.arg_f32_ptr("x"), b.arg_f32_ptr("out")
    height, width, channels = (b.arg_i64(name) for name in ("height", "width", "channels"))
    image_stride, row_stride, pixel_stride = (
        b.arg_i64(name) for name in ("image_stride", "row_stride", "pixel_stride")
    )
    with b.loop(*b.thread_range(b.ir.mul(b.arg_i64("images"), height))) as rows:
        image, row = b.divmod(rows.index, height)
        target = b.offset(out, b.ir.mul(image, image_stride), b.ir.mul(row, row_stride))
        with b.loop(I64(0), channels) as planes:
            plane = b.ir.mul(b.ir.add(b.ir.mul(b.ir.add(b.ir.mul(image, channels), planes.index), height), row), width)
            source = b.offset(x, plane)
            with b.loop(I64(0), width) as columns:
                value = b.ir.load(b.offset(source, columns.index))
                b.ir.store(value, b.offset(target, b.ir.mul(columns.index, pixel_stride), planes.index))
    b.ir.ret_void()


def _emit_global_avg_pool(begin: Begin) -> None:
    b = begin("global_avg_pool", KERNEL_TYPE, GLOBAL_AVG_POOL)
    x, out = b.arg_f32_ptr("x"), b.arg_f32_ptr("out")
    height, width, channels = (b.arg_i64(name) for name in ("height", "width", "channels"))
    image_stride, row_stride = b.arg_i64("image_stride"), b.arg_i64("row_stride")
    panels = b.ir.sdiv(channels, I64(NR))  # NR floats are one cache line
    vector_offsets = range(0, NR, b.vector_width)
    zeros = [b.constant(0.0) for _ in vector_offsets]
    area = b.broadcast(b.ir.sitofp(b.ir.mul(height, width), F32))
    with b.loop(*b.thread_range(b.ir.mul(b.arg_i64("images"), panels))) as items:
        image, panel = b.divmod(items.index, panels)
        channel = b.ir.mul(panel, I64(NR))
        source = b.offset(x, b.ir.mul(image, image_stride), channel)
        with b.loop(I64(0), height, zeros) as rows:
            row = b.offset(source, b.ir.mul(rows.index, row_stride))
            # A sum for each row keeps rounding small: it grows with the longer side, not with the area.
            with b.loop(I64(0), width, zeros) as columns:
                pixel = b.offset(row, b.ir.mul(columns.index, channels))
                columns.next = [
                    b.ir.fadd(total, b.load_vector(b.offset(pixel, at)))
                    for total, at in zip(columns.carried, vector_offsets)
                ]
            rows.next = [b.ir.fadd(total, row_sum) for total, row_sum in zip(rows.carried, columns.carried)]
        target = b.offset(out, b.ir.mul(image, channels), channel)
        for total, at in zip(rows.carried, vector_offsets):
            b.store_vector(b.ir.fdiv(total, area), b.offset(target, at))
    b.ir.ret_void()


def _emit_sigmoid(begin: Begin) -> None:
    b = begin("sigmoid", KERNEL_TYPE, SIGMOID)
    x, one = b.arg_f32_ptr("x"), llvm_ir.Constant(F32, 1.0)
    with b.loop(*b.thread_range(b.arg_i64("count"))) as items:
        address = b.offset(x, items.index)
        power = b.exp(b.ir.fsub(llvm_ir.Constant(F32, 0.0), b.ir.load(address)))
        b.ir.store(b.ir.fdiv(one, b.ir.fadd(one, power)), address)
    b.ir.ret_void()


def _emit_channel_scale(begin: Begin) -> None:
    b = begin("channel_scale", KERNEL_TYPE, CHANNEL_SCALE)
    x, scale = b.arg_f32_ptr("x"), b.arg_f32_ptr("scale")
    height, width, channels = (b.arg_i64(name) for name in ("height", "width", "channels"))
    image_stride, row_stride = b.arg_i64("image_stride"), b.arg_i64("row_stride")
    lower = b.relu_min(b.arg_i64("relu"))
    with b.loop(*b.thread_range(b.ir.mul(b.arg_i64("images"), height))) as rows:
        image, row = b.divmod(rows.index, height)
        pixels = b.offset(x, b.ir.mul(image, image_stride), b.ir.mul(row, row_stride))
        scales = b.offset(scale, b.ir.mul(image, channels))
        with b.loop(I64(0), width) as columns:
            pixel = b.offset(pixels, b.ir.mul(columns.index, channels))
            with b.loop(I64(0), channels, step=b.vector_width) as vectors:
                address = b.offset(pixel, vectors.index)
                product = b.ir.fmul(b.load_vector(address), b.load_vector(b.offset(scales, vectors.index)))
                b.store_vector(b.clamp_min(product, lower), address)
    b.ir.ret_void()
