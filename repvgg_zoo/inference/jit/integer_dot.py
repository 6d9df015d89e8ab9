"""Dot products of small integers, added to 32-bit sums: one function for each instruction that computes them.

Each takes the sums, the activations that are the same in each lane, and the weights, and returns the new sums. None of
them saturates, so that sums are exact.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple, Optional, Union

from llvmlite import ir as llvm_ir

from .amx_tiles import AmxTiles, PlainTiles
from .ir_builder import I32, KernelBuilder


class DotProduct(NamedTuple):
    """How a lane's 32 bits are used: 2 ``channels`` of 16 bits, signed, or 4 of 8 bits, unsigned times signed.

    ``macs_per_fma`` is how many products a lane adds up in the time of an FMA. ``emit`` emits the instruction for
    vectors; instructions for tiles are methods of ``tiles``.
    """

    channels: int
    macs_per_fma: float
    emit: Optional[Callable[..., Any]] = None
    tiles: Optional[Callable[..., Union[AmxTiles, PlainTiles]]] = None

    @property
    def bits(self) -> int:
        """The bits of an activation, and of a weight."""
        return 32 // self.channels

    @property
    def activation(self) -> str:
        """The name of the activations' type, with which the kernels' names end."""
        return "u8" if self.channels == 4 else "s16"


def _pmaddwd(b: KernelBuilder, total: Any, activations: Any, weights: Any) -> Any:
    name = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[b.vector_width]
    added = b.ir.add(total, b.intrinsic(name, total.type, [activations, weights]))
    # Code that LLVM does not look into, which is empty: it would add up the products of several steps before they are
    # added to the total, for which there are not enough registers.
    constraint = "=x,0" if b.vector_width == 8 else "=v,0"
    return b.ir.asm(llvm_ir.FunctionType(total.type, [total.type]), "", constraint, [added], side_effect=False)


def _vpdpbusd(b: KernelBuilder, total: Any, activations: Any, weights: Any) -> Any:
    # The operands' types are those of LLVM 14; later versions, which want other ones, convert them.
    operands = [total, *(b.ir.bitcast(operand, total.type) for operand in (activations, weights))]
    return b.intrinsic(f"llvm.x86.avx512.vpdpbusd.{32 * b.vector_width}", total.type, operands)


def _plain_s16(b: KernelBuilder, total: Any, activations: Any, weights: Any) -> Any:
    wide = llvm_ir.VectorType(I32, 2 * b.vector_width)
    return _add_neighbors(b, total, b.ir.mul(b.ir.sext(activations, wide), b.ir.sext(weights, wide)))


def _plain_u8(b: KernelBuilder, total: Any, activations: Any, weights: Any) -> Any:
    wide = llvm_ir.VectorType(I32, 4 * b.vector_width)
    return _add_neighbors(b, total, b.ir.mul(b.ir.zext(activations, wide), b.ir.sext(weights, wide)))


def _add_neighbors(b: KernelBuilder, total: Any, products: Any) -> Any:
    """Add each lane's products, which are next to one another, to its total."""
    index_type = llvm_ir.VectorType(I32, b.vector_width)
    step = products.type.count // b.vector_width
    for first in range(step):
        indices = llvm_ir.Constant(index_type, list(range(first, products.type.count, step)))
        total = b.ir.add(total, b.ir.shuffle_vector(products, products, indices))
    return total


DOT_PRODUCTS: Dict[str, DotProduct] = {
    "pmaddwd": DotProduct(2, 1.5, _pmaddwd),  # measured on Zen 3: the sums are an instruction of their own
    "plain_s16": DotProduct(2, 1.5, _plain_s16),
    "vpdpbusd": DotProduct(4, 4, _vpdpbusd),
    "plain_u8": DotProduct(4, 1.5, _plain_u8),
    "tdpbusd": DotProduct(4, 20, tiles=AmxTiles),
    "plain_tiles": DotProduct(4, 1.5, tiles=PlainTiles),
}
