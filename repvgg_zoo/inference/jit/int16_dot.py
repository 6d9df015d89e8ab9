"""Products of pairs of 16-bit integers, added to 32-bit sums: one function for each instruction that does it.

Each takes the sums, the pairs that are the same in each lane, and the weights, and returns the new sums.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Sequence

from llvmlite import ir as llvm_ir

from .ir_builder import I32, KernelBuilder


def _pmaddwd(module: llvm_ir.Module, b: KernelBuilder, total: Any, pairs: Any, weights: Any) -> Any:
    name = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[b.vector_width]
    added = b.ir.add(total, _call(module, b, name, total.type, [pairs, weights]))
    # Code that LLVM does not look into, which is empty: it would add up the products of several steps before they are
    # added to the total, for which there are not enough registers.
    constraint = "=x,0" if b.vector_width == 8 else "=v,0"
    return b.ir.asm(llvm_ir.FunctionType(total.type, [total.type]), "", constraint, [added], side_effect=False)


def _vpdpwssd(module: llvm_ir.Module, b: KernelBuilder, total: Any, pairs: Any, weights: Any) -> Any:
    name = f"llvm.x86.avx512.vpdpwssd.{32 * b.vector_width}"
    # The operands' types are those of LLVM 14; later versions, which want other ones, convert them.
    operands = [total, *(b.ir.bitcast(operand, total.type) for operand in (pairs, weights))]
    return _call(module, b, name, total.type, operands)


def _plain(module: llvm_ir.Module, b: KernelBuilder, total: Any, pairs: Any, weights: Any) -> Any:
    wide = llvm_ir.VectorType(I32, 2 * b.vector_width)
    products = b.ir.mul(b.ir.sext(pairs, wide), b.ir.sext(weights, wide))
    index_type = llvm_ir.VectorType(I32, b.vector_width)
    even, odd = (
        b.ir.shuffle_vector(products, products, llvm_ir.Constant(index_type, list(range(first, 2 * b.vector_width, 2))))
        for first in (0, 1)
    )
    return b.ir.add(total, b.ir.add(even, odd))


def _call(module: llvm_ir.Module, b: KernelBuilder, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    function_type = llvm_ir.FunctionType(result, [argument.type for argument in arguments])
    function = module.globals.get(name) or llvm_ir.Function(module, function_type, name=name)
    return b.ir.call(function, arguments)


DOT_PRODUCTS: Dict[str, Callable[..., Any]] = {"pmaddwd": _pmaddwd, "vpdpwssd": _vpdpwssd, "plain": _plain}
