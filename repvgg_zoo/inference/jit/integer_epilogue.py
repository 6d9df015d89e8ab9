"""The epilogue of integer kernels: from 32-bit sums to float32, or to the next layer's integers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir as llvm_ir

from .ir_builder import F32, I32, KernelBuilder

# sums * scale + center * identity + bias, with ReLU if asked for, is stored as float32, or with ``quantize`` rounded to
# 0 to 255. Center is the input's pixel at the same place.
EPILOGUE = ("scale", "identity", "bias", "relu", "quantize", "center", "center_offsets")
MAX_ACTIVATION = 255.0
ROUNDING = 1.5 * 2**23  # added to a float of 0 to 2^22, it leaves the rounded number in the lowest bits


def scale_sums(b: KernelBuilder, total: Any, pixel: Any, scale: Any, identity: Any, bias: Any) -> Any:
    """Return total * scale + pixel * identity + bias."""
    vector_type = llvm_ir.VectorType(F32, b.vector_width)
    sums, pixels = b.ir.sitofp(total, vector_type), b.ir.uitofp(pixel, vector_type)
    return b.fma(pixels, identity, b.fma(sums, scale, bias))


def store_result(b: KernelBuilder, value: Any, pointer: Any, element: Any) -> None:
    """Store a vector of floats, or rounded to integers if their type is passed."""
    if element is None:
        b.store_vector(value, pointer)
        return
    largest = b.constant(MAX_ACTIVATION)
    limited = b.ir.select(b.ir.fcmp_ordered("<", value, largest), value, largest)
    limited = b.clamp_min(limited, b.constant(0.0))
    bits = b.ir.bitcast(b.ir.fadd(limited, b.constant(ROUNDING)), llvm_ir.VectorType(I32, b.vector_width))
    store_ints(b, b.ir.trunc(bits, llvm_ir.VectorType(element, b.vector_width)), pointer)


def load_ints(b: KernelBuilder, pointer: Any, element: Any, lanes: int) -> Any:
    """Load a vector of integers of this type."""
    vector_type = llvm_ir.VectorType(element, lanes)
    return b.ir.load(b.ir.bitcast(pointer, vector_type.as_pointer()), align=element.width // 8)


def store_ints(b: KernelBuilder, value: Any, pointer: Any) -> None:
    """Store a vector of integers."""
    b.ir.store(value, b.ir.bitcast(pointer, value.type.as_pointer()), align=value.type.element.width // 8)
