"""The convolution of quantized layers with AMX: tiles of pixels are multiplied with tiles of weights.

A tile of activations is ``tile_rows`` pixels of one image row, ``k_step`` channels of each. A tile of weights is as
many channels of a panel, packed as for vpdpbusd. Two tiles of pixels and two panels are multiplied at once.
"""

from __future__ import annotations

from typing import Any, Callable, List, Sequence, Tuple

from llvmlite import ir as llvm_ir

from .amx_tiles import TILE_ROWS
from .integer_dot import DotProduct
from .ir_builder import CACHE_LINE_FLOATS, I8, I32, I64, I64_PTR, KernelBuilder
from .kernels import NR, MicrokernelConfig

I8_PTR, I32_PTR = I8.as_pointer(), I32.as_pointer()
MAX_PIXEL_TILES = 2
PREFETCHED_LINES = 4  # a quarter of the TILE_BYTES * TILE_ROWS of weights

# What conv_u8_amx takes beside conv_u8's arguments. Its a_offsets are those of tiles, each of which has tile_rows of
# the c_offsets and center_offsets; m_tiles count tiles. pixel_stride is from one output's input to the next one's.
AMX_FIELDS = ("tile_config", "tile_rows", "k_step", "pixel_stride")
# The tiles' numbers: sums of pixels and panels, activations, weights.
FIRST_ACTIVATIONS, FIRST_WEIGHTS = 4, 6


def tile_sizes(tile_rows: int, k_step: int) -> Tuple[List[int], List[int]]:
    """Return the rows of all tiles, and the bytes of their rows."""
    rows = [*[tile_rows] * FIRST_WEIGHTS, k_step // 4, k_step // 4]
    row_bytes = [*[4 * NR] * FIRST_ACTIVATIONS, k_step, k_step, 4 * NR, 4 * NR]
    return rows, row_bytes


def sums_size(config: MicrokernelConfig) -> int:
    """Return the number of sums of the largest microkernel."""
    return MAX_PIXEL_TILES * TILE_ROWS * NR * config.nr_panels


def emit_amx_microkernels(
    begin: Callable[..., KernelBuilder], config: MicrokernelConfig, dot: DotProduct
) -> List[List[llvm_ir.Function]]:
    """Emit the microkernels; ``[i][j]`` is the one for i + 1 panels and j + 1 tiles of pixels."""
    return [
        [_emit_microkernel(begin, config, dot, tiles, panels) for tiles in range(1, MAX_PIXEL_TILES + 1)]
        for panels in range(1, config.nr_panels + 1)
    ]


def _emit_microkernel(
    begin: Callable[..., KernelBuilder],
    config: MicrokernelConfig,
    dot: DotProduct,
    num_tiles: int,
    nr_panels: int,
) -> llvm_ir.Function:
    """Emit the microkernel: the sums of the first tap, which the epilogue shifts, and those of all others.

    Both are tile_rows * num_tiles rows of NR * config.nr_panels sums; the others begin sums_size(config) further.
    """
    types = [I8_PTR, I64_PTR, I8_PTR, I8_PTR, I64, I64, I64, I64_PTR, I32_PTR, I8_PTR, I64, I64, I64]
    b = begin(f"igemm_amx_{num_tiles}x{nr_panels}", llvm_ir.FunctionType(llvm_ir.VoidType(), types))
    b.function.linkage = "internal"
    a, a_offsets, w, prefetch_ptr, panel_size, kc, ks, tap_offsets, sums, *rest = b.args
    config_ptr, tile_rows, k_step, pixel_stride = rest
    assert dot.tiles is not None
    tiles = dot.tiles(b, config_ptr)
    row_size = NR * config.nr_panels
    a_tiles = [b.offset(a, b.load_i64(a_offsets, I64(tile))) for tile in range(num_tiles)]
    steps = b.ir.sdiv(kc, k_step)
    grid = [(tile, panel) for tile in range(num_tiles) for panel in range(nr_panels)]

    def add_taps(first: Any, last: Any, carried: Sequence[Any], out: Any) -> Sequence[Any]:
        for tile, panel in grid:
            tiles.zero(tile * nr_panels + panel)
        with b.loop(first, last, carried) as taps:
            tap_offset = b.load_i64(tap_offsets, taps.index)
            with b.loop(I64(0), steps, [*taps.carried, tap_offset]) as step:
                prefetch_ptr, w_ptr, channel = step.carried
                for panel in range(nr_panels):
                    for line in range(PREFETCHED_LINES):
                        b.prefetch(b.offset(prefetch_ptr, *[panel_size] * panel, 4 * CACHE_LINE_FLOATS * line))
                # Each tile is loaded right before its first use, so that products begin as soon as possible.
                for tile, panel in grid:
                    if panel == 0:
                        tiles.load(FIRST_ACTIVATIONS + tile, b.offset(a_tiles[tile], channel), pixel_stride)
                    if tile == 0:
                        tiles.load(FIRST_WEIGHTS + panel, b.offset(w_ptr, *[panel_size] * panel), I64(4 * NR))
                    tiles.multiply_add(tile * nr_panels + panel, FIRST_ACTIVATIONS + tile, FIRST_WEIGHTS + panel)
                next_prefetch_ptr = b.offset(prefetch_ptr, b.ir.mul(k_step, I64(4)))
                next_w = b.offset(w_ptr, b.ir.mul(k_step, I64(NR)))
                step.next = [next_prefetch_ptr, next_w, b.ir.add(channel, k_step)]
            taps.next = step.carried[:2]
        for tile, panel in grid:
            row = b.ir.mul(I64(tile * row_size), tile_rows)
            tiles.store(tile * nr_panels + panel, b.offset(out, row, NR * panel), I64(4 * row_size))
        return taps.carried

    carried = add_taps(I64(0), I64(1), [prefetch_ptr, w], sums)
    add_taps(I64(1), ks, carried, b.offset(sums, sums_size(config)))
    b.ir.ret_void()
    return b.function
