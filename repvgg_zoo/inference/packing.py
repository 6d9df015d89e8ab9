"""Memory for the kernels, and weights packed into it in the order in which they are read."""

from __future__ import annotations

import itertools
import mmap
import sys
from contextlib import suppress
from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray

from .jit.integer_winograd import IntegerWinograd
from .jit.kernels import NR, UNROLLED
from .jit.winograd import WinogradTransform

CACHE_LINE_BYTES = 64
HUGE_PAGE_BYTES = 1 << 21
# Inputs of a panel whose weights are transformed at once: for this few, OpenBLAS wakes no other threads (it does from
# 2^18 multiply-adds on), which would wait for work at the cost of those that pack other layers.
INS_PER_BLOCK = 48


def pack_conv_weights(
    kernel: NDArray[Any], in_channels: int, out_channels: int, multiple: int = UNROLLED
) -> NDArray[Any]:
    """Return a kernel (groups, O, I, 3, 3) as (groups, panels, 9, I, NR), padded with zeros; it may be a view.

    ``in_channels`` and ``out_channels`` are the padded numbers of all groups together. Groups that do not fill whole
    panels, or do not have a ``multiple`` of inputs, are packed as one dense group, with zeros where they are not
    connected.
    """
    groups, outs, ins = kernel.shape[:3]
    if groups > 1 and (outs % NR or ins % multiple):
        dense = np.zeros((1, groups * outs, groups * ins, 3, 3), kernel.dtype)
        for group in range(groups):
            dense[0, group * outs : (group + 1) * outs, group * ins : (group + 1) * ins] = kernel[group]
        kernel, groups = dense, 1
    if groups == 1 and (out_channels, in_channels) != kernel.shape[1:3]:
        padded = np.zeros((1, out_channels, in_channels, 3, 3), kernel.dtype)
        padded[:, : kernel.shape[1], : kernel.shape[2]] = kernel
        kernel = padded
    _, outs, ins = kernel.shape[:3]
    return kernel.reshape(groups, outs // NR, NR, ins, 9).transpose(0, 1, 4, 3, 2)


def pack_winograd_weights(packed: NDArray[Any], transform: WinogradTransform, out: NDArray[Any]) -> None:
    """Transform weights packed by ``pack_conv_weights``: write U to ``out`` (num_products * groups * panels * I * NR,).

    It has (groups, panels, products of the element, I, NR) for each element of a tile.
    """
    groups, panels, _, ins, nr = packed.shape
    # Elements of as many products that follow one another: their U, and the rows of their products.
    parts, start = [], 0
    for count, elements in itertools.groupby(map(len, transform.products)):
        length = len(list(elements))
        stop = start + length * count
        u = out[start * packed.size // 9 : stop * packed.size // 9]
        parts.append((u.reshape(length, groups, panels, count, ins, nr), slice(start, stop)))
        start = stop
    # In blocks, so that what is computed on the way stays in the cache and takes no pages, which the system clears.
    kernels = np.empty((9, min(ins, INS_PER_BLOCK), nr), np.float32)
    transformed = np.empty((transform.num_products, *kernels.shape[1:]), np.float32)
    for group, panel, first in itertools.product(range(groups), range(panels), range(0, ins, INS_PER_BLOCK)):
        block = packed[group, panel, :, first : first + INS_PER_BLOCK]
        count = block.shape[1]
        np.copyto(kernels[:, :count], block)
        transform.transform_weights(kernels[:, :count].reshape(9, -1), transformed[:, :count].reshape(-1, count * nr))
        for u, rows in parts:
            u[:, group, panel, :, first : first + count] = transformed[rows, :count].reshape(len(u), -1, count, nr)


def pack_linear_weights(weight: NDArray[Any], out: NDArray[Any]) -> None:
    """Write a weight (O, I) to ``out`` (panels, I', NR), which is zero beyond the outputs and the inputs."""
    out[:, weight.shape[1] :] = 0
    for panel, rows in zip(out, (weight[start : start + NR] for start in range(0, len(out) * NR, NR))):
        panel[: weight.shape[1], : len(rows)] = rows.T
        panel[: weight.shape[1], len(rows) :] = 0


def pack_lanes(packed: NDArray[Any], channels: int, out: NDArray[Any]) -> None:
    """Write weights (..., I, NR), which are whole numbers, to ``out`` as (..., I / channels, NR, channels)."""
    lanes = packed.reshape(*packed.shape[:-2], packed.shape[-2] // channels, channels, NR).swapaxes(-1, -2)
    out.reshape(lanes.shape)[...] = lanes


def pack_integer_winograd_weights(packed: NDArray[Any], transform: IntegerWinograd, out: NDArray[Any]) -> None:
    """Transform weights packed by ``pack_conv_weights``, and write them to ``out``, int16, element by element.

    Each igemm reads (groups, panels, products, I / 2, NR, 2) for an element, which is a sum of so many products.
    """
    groups, panels, _, ins, nr = packed.shape
    transformed = transform.transform_integers(np.moveaxis(packed, 2, 0).reshape(9, -1))
    kernels = transformed.reshape(-1, groups, panels, ins, nr)
    done, size = 0, packed.size // 9
    for products in transform.products:
        count = len(products)
        pack_lanes(np.moveaxis(kernels[done : done + count], 0, 2), 2, out[done * size : (done + count) * size])
        done += count


def pad(vector: NDArray[Any], size: int, dtype: Any = np.float32) -> NDArray[Any]:
    """Return a copy of a vector, padded with zeros."""
    padded = aligned_zeros((size,), dtype)
    padded[: len(vector)] = vector
    return padded


def aligned_zeros(shape: Sequence[int], dtype: Any = np.float32) -> NDArray[Any]:
    """Return zeros, aligned to a cache line; large arrays ask for huge pages, where the system has them."""
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    if size < HUGE_PAGE_BYTES:
        raw = np.zeros(size + CACHE_LINE_BYTES, np.uint8)
        start = -raw.ctypes.data % CACHE_LINE_BYTES
    else:
        memory = _map_private(size + HUGE_PAGE_BYTES)
        with suppress(AttributeError, OSError):  # not Linux, or an old kernel
            memory.madvise(mmap.MADV_HUGEPAGE)
        raw = np.frombuffer(memory, np.uint8)
        start = -raw.ctypes.data % HUGE_PAGE_BYTES
    zeros: NDArray[Any] = raw[start : start + size].view(dtype).reshape(shape)
    return zeros


def _map_private(size: int) -> mmap.mmap:
    # mmap's default is MAP_SHARED, for which Linux ignores the advice unless shmem_enabled says otherwise.
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
