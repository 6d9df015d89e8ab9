"""The arguments of kernel calls: where the pixels, rows and tiles of a layer are, and how they are divided.

Offsets and strides are in elements, as the kernels take them.
"""

from __future__ import annotations

import itertools
from typing import Any, Dict, List, NamedTuple, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from .ir import ConvLayer
from .jit.amx_kernels import tile_sizes
from .jit.amx_tiles import TILE_BYTES, TILE_ROWS, tile_config
from .jit.kernels import NR
from .jit.winograd import WinogradTransform
from .plan import ActivationBuffer
from .quantized import QuantizedConvLayer

MC = 96  # rows of an igemm convolution that are multiplied with one panel of weights before the next one
MC_TILES = 14  # the same for AMX, in tiles: with fewer, the weights of wide layers are read from memory more than once

CENTER_FIRST = (4, 0, 1, 2, 3, 5, 6, 7, 8)  # the taps of a kernel, the center before the others

AnyLayer = Union[ConvLayer, QuantizedConvLayer]


def split_tiles(
    tiles: int, tile_bytes: int, chunk_bytes: int, min_tiles: int, threads: int
) -> Tuple[List[Tuple[int, int]], int]:
    """Return the bounds of the chunks of tiles that are transformed and multiplied before the next chunk, and m_blocks.

    Where there are ``min_tiles`` for each thread, the product has a block for each, with its own ``chunk_bytes``: a
    thread then finds the tiles that it has transformed in its own cache. Otherwise there is one block, and the threads
    divide the weights among them, which are streamed once instead of once for each thread.
    """
    m_blocks = threads if tiles >= threads * min_tiles else 1
    bounds = split_evenly(tiles, m_blocks * max(min_tiles, chunk_bytes // tile_bytes))
    return list(zip(bounds, bounds[1:])), m_blocks


def direct_args(
    layer: AnyLayer, packed: NDArray[Any], x: ActivationBuffer, out: ActivationBuffer, *, center_first: bool = False
) -> Dict[str, Any]:
    """Return what the igemm kernels need to know of a convolution without a transform.

    With ``center_first``, the taps are in the order of ``CENTER_FIRST``.
    """
    groups, panels, _, in_channels, _ = packed.shape
    _, row_stride, pixel_stride = x.strides
    taps = range(0, 3 * layer.dilation, layer.dilation)
    if groups == layer.dilation == 1 and not center_first:  # the three pixels of a row are contiguous
        kc, tap_offsets = 3 * in_channels, [row_stride * i for i in taps]
    else:
        kc, tap_offsets = in_channels, [row_stride * i + pixel_stride * j for i in taps for j in taps]
        tap_offsets = [tap_offsets[tap] for tap in CENTER_FIRST] if center_first else tap_offsets
    ys, xs = np.arange(out.height), np.arange(out.width)
    return {
        "a": x.storage,
        "c": out.storage,
        "kc": kc,
        "tap_offsets": tap_offsets,
        "a_group_offsets": [in_channels * group for group in range(groups)],
        "c_group_offsets": [NR * panels * group for group in range(groups)],
        "panels": panels,
        "a_offsets": x.offsets(ys * layer.stride - layer.dilation, xs * layer.stride - layer.dilation),
        "c_offsets": out.offsets(ys, xs),
        "mc": MC,
    }


def amx_args(
    layer: QuantizedConvLayer, kc: int, columns: NDArray[Any], x: ActivationBuffer, out: ActivationBuffer
) -> Dict[str, Any]:
    """Return the arguments of conv_u8_amx that ``direct_args`` does not return, or returns for other kernels.

    ``columns`` are the ``tile_columns`` of the output's width.
    """
    ys = np.arange(out.height)
    tile_rows = columns.shape[1]
    k_step = max(step for step in range(4, TILE_BYTES + 1, 4) if kc % step == 0)
    return {
        "a_offsets": x.offsets(ys * layer.stride - layer.dilation, columns[:, 0] * layer.stride - layer.dilation),
        "c_offsets": out.offsets(ys, columns.ravel()),
        "mc": MC_TILES,
        "tile_config": tile_config(*tile_sizes(tile_rows, k_step)),
        "tile_rows": tile_rows,
        "k_step": k_step,
        "pixel_stride": layer.stride * x.strides[2],
    }


def tile_columns(width: int) -> NDArray[Any]:
    """Return the columns of the pixels of each AMX tile in a row of this width, (tiles, tile_rows).

    All tiles have as many pixels. Where these do not divide the width, the last tile computes some of them again.
    """
    tile_rows = ceil_div(width, ceil_div(width, TILE_ROWS))
    starts = np.arange(0, width, tile_rows).clip(max=width - tile_rows)
    columns: NDArray[Any] = starts[:, None] + np.arange(tile_rows)
    return columns


class WinogradTiles(NamedTuple):
    """For each tile: where its input begins, and its output, and how many rows and columns of that are inside."""

    inputs: NDArray[Any]
    outputs: NDArray[Any]
    heights: NDArray[Any]
    widths: NDArray[Any]


def winograd_tiles(
    layer: AnyLayer, transform: WinogradTransform, x: ActivationBuffer, out: ActivationBuffer
) -> WinogradTiles:
    """Return the tiles of a convolution."""
    ys, xs = (np.arange(0, size, transform.m) for size in (out.height, out.width))
    return WinogradTiles(
        x.offsets(ys * layer.stride - 1, xs * layer.stride - 1),
        out.offsets(ys, xs),
        np.tile(np.repeat(out.height - ys, len(xs)), out.images),
        np.tile(np.tile(out.width - xs, len(ys)), out.images),
    )


def input_transform_args(tiles: WinogradTiles, x: ActivationBuffer, v: NDArray[Any]) -> Dict[str, Any]:
    """Return the arguments of an input transform of these tiles to V."""
    count, channels = len(tiles.inputs), x.storage.shape[-1]
    return {
        "x": x.storage,
        "tile_offsets": int64(tiles.inputs),
        "row_stride": x.strides[1],
        "pixel_stride": x.strides[2],
        "out": v,
        "tiles": count,
        "channels": channels,
        "element_stride": count * channels,
    }


def product_args(
    transform: WinogradTransform,
    packed: NDArray[Any],
    v: NDArray[Any],
    m: NDArray[Any],
    tiles: int,
    m_blocks: int,
    ins: int,
    outs: int,
) -> Dict[str, Any]:
    """Return what the igemm kernels need to know of the products of V and the weights, which are M.

    Each element of the tiles is a matrix product of its own, or a sum of some, and so is each group.
    """
    groups, panels, _, group_ins, _ = packed.shape
    counts = [len(products) for products in transform.products]
    starts = [0, *itertools.accumulate(counts)]
    elements = [(element, group) for element in range(transform.num_elements) for group in range(groups)]
    return {
        "a": v,
        "c": m,
        "kc": group_ins,
        "ks": [counts[element] for element, _ in elements],
        "tap_offsets": np.arange(max(counts)) * tiles * ins,
        "a_group_offsets": [tiles * ins * starts[element] + group_ins * group for element, group in elements],
        "c_group_offsets": [tiles * outs * element + NR * panels * group for element, group in elements],
        "panels": panels,
        "a_offsets": np.arange(tiles) * ins,
        "c_offsets": np.arange(tiles) * outs,
        "mc": ceil_div(tiles, m_blocks),
    }


def output_transform_args(tiles: WinogradTiles, m: NDArray[Any], out: ActivationBuffer) -> Dict[str, Any]:
    """Return the arguments of an output transform of M to these tiles, but for the epilogue's."""
    count, channels = len(tiles.outputs), out.storage.shape[-1]
    return {
        "x": m,
        "element_stride": count * channels,
        "tiles": count,
        "channels": channels,
        "out": out.storage,
        "tile_offsets": int64(tiles.outputs),
        "row_stride": out.strides[1],
        "pixel_stride": out.strides[2],
        "heights": int64(tiles.heights),
        "widths": int64(tiles.widths),
    }


def row_tiles(rows: int, mc: int, mr: int) -> Tuple[List[int], List[int]]:
    """Return the bounds of tiles of at most ``mr`` rows, and the tiles' numbers at the bounds of blocks of ``mc``."""
    m_tiles, block_tiles = [0], [0]
    bounds = split_evenly(rows, mc)
    for start, stop in zip(bounds, bounds[1:]):
        m_tiles += [start + bound for bound in split_evenly(stop - start, mr)[1:]]
        block_tiles.append(len(m_tiles) - 1)
    return m_tiles, block_tiles


def spatial_args(x: ActivationBuffer) -> Dict[str, int]:
    image_stride, row_stride, channels = x.strides
    size = {"images": x.images, "height": x.height, "width": x.width}
    return {**size, "channels": channels, "image_stride": image_stride, "row_stride": row_stride}


def int64(values: Any) -> NDArray[Any]:
    return np.ascontiguousarray(values, np.int64)


def split_evenly(total: int, max_size: int) -> List[int]:
    """Return the bounds of the fewest parts of at most ``max_size``, as equal as possible."""
    parts = max(1, ceil_div(total, max_size))
    return [total * part // parts for part in range(parts + 1)]


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(size: int, multiple: int) -> int:
    return ceil_div(size, multiple) * multiple
