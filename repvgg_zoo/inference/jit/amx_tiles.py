"""The instructions of AMX: tiles of at most 16 rows of 64 bytes, and products of two of them that are added to a third.

A configuration of 64 bytes, ``tile_config``, says how many rows and bytes each of the eight tiles has.
"""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
from llvmlite import ir as llvm_ir
from numpy.typing import NDArray

from .ir_builder import I8, I32, I64, KernelBuilder

TILE_ROWS = 16
TILE_BYTES = 64  # of a row
NUM_TILES = 8
CONFIG_BYTES = 64
BYTES_AT = 16  # where the configuration has the tiles' bytes, 16 bits for each
ROWS_AT = 48  # and their rows, 8 bits for each


def tile_config(rows: Sequence[int], row_bytes: Sequence[int]) -> NDArray[np.uint8]:
    """Return the configuration for tiles of so many rows, and bytes in a row (palette 1)."""
    config = np.zeros(CONFIG_BYTES, np.uint8)
    config[0] = 1
    config[BYTES_AT : BYTES_AT + 2 * len(row_bytes) : 2] = row_bytes
    config[ROWS_AT : ROWS_AT + len(rows)] = rows
    return config


class AmxTiles:
    """The tiles as the processor has them."""

    def __init__(self, b: KernelBuilder, config: Any) -> None:
        self._b, self._config = b, config

    def configure(self) -> None:
        """Emit the instruction that a thread needs before all others."""
        self._call("ldtilecfg", self._config)

    def release(self) -> None:
        """Emit the instruction that ends the use of tiles, so that the system does not save them any more."""
        self._call("tilerelease")

    def zero(self, tile: int) -> None:
        self._call("tilezero", I8(tile))

    def load(self, tile: int, pointer: Any, stride: Any) -> None:
        """Load rows that are ``stride`` bytes apart."""
        self._call("tileloadd64", I8(tile), self._bytes(pointer), stride)

    def store(self, tile: int, pointer: Any, stride: Any) -> None:
        """Store rows ``stride`` bytes apart."""
        self._call("tilestored64", I8(tile), self._bytes(pointer), stride)

    def multiply_add(self, sums: int, activations: int, weights: int) -> None:
        """Add to each sum of a row and a column the products of the row's unsigned and the column's signed bytes."""
        self._call("tdpbusd", I8(sums), I8(activations), I8(weights))

    def _bytes(self, pointer: Any) -> Any:
        return self._b.ir.bitcast(pointer, I8.as_pointer())

    def _call(self, instruction: str, *arguments: Any) -> None:
        self._b.intrinsic(f"llvm.x86.{instruction}", llvm_ir.VoidType(), arguments)


class PlainTiles:
    """The same in memory, for the tests on processors without AMX."""

    def __init__(self, b: KernelBuilder, config: Any) -> None:
        self._b, self._config = b, config
        self._tiles = b.ir.alloca(I8, I64(NUM_TILES * TILE_ROWS * TILE_BYTES))

    def configure(self) -> None:
        pass

    def release(self) -> None:
        pass

    def zero(self, tile: int) -> None:
        with self._rows(tile) as row, self._row_bytes(tile) as column:
            self._b.ir.store(I8(0), self._element(tile, row.index, column.index))

    def load(self, tile: int, pointer: Any, stride: Any) -> None:
        self._copy(tile, pointer, stride, is_load=True)

    def store(self, tile: int, pointer: Any, stride: Any) -> None:
        self._copy(tile, pointer, stride, is_load=False)

    def multiply_add(self, sums: int, activations: int, weights: int) -> None:
        b = self._b
        with self._rows(sums) as row, b.loop(I64(0), self._byte_count(sums), step=4) as column:
            pointer = b.ir.bitcast(self._element(sums, row.index, column.index), I32.as_pointer())
            with b.loop(I64(0), self._byte_count(activations), [b.ir.load(pointer)]) as channel:
                quad, lane = b.divmod(channel.index, I64(4))
                activation = b.ir.load(self._element(activations, row.index, channel.index))
                weight = b.ir.load(self._element(weights, quad, b.ir.add(column.index, lane)))
                product = b.ir.mul(b.ir.zext(activation, I32), b.ir.sext(weight, I32))
                channel.next = [b.ir.add(channel.carried[0], product)]
            b.ir.store(channel.carried[0], pointer)

    def _copy(self, tile: int, pointer: Any, stride: Any, is_load: bool) -> None:
        b = self._b
        start = b.ir.bitcast(pointer, I8.as_pointer())
        with self._rows(tile) as row, self._row_bytes(tile) as column:
            outside = b.offset(start, b.ir.mul(row.index, stride), column.index)
            inside = self._element(tile, row.index, column.index)
            source, target = (outside, inside) if is_load else (inside, outside)
            b.ir.store(b.ir.load(source), target)

    def _rows(self, tile: int) -> Any:
        return self._b.loop(I64(0), self._b.ir.zext(self._b.ir.load(self._b.offset(self._config, ROWS_AT + tile)), I64))

    def _row_bytes(self, tile: int) -> Any:
        return self._b.loop(I64(0), self._byte_count(tile))

    def _byte_count(self, tile: int) -> Any:
        return self._b.ir.zext(self._b.ir.load(self._b.offset(self._config, BYTES_AT + 2 * tile)), I64)

    def _element(self, tile: int, row: Any, column: Any) -> Any:
        first = tile * TILE_ROWS * TILE_BYTES
        return self._b.offset(self._tiles, first, self._b.ir.mul(row, I64(TILE_BYTES)), column)
